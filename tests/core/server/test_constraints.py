"""Structured output as clients ask for it, over a fake engine that writes down what it gets."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from inferplane.grammar.trial import WORKERS, Worker
from inferplane.grammar.trial_worker import Verdict
from inferplane.sampling_params import Constraint
from tests.core.server.live_server import LiveServer, live_server

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
TAG = {
    "structures": [{"begin": "<t>", "schema": SCHEMA, "end": "</t>"}],
    "triggers": ["<t>"],
}
OPENAI: list[tuple[dict[str, Any], Constraint]] = [
    ({"response_format": JSON_SCHEMA}, Constraint("json_schema", json.dumps(SCHEMA))),
    (
        {"response_format": {"type": "json_object"}},
        Constraint("json_schema", '{"type": "object"}'),
    ),
    ({"json_schema": json.dumps(SCHEMA)}, Constraint("json_schema", json.dumps(SCHEMA))),
    ({"guided_json": SCHEMA}, Constraint("json_schema", json.dumps(SCHEMA))),
    ({"regex": "a+"}, Constraint("regex", "a+")),
    ({"guided_regex": "a+"}, Constraint("regex", "a+")),
    ({"guided_choice": ["yes.", "no"]}, Constraint("regex", r"(?:yes\.)|(?:no)")),
    ({"guided_choice": ["<b>", "a|"]}, Constraint("regex", r"(?:<b>)|(?:a\|)")),
    ({"ebnf": 'root ::= "a"'}, Constraint("ebnf", 'root ::= "a"')),
    ({"regex": "a", "constrain_after": "</t>"}, Constraint("regex", "a", "</t>")),
    ({"guided_grammar": 'start: "a"'}, Constraint("ebnf", 'start: "a"')),
    ({"structural_tag": TAG}, Constraint("structural_tag", json.dumps(TAG))),
    (
        {"response_format": {"type": "structural_tag", **TAG}},
        Constraint("structural_tag", json.dumps({"type": "structural_tag", **TAG})),
    ),
]
NATIVE: list[tuple[dict[str, Any], Constraint]] = [
    ({"json_schema": json.dumps(SCHEMA)}, Constraint("json_schema", json.dumps(SCHEMA))),
    ({"json_schema": SCHEMA}, Constraint("json_schema", json.dumps(SCHEMA))),
    ({"regex": "a+"}, Constraint("regex", "a+")),
    ({"regex": "a", "constrain_after": "</t>"}, Constraint("regex", "a", "</t>")),
    ({"ebnf": 'root ::= "a"'}, Constraint("ebnf", 'root ::= "a"')),
    ({"structural_tag": json.dumps(TAG)}, Constraint("structural_tag", json.dumps(TAG))),
]


def asked(live: LiveServer) -> Constraint | None:
    """What the last sequence that came to the engine demands; it has a grammar if it does."""
    submit = live.core.submitted[-1]
    constraint = submit.params.constraint
    assert (submit.grammar is not None) == (constraint is not None)
    return constraint


@pytest.mark.parametrize(("fields", "constraint"), OPENAI, ids=lambda x: str(x)[:40])
def test_openai_fields(live: LiveServer, fields: dict[str, Any], constraint: Constraint) -> None:
    for response in (live.chat("hi", **fields, max_tokens=2), live.complete("hi", **fields)):
        assert response.status_code == 200, response.text
        assert asked(live) == constraint
    assert live.chat("hi", **fields, stream=True, n=2, max_tokens=2).status_code == 200
    assert asked(live) == constraint


@pytest.mark.parametrize(("fields", "constraint"), NATIVE, ids=lambda x: str(x)[:40])
def test_native_fields(live: LiveServer, fields: dict[str, Any], constraint: Constraint) -> None:
    response = live.generate("hi", sampling_params={**fields, "max_new_tokens": 2})
    assert response.status_code == 200, response.text
    assert asked(live) == constraint


def test_plain_text_asks_for_nothing(live: LiveServer) -> None:
    response = live.chat("hi", response_format={"type": "text"}, regex=None, max_tokens=2)
    assert response.status_code == 200 and asked(live) is None


def test_two_constraints_exclude_each_other(live: LiveServer) -> None:
    response = live.chat("hi", regex="a", response_format={"type": "json_object"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "regex"
    response = live.generate("hi", sampling_params={"regex": "a", "json_schema": "{}"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "sampling_params.regex"


def test_a_refusal_names_the_field_and_the_keyword(live: LiveServer) -> None:
    bad = {"properties": {"a": {"contains": {}}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": bad}}
    for response in (
        live.chat("hi", response_format=form),
        live.chat("hi", response_format=form, stream=True),
        live.complete("hi", response_format=form),
    ):
        error = response.json()["error"]
        assert response.status_code == 400
        assert error["param"] == "response_format"
        assert error["code"] == "unsupported_schema"
        assert "'contains' at /properties/a/contains" in error["message"]


@pytest.fixture
def stopped() -> Iterator[LiveServer]:
    """A server whose compiling processes stand still, as if a constraint took them for ever."""
    with live_server() as server:
        assert server.chat("hi", regex="warm", max_tokens=1).status_code == 200
        assert server.chat("hi", regex="up", max_tokens=1).status_code == 200
        workers = server.service.generator._trials._workers.values()
        pids = [worker._process.pid for worker in workers]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield server
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_neighbours_go_on_while_a_constraint_is_compiled(stopped: LiveServer) -> None:
    stopped.service.generator._trials._seconds = 60.0
    answers: list[int] = []

    def ask() -> None:
        answers.append(stopped.chat("hi", regex="slow+", max_tokens=1).status_code)

    waiting = threading.Thread(target=ask)
    waiting.start()
    for _ in range(20):
        assert stopped.chat("count", temperature=0).status_code == 200
        assert stopped.http.get("/health/ready").status_code == 200
    assert not answers
    for worker in stopped.service.generator._trials._workers.values():
        os.kill(worker._process.pid, signal.SIGCONT)
    waiting.join(60)
    assert answers == [200]


def test_a_stuck_compiler_costs_a_neighbour_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are counted, not seconds: a neighbour takes as many as it does alone, no more and no
    fewer, while every worker is stuck in somebody's pattern."""
    stuck, release = threading.Semaphore(0), threading.Event()

    def hold(worker: Worker, constraint: Constraint, seconds: float) -> Verdict:
        stuck.release()
        assert release.wait(60)
        return Verdict(message="regex takes too long", param="regex", code="grammar_too_complex")

    monkeypatch.setattr(Worker, "run", hold)
    statuses: list[int] = []
    with live_server() as live:

        def steps() -> int:
            before = live.core.stats.steps
            assert live.chat("count", temperature=0).json()["choices"][0]["message"]["content"]
            return live.core.stats.steps - before

        def ask(number: int) -> None:
            statuses.append(live.chat("hi", regex=f"evil{number}").status_code)

        alone = steps()
        evil = [threading.Thread(target=ask, args=(n,)) for n in range(2 * WORKERS)]
        for thread in evil:
            thread.start()
        for _ in range(WORKERS):
            assert stuck.acquire(timeout=60)
        assert [steps() for _ in range(20)] == [alone] * 20 and alone > 1
        assert not statuses
        release.set()
        for thread in evil:
            thread.join(60)
    assert statuses == [400] * len(evil)


