"""Structured output through the whole engine, on every kind of device."""

import json
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from inferplane.config import Config
from inferplane.engine import EngineCore, open_engine
from inferplane.grammar.compile import Choices, Compiler
from inferplane.grammar.contract import Engine, Grammar, GrammarError, Matcher, Vocabulary
from inferplane.grammar.engines import open_engine as open_grammar_engine
from inferplane.grammar.running import Grammars
from inferplane.grammar.vocabulary import vocabulary_of
from inferplane.messages import Abort, Output, Ping, Pong, Refused, Submit
from inferplane.plugins import Plugins
from inferplane.sampling_params import Constraint, SamplingParams
from inferplane.testing.null import SETTINGS, NullBackend, NullSettings
from inferplane.testing.tiny import TinySource
from inferplane.testing.workload import Answer, serve
from tests.core.server.byte_model import EOS, VOCAB_SIZE, byte_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name_of_colour": {"enum": ["red", "green", "blue"]},
        "is_light": {"type": "boolean"},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "note": {"type": "string", "maxLength": 6, "pattern": "^[a-z ]*$"},
    },
    "required": ["name_of_colour", "is_light", "count", "note"],
    "additionalProperties": False,
}
CONSTRAINTS: tuple[dict[str, Any], ...] = (
    {"json_schema": json.dumps(SCHEMA)},
    {"regex": "(?:ab|cd){3,5}!"},
    {},
    {"json_schema": json.dumps(SCHEMA), "min_tokens": 80, "temperature": 0.3},
    {"ebnf": 'root ::= "yes" | "no" ", never"', "temperature": 0.0},
    {"json_schema": json.dumps(SCHEMA), "repetition_penalty": 1.2, "frequency_penalty": 0.3},
    {"logprobs": 1},
    {"regex": "x[0-9]{4}y", "logprobs": 2},
)
VOCABULARY = vocabulary_of(byte_tokenizer(), VOCAB_SIZE)


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(VOCABULARY, Choices())


@pytest.fixture(scope="module")
def plain(compiler: Compiler) -> dict[str, Answer]:
    """What comes of the requests with overlap, in little memory."""
    return run(compiler, SETTINGS["asynchronous"])[0]


def submits(compiler: Compiler, wanted: Callable[[SamplingParams], bool]) -> list[Submit]:
    """Requests of every kind; those that are not `wanted` are left out, and change no other."""
    made = []
    for index in range(len(CONSTRAINTS) + 3):
        params = SamplingParams(**CONSTRAINTS[index % len(CONSTRAINTS)])
        if not wanted(params):
            continue
        constraint = params.constraint
        made.append(
            Submit(
                request_id=f"r{index}",
                prompt=[(7 * index + i) % 256 for i in range(20 + index % 3)],
                params=params,
                stop_ids=[EOS],
                max_tokens=90,
                seed=index,
                grammar=compiler.compile(constraint) if constraint else None,
            )
        )
    return made


def tiny(settings: NullSettings, **config: Any) -> EngineCore:
    plugins = Plugins()
    plugins.register("null", NullBackend(settings))
    source = TinySource("llama")
    source.config["vocab_size"] = VOCAB_SIZE
    values: dict[str, Any] = {
        "max_running": 6,
        "max_batch_tokens": 48,
        "page_size": 8,
        "kv_cache_tokens": 144,
        "max_model_len": 160,
    }
    model = Config(model="llama", device="null", dtype="float32", **(values | config))
    return open_engine(model, source, plugins, tokenizer=byte_tokenizer)


def run(compiler: Compiler, settings: NullSettings, **config: Any) -> tuple[dict[str, Answer], Any]:
    engine = tiny(settings, **config)
    answers, stats = serve(engine, submits(compiler, lambda params: True))
    assert not engine._grammars or not engine._grammars._running
    engine.close()
    return answers, stats


def text_of(answer: Answer) -> str:
    return bytes(token for token in answer.tokens if token != EOS).decode()


