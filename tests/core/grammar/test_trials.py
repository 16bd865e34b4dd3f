"""Trial compilation: bounded in time, memory and number, and nobody waits for somebody else's."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import msgspec
import pytest

from inferplane.errors import RequestError
from inferplane.grammar import compile, trial, with_llguidance
from inferplane.grammar.compile import Choices, Compiler
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


def test_a_pattern_whose_states_explode_while_it_writes_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It compiles at once; then each token makes more states. The walk of a trial meets them."""
    dots = Constraint("regex", "(.{0,50}a.{0,50}b){1,20}c")
    monkeypatch.setattr(with_llguidance, "MOST_TRIAL_STATES", 300)
    compiler = Compiler(vocabulary_of(byte_tokenizer(), VOCAB_SIZE), Choices("llguidance"))
    assert compiler.compile(FINE)
    for after in ("", "</think>"):
        with pytest.raises(RequestError, match=r"regex: .*too many states: 300") as caught:
            compiler.compile(msgspec.structs.replace(dots, after=after))
        assert (caught.value.status, caught.value.param) == (400, "regex")


def test_a_walk_adds_up_what_masks_take(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(vocabulary_of(byte_tokenizer(), VOCAB_SIZE), Choices("llguidance"))
    assert compiler.compile(FINE)
    monkeypatch.setattr(compile, "FREE_SECONDS", 0.0)
    monkeypatch.setattr(compile, "MASK_SECONDS", 0.0)
    with pytest.raises(RequestError, match=r"its masks take \d+\.\d ms a token, at most 0"):
        compiler.compile(FINE)


def test_a_grammar_that_is_slow_to_build_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(vocabulary_of(byte_tokenizer(), VOCAB_SIZE), Choices("llguidance"))
    assert not compiler.compile(FINE).slow
    monkeypatch.setattr(compile, "SLOW_SECONDS", 0.0)
    assert compiler.compile(FINE).slow


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


@pytest.fixture
def stuck() -> Iterator[Trials]:
    """With no time for a trial, and workers that do not get on."""
    made = make()
    run(made.compile(FINE))
    for pid in pids(made):
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
    made._seconds = 0.0
    yield made
    made.close()


def test_a_worker_over_its_time_is_killed_and_replaced(stuck: Trials) -> None:
    with pytest.raises(RequestError, match="takes more than 0 seconds") as caught:
        run(stuck.compile(Constraint("regex", "b")))
    assert (caught.value.status, caught.value.code) == (400, "grammar_too_complex")
    assert not stuck._workers
    stuck._seconds = 60.0
    assert run(stuck.compile(Constraint("regex", "c")))


def test_a_trial_that_gets_no_processor_is_not_the_constraints_fault(
    stuck: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "STARVED_SECONDS", 0.0)
    monkeypatch.setattr(trial.Worker, "starves", lambda worker: True)
    with pytest.raises(RequestError, match="got less than 1 s of a processor") as caught:
        run(stuck.compile(Constraint("regex", "b")))
    assert (caught.value.status, caught.value.code) == (503, "grammar_not_tried")
    monkeypatch.setattr(trial, "STARVED_SECONDS", 600.0)
    assert run(stuck.compile(Constraint("regex", "b")))  # nothing is kept, and it gets its time


def test_a_trial_is_over_once_it_has_had_its_time_and_does_not_starve(
    stuck: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is over from the start; at the first two looks it waits for a processor."""
    (worker,) = stuck._workers.values()
    looks = iter([True, True, False])
    monkeypatch.setattr(worker, "starves", lambda: next(looks))
    with pytest.raises(TimeoutError):
        worker.run(FINE, 0.0)
    assert list(looks) == []


def test_what_a_worker_waits_for(stuck: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not want a processor, or has had enough of it, does not starve."""
    (worker,) = stuck._workers.values()
    assert not worker.starves()
    states = iter("RDSTR")
    spent = iter([0.9, 0.9, 0.0, 0.0, 1.0])
    monkeypatch.setattr(worker, "_before", 7.0)
    monkeypatch.setattr(worker, "_processor", lambda: (next(states), 7.0 + next(spent)))
    assert [worker.starves() for _ in range(5)] == [True, True, False, False, False]


def test_trials_go_behind_everything_else(trials: Trials) -> None:
    run(trials.compile(Constraint("regex", "behind")))
    assert {os.sched_getscheduler(pid) for pid in pids(trials)} == {os.SCHED_IDLE}


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
