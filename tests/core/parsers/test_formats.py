"""Each format, whole and a character at a time."""

import pytest

from inferplane.parsers.events import Arguments, Text, ToolCall
from inferplane.parsers.formats import REASONING, TOOLS
from tests.core.parsers.bad_cases import BAD, CASES
from tests.core.parsers.cases import Case, parse, together
from tests.core.parsers.good_cases import HERMES, MISTRAL


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_meaning(case: Case) -> None:
    text = case.given()
    assert together(parse(case, [text])) == case.expected()
    assert together(parse(case, text)) == case.expected()


def test_every_format_has_cases() -> None:
    assert {case.tools for case in CASES} >= set(TOOLS)
    assert {case.reasoning for case in CASES} >= set(REASONING) - {"glm-4.5"}
    assert len(BAD) > 25


def test_arguments_come_while_they_are_written() -> None:
    machine = Case("", "hermes", "").machine()
    assert machine.push('Hi <tool_call>{"name": "f", ') == [Text("Hi")]
    assert machine.push('"arguments": {"a') == [ToolCall(0, "id", "f"), Arguments(0, '{"a')]
    assert machine.push('": "x') == [Arguments(0, '": "x')]
    assert machine.push("</tool_call>") == [Arguments(0, "</tool_call>")]


def test_only_a_possible_marker_is_held_back() -> None:
    machine = Case("", "hermes", "").machine()
    assert machine.push("a <tool") == [Text("a")]
    assert machine.push("box") == [Text(" <toolbox")]


def test_reasoning_state() -> None:
    machine = Case("", None, "", reasoning="qwen3").machine()
    states = []
    for piece in ("<think>", "a", "</think>", "b"):
        machine.push(piece)
        states.append(machine.in_reasoning)
    assert states == [True, True, False, False]


def test_ids() -> None:
    for name, length in (("hermes", 29), ("mistral", 9)):
        case = Case("", name, HERMES % "{}" if name == "hermes" else "[TOOL_CALLS]f[ARGS]{}")
        machine = case.machine()
        machine.new_id = type(machine)(TOOLS[name], None).new_id
        calls = [e for e in machine.push(case.text) if isinstance(e, ToolCall)]
        assert len(calls[0].id) == length and calls[0].id.isascii()


def test_a_special_token_in_words_is_text() -> None:
    text = "[TOOL_CALLS]f[ARGS]{} is how [THINK] looks."
    case = Case("", "mistral", text, reasoning="mistral", special=MISTRAL)
    assert together(parse(case, text)).text == text