def test_a_constraint_that_takes_too_long_is_refused(stopped: LiveServer) -> None:
    stopped.service.generator._trials._seconds = 0.2
    response = stopped.chat("hi", regex="slow", max_tokens=1)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("regex", "grammar_too_complex")
    assert stopped.chat("count").status_code == 200


def test_evil_constraints_over_http(live: LiveServer) -> None:
    """Each is answered with 400 that names its field, and leaves the server as it was."""
    deep: Any = {"type": "string"}
    for _ in range(50):
        deep = {"items": deep}
    evil: list[dict[str, Any]] = [
        {"regex": "(" * 30_000 + "a" + ")" * 30_000},
        {"guided_regex": "[" * 5000},
        {"ebnf": "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000},
        {"json_schema": '{"items":' * 9_000 + "{}" + "}" * 9_000},
        {"guided_json": {"$ref": "#"}},
        {"guided_json": {"not": deep}},
        {"json_schema": '{"enum": []}'},
        {"json_schema": '{"anyOf": [{"$ref": "#"}]}'},
        {"json_schema": '{"items":' * 100 + "{}" + "}" * 100},
        {"guided_json": {"enum": ["x" * 60 + str(i) for i in range(9_000)]}},
        {"guided_choice": [f"{'x' * 300}{i}" for i in range(1000)]},
    ]
    for fields in evil:
        response = live.chat("hi", **fields)
        assert response.status_code == 400, fields
        assert response.json()["error"]["param"] == next(iter(fields))
    assert live.client.open_sequences == 0
    assert live.chat("count").status_code == 200