def check(answer: Answer, params: SamplingParams) -> None:
    """The answer is what its constraint demands."""
    text = text_of(answer) if params.constraint else ""
    assert answer.finish_reason in ("stop", "length")
    if params.json_schema:
        assert answer.finish_reason == "stop"
        value = json.loads(text)
        assert list(value) == SCHEMA["required"]
        assert value["name_of_colour"] in ("red", "green", "blue")
        assert value["is_light"] in (True, False)
        assert 0 <= value["count"] <= 99 and len(value["note"]) <= 6
    elif params.ebnf:
        assert text in ("yes", "no, never")
    elif params.regex and params.logprobs is None:
        assert text.endswith("!") and set(text[:-1]) <= set("abcd")
    elif params.regex:
        assert text[0] + text[-1] == "xy" and text[1:-1].isdecimal() and len(text) == 6
        assert [item.token for item in answer.logprobs] == answer.tokens


def test_every_answer_follows_its_grammar(compiler: Compiler, null_settings: NullSettings) -> None:
    answers, stats = run(compiler, null_settings)
    for submit in submits(compiler, lambda params: True):
        check(answers[submit.request_id], submit.params)
    assert stats.retractions > 0
    assert stats.finished == len(answers) and stats.failed == 0


@pytest.mark.parametrize(
    "config",
    [
        {"disable_overlap": True},
        {"disable_prefix_cache": True},
        {"max_batch_tokens": 7},
        {"kv_cache_tokens": 4096, "max_running": 16},
        {"disable_jump_forward": True},
    ],
    ids=str,
)
def test_settings_change_no_token(
    compiler: Compiler, plain: dict[str, Answer], config: dict[str, Any]
) -> None:
    """A byte is a token here, so that forced text has only one tokenization: then jumping over it
    must not change what is sampled around it either."""
    other, stats = run(compiler, SETTINGS["asynchronous"], **config)
    assert {k: a.tokens for k, a in plain.items()} == {k: a.tokens for k, a in other.items()}
    sampled = stats.output_tokens - stats.forced_tokens
    assert (sampled < stats.output_tokens) == ("disable_jump_forward" not in config)


def test_neighbours_without_a_grammar_are_not_changed(
    compiler: Compiler, plain: dict[str, Answer]
) -> None:
    engine = tiny(SETTINGS["asynchronous"])
    alone, _ = serve(engine, submits(compiler, lambda params: params.constraint is None))
    engine.close()
    assert alone
    for name, answer in alone.items():
        assert plain[name].tokens == answer.tokens


class Breaking:
    """An engine whose matchers fail at one token of output."""

    def __init__(self, inner: Engine, at: str, when: int) -> None:
        self.inner, self.at, self.when = inner, at, when

    def matcher(self, source: str) -> Matcher:
        if self.at == "build":
            raise GrammarError("planted")
        matcher: Any = self.inner.matcher(source)
        accept, count = matcher.accept, 0

        class Wrapped(type(matcher)):  # type: ignore[misc]
            def accept(self, tokens: Sequence[int]) -> None:
                nonlocal count
                count += len(tokens)
                if count > outer.when and outer.at == "accept":
                    raise GrammarError("planted")
                accept(tokens)

            @property
            def error(self) -> str:
                return "planted" if count > outer.when and outer.at == "fill" else ""

        outer = self
        matcher.__class__ = Wrapped
        result: Matcher = matcher
        return result

    def fill(self, rows: Sequence[tuple[Matcher, int]], mask: Any) -> None:
        self.inner.fill(rows, mask)


