"""However a text is cut into pieces, it means the same; and no text is too much."""

import random
from dataclasses import astuple
from itertools import pairwise

import pytest

from inferplane.parsers.events import Event, ToolCall
from inferplane.parsers.formats import REASONING, TOOLS
from inferplane.parsers.machine import Machine
from inferplane.parsers.source import Markers, Source
from tests.core.parsers.bad_cases import CASES
from tests.core.parsers.cases import Case, parse

SPLITS = 150
MUTANTS = 30
MUTANT_SPLITS = 4
JUNK = [*"{}[]()<>|\\\"',:=` \n", "\\u12", "\\ud83d", "日", "🎉", "null", "</think>", "<think>"]


def pieces(rng: random.Random, text: str) -> list[str]:
    """A random cut: often tiny pieces, sometimes empty ones."""
    size = rng.choice((1, 2, 4, 8, 30))
    cuts = [0]
    while cuts[-1] < len(text):
        cuts.append(min(len(text), cuts[-1] + rng.randint(0, size)))
    return [text[a:b] for a, b in pairwise(cuts)]


def mutated(rng: random.Random, case: Case, text: str) -> str:
    """With a few characters lost, doubled or replaced, or markers of the format put in."""
    tools = TOOLS.get(case.tools or "")
    reasoning = REASONING.get(case.reasoning or "")
    markers = [m for f in (tools, reasoning) if f is not None for m in f.markers]
    for _ in range(rng.randint(1, 6)):
        at, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        match rng.randint(0, 3):
            case 0:
                text = text[:at] + text[at + 1 :]
            case 1:
                text = text[:at] + rng.choice(JUNK + markers) + text[at:]
            case 2:
                text = text[:end] + text[at : at + 20] + text[end:]
            case _:
                text = text[: max(at, len(text) - 40)]
    return text


def test_there_are_enough() -> None:
    assert len(CASES) * (SPLITS + MUTANTS * MUTANT_SPLITS) >= 20_000


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_split_of_a_case(case: Case) -> None:
    rng = random.Random(case.name)
    text = case.given()
    whole = parse(case, [text])
    for _ in range(SPLITS):
        cut = pieces(rng, text)
        assert parse(case, cut) == whole, cut


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_split_of_what_is_wrong(case: Case) -> None:
    rng = random.Random(case.name)
    hidden = {char for char in case.given() if ord(char) >= 0xF0000}
    for _ in range(MUTANTS):
        text = mutated(rng, case, case.given())
        whole = parse(case, [text])
        check(whole)
        assert not hidden & set(words(whole))
        for _ in range(MUTANT_SPLITS):
            cut = pieces(rng, text)
            assert parse(case, cut) == whole, cut


def check(events: list[Event]) -> None:
    """Indices count up, names are names, and what comes can be sent as JSON."""
    calls = [event for event in events if isinstance(event, ToolCall)]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert all(call.name and call.name == call.name.strip() for call in calls)
    words(events).encode()


def words(events: list[Event]) -> str:
    return "".join(str(value) for event in events for value in astuple(event))


EVIL = {
    "markers": "<tool_call>",
    "openings": "<",
    "braces": "{",
    "calls": '<tool_call>{"name": "f", "arguments": {',
    "lists": "[f(a=",
    "nested": "[f(a=[[[[",
    "spaces": "\n ",
    "escapes": '<tool_call>{"name": "f", "arguments": "\\',
    "held": '<tool_call>{"arguments": [',
    "channels": "<|channel|>",
    "names": "<|tool_call_begin|>a",
    "keys": "<tool_call>f\n<arg_key>k</arg_key><arg_value>",
}


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("name", TOOLS)
def test_evil_text_holds_nothing_up(name: str, evil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep, long and repeated: the source holds back a bit of the text at most, and the work,
    counted in characters that it looks at, grows with the text alone."""
    text = EVIL[evil] * (12_000 // len(EVIL[evil]))
    work = 0
    take, held = Source._take, Markers.held

    def counted_take(source: Source, count: int) -> str:
        nonlocal work
        work += count + 1
        return take(source, count)

    def counted_held(markers: Markers, text: str, at: int) -> int:
        nonlocal work
        work += min(len(text) - at, markers.longest)
        return held(markers, text, at)

    monkeypatch.setattr(Source, "_take", counted_take)
    monkeypatch.setattr(Markers, "held", counted_held)
    machine = Machine(TOOLS[name], REASONING["qwen3"], new_id=lambda: "id")
    for start in range(0, len(text), 7):
        machine.push(text[start : start + 7])
        assert len(machine.source._text) - machine.source._at < 64
    machine.flush()
    assert work < 16 * len(text)
