"""Trial compilation: bounded in time, memory and number, and nobody waits for somebody else's."""

import asyncio
import contextlib
import json
import os
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from inferplane.errors import RequestError
from inferplane.grammar import trial
from inferplane.grammar.contract import Grammar
from inferplane.grammar.trial import Trials
from inferplane.grammar.vocabulary import vocabulary_of
from inferplane.sampling_params import Constraint, json_schema_constraint
from tests.core.server.byte_model import VOCAB_SIZE, byte_tokenizer

Value = TypeVar("Value")
FINE = Constraint("regex", "[a-z]+")


def make(**limits: Any) -> Trials:
    return Trials(lambda: vocabulary_of(byte_tokenizer(), VOCAB_SIZE), **limits)


@pytest.fixture(scope="module")
def trials() -> Iterator[Trials]:
    made = make()
    yield made
    made.close()


def run(work: Coroutine[Any, Any, Value]) -> Value:
    return asyncio.run(work)


def pids(trials: Trials) -> set[int]:
    return {worker._process.pid for worker in trials._workers.values()}


def test_a_verdict_is_a_grammar_or_an_error_and_is_kept(trials: Trials) -> None:
    grammar = run(trials.compile(FINE))
    assert isinstance(grammar, Grammar) and grammar.engine == "llguidance"
    assert run(trials.compile(FINE)) is grammar
    for _ in range(2):
        with pytest.raises(RequestError, match="'contains' at /properties/a/contains"):
            run(trials.compile(json_schema_constraint({"properties": {"a": {"contains": {}}}})))


def test_equal_constraints_are_compiled_once(
    trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    attempt = Trials._try
    monkeypatch.setattr(Trials, "_try", lambda self, c: compiled.append(c) or attempt(self, c))

    async def many() -> list[Grammar]:
        same = [trials.compile(Constraint("regex", "once")) for _ in range(20)]
        return await asyncio.gather(*same)

    assert len({grammar.source for grammar in run(many())}) == 1
    assert len(compiled) == 1


EVIL = {
    "parentheses": Constraint("regex", "(" * 30_000 + "a" + ")" * 30_000),
    "grammar": Constraint("ebnf", "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000),
    "nested text": Constraint("json_schema", '{"items":' * 20_000 + "{}" + "}" * 20_000),
    "recursion": Constraint("json_schema", '{"$ref": "#"}'),
    "behind a text": Constraint("json_schema", '{"anyOf": [{"$ref": "#"}]}', "</think>"),
    "crossed recursion": json_schema_constraint(
        {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}},
        }
    ),
    "growth": json_schema_constraint(
        {
            "$ref": "#/$defs/d0",
            "$defs": {
                f"d{i}": {"not": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 9}} for i in range(30)
            }
            | {"d30": {"type": "integer"}},
        }
    ),
    "many branches": json_schema_constraint(
        {"allOf": [{"oneOf": [{"required": [f"a{i}{j}"]} for j in range(4)]} for i in range(60)]}
    ),
}


@pytest.mark.parametrize("name", EVIL)
def test_evil_constraints_are_refused(trials: Trials, name: str) -> None:
    with pytest.raises(RequestError) as caught:
        run(trials.compile(EVIL[name]))
    assert caught.value.status == 400
    assert caught.value.param == EVIL[name].kind
    assert len(caught.value.message) < 600
    assert run(trials.compile(Constraint("regex", f"[a-z]+{name}")))


@pytest.mark.parametrize(
    "pattern",
    [
        "((((a{1,100}){1,100}){1,100}){1,100}){1,100}",
        "(a|aa|aaa|[a-z]*b){1,500}" * 50,
        "(a+)+b" * 100,
        "(.*)*" * 500,
        "[a-z]*" * 1000 + "q",
        "(x{1000}){1000}",
    ],
)
def test_patterns_that_explode_elsewhere_are_harmless_or_refused(
    trials: Trials, pattern: str
) -> None:
    """Derivatives make of these automata of a few states, or stop at a limit."""
    with contextlib.suppress(RequestError):
        run(trials.compile(Constraint("regex", pattern)))
    assert run(trials.compile(Constraint("regex", f"[a-z]+{len(pattern)}")))


def test_large_but_harmless_ones_are_taken(trials: Trials) -> None:
    words = json_schema_constraint({"enum": [f"word number {i}" for i in range(3000)]})
    tree = {
        "type": "object",
        "properties": {"children": {"type": "array", "items": {"$ref": "#"}}},
        "additionalProperties": False,
    }
    for constraint in (words, json_schema_constraint(tree)):
        assert run(trials.compile(constraint)).source


def test_a_worker_over_its_time_is_killed_and_replaced() -> None:
    slow = make(seconds=0.0)
    try:
        with pytest.raises(RequestError, match="takes more than 0 seconds") as caught:
            run(slow.compile(FINE))
        assert caught.value.code == "grammar_too_complex"
        assert not slow._workers
        slow._seconds = 60.0
        assert run(slow.compile(Constraint("regex", "b")))
    finally:
        slow.close()


def test_a_worker_that_dies_is_replaced(trials: Trials) -> None:
    run(trials.compile(Constraint("regex", "before")))
    for pid in pids(trials):
        os.kill(pid, 9)
    refused = 0
    for index in range(trial.WORKERS + 1):
        try:
            assert run(trials.compile(Constraint("regex", f"after {index}")))
        except RequestError as error:
            assert error.code == "grammar_too_complex"
            refused += 1
    assert refused <= trial.WORKERS


def test_memory_is_bounded() -> None:
    """Half a million states fit into no 24 MB."""
    small = make(memory=24 * 2**20, seconds=60.0)
    try:
        names = [f"{i * 7919 % 100_003:x}-{i}" for i in range(9_000)]
        schema = {"type": "object", "properties": {name: {"enum": names[:9]} for name in names}}
        text = json.dumps(schema)
        with pytest.raises(RequestError) as caught:
            run(small.compile(Constraint("json_schema", text)))
        assert caught.value.code == "grammar_too_complex"
        assert run(small.compile(FINE))
    finally:
        small.close()


def test_only_so_many_wait(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "MOST_WAITING", 3)

    async def many() -> list[Any]:
        work = [trials.compile(Constraint("regex", f"w{i}")) for i in range(9)]
        return await asyncio.gather(*work, return_exceptions=True)

    results = run(many())
    full = [r for r in results if isinstance(r, RequestError)]
    assert [r.status for r in full] == [503] * 6
    assert sum(isinstance(r, Grammar) for r in results) == 3


def test_the_cache_is_bounded(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "CACHE_BYTES", 4000)
    for index in range(12):
        run(trials.compile(Constraint("regex", f"kept{index}")))
    assert trials._cached_bytes <= 4000
    assert trials._cached_bytes == sum(map(trial.size_of, trials._verdicts.values()))
    assert 0 < len(trials._verdicts) < 12


def test_closing_ends_the_processes() -> None:
    made = make()
    run(made.compile(FINE))
    started = pids(made)
    made.close()
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