@pytest.mark.parametrize("at", ["build", "accept", "fill"])
@pytest.mark.parametrize("settings", ["dynamic", "asynchronous"])
def test_a_grammar_that_fails_ends_its_request_alone(
    compiler: Compiler, plain: dict[str, Answer], at: str, settings: str
) -> None:
    engine = tiny(SETTINGS[settings])

    def load() -> Vocabulary:
        return VOCABULARY

    def open_broken(name: str, vocabulary: Vocabulary) -> Engine:
        inner = open_grammar_engine("llguidance", vocabulary)
        return Breaking(inner, at, when=9) if name == "broken" else inner

    assert engine._grammars is not None
    engine._grammars.close()
    engine._grammars = Grammars(load, open_broken)
    requests = submits(compiler, lambda params: True)
    assert requests[0].grammar is not None
    requests[0].grammar = Grammar("broken", requests[0].grammar.source)
    answers, stats = serve(engine, requests)
    engine.close()
    assert answers.pop("r0").finish_reason == "error"
    assert stats.failed == 1
    for name, answer in answers.items():
        assert answer.tokens == plain[name].tokens


def test_a_grammar_that_takes_long_keeps_nobody_waiting(compiler: Compiler) -> None:
    engine = tiny(SETTINGS["asynchronous"])
    go = threading.Event()

    def open_slow(name: str, vocabulary: Vocabulary) -> Engine:
        assert go.wait(60)
        return open_grammar_engine("llguidance", vocabulary)

    assert engine._grammars is not None
    engine._grammars.close()
    engine._grammars = Grammars(lambda: VOCABULARY, open_slow)
    requests = submits(compiler, lambda params: True)
    free = {r.request_id for r in requests if r.grammar is None}
    for submit in requests:
        assert engine.handle(submit) == []
    ended: set[str] = set()
    while ended < free:
        ended |= finished(engine)
    assert ended == free
    (pong,) = engine.handle(Ping(1))
    assert isinstance(pong, Pong) and pong.stats.waiting == len(requests) - len(free)
    (output,) = engine.handle(Abort("r0"))
    assert isinstance(output, Output) and output.finish_reason == "abort"
    assert engine.handle(Abort("r0")) == []
    (refused,) = engine.handle(requests[1])
    assert isinstance(refused, Refused) and refused.param == "request_id"
    go.set()
    while engine.has_work:
        ended |= finished(engine)
    assert ended == {r.request_id for r in requests} - {"r0"}
    engine.close()


def finished(engine: EngineCore) -> set[str]:
    outputs = [message for message in engine.step() if isinstance(message, Output)]
    assert not any(output.error for output in outputs)
    return {output.request_id for output in outputs if output.finish_reason}


def test_a_constraint_without_its_grammar_is_refused(compiler: Compiler) -> None:
    engine = tiny(SETTINGS["dynamic"])
    submit = submits(compiler, lambda params: params.regex is not None)[0]
    submit.grammar = None
    (refused,) = engine.handle(submit)
    assert isinstance(refused, Refused) and refused.code == "unsupported_parameter"
    engine.close()


def test_slow_grammars_are_built_in_a_thread_that_gives_way(compiler: Compiler) -> None:
    """And the others in one that does not, which also makes what both use."""
    opening, building = list[int](), list[int]()

    def opened(name: str, vocabulary: Vocabulary) -> Engine:
        opening.append(os.sched_getscheduler(0))
        engine = open_grammar_engine(name, vocabulary)
        matcher = engine.matcher

        def noted(source: str) -> Matcher:
            building.append(os.sched_getscheduler(0))
            return matcher(source)

        engine.matcher = noted  # type: ignore[method-assign]
        return engine

    grammars = Grammars(lambda: VOCABULARY, opened)
    grammar = compiler.compile(Constraint("regex", "[a-z]+"))
    for slow in (True, False):
        grammars.build("r", msgspec.structs.replace(grammar, slow=slow), jump=False)
        ((request_id, move),) = grammars.ready(60.0)
        assert request_id == "r" and move.error is None and grammars.drop("r")
    grammars.close()
    usual = os.sched_getscheduler(0)
    assert opening == [usual]
    assert building == [os.SCHED_IDLE, usual]
