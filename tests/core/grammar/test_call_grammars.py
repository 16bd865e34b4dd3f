"""Calls that a grammar writes: whatever a model samples, the parser of the same format reads calls
from it whose arguments obey their schemas."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

from inferplane.errors import RequestError
from inferplane.grammar.compile import Choices, Compiler
from inferplane.grammar.contract import Vocabulary
from inferplane.grammar.vocabulary import vocabulary_of
from inferplane.grammar.with_llguidance import LLGuidance, LLGuidanceMatcher
from inferplane.parsers.choose import Parsers, choose
from inferplane.parsers.events import Call, Parsed
from inferplane.parsers.formats import TOOLS
from inferplane.sampling_params import Constraint
from inferplane.server.demand import demand
from inferplane.server.tools import Tool, ToolChoice
from tests.core.server.byte_model import EOS, TURN, byte_tokenizer

WRITE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "minLength": 2, "maxLength": 6},
        "mode": {"enum": ["a<", "w", "</"]},
        "id": {"type": "string", "pattern": "^[a-c]+-[0-9]{2}$"},
        "note": {"type": "string"},
        "lines": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        "count": {"type": "integer", "minimum": 3, "maximum": 40},
        "force": {"type": "boolean"},
        "where": {"$ref": "#/$defs/place"},
        "maybe": {"type": ["string", "null"]},
    },
    "required": ["path", "lines", "where"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"x": {"type": "number"}, "in": {"$ref": "#/$defs/place"}},
            "additionalProperties": False,
        }
    },
}
NOW: dict[str, Any] = {
    "type": "object",
    "properties": {"zone": {"type": "string", "maxLength": 3}, "n": {"type": "integer"}},
    "required": [],
    "additionalProperties": False,
}
LOOSE: dict[str, Any] = {
    "type": "object",
    "properties": {"s": {"type": "string"}, "any": {"type": "integer"}},
}
TOOLS_OFFERED = (
    Tool(name="write", parameters=WRITE, strict=True),
    Tool(name="now_2.a", parameters=NOW, strict=True),
    Tool(name="ping", parameters=None, strict=True),
    Tool(name="loose", parameters=LOOSE),
)
SCHEMAS = {tool.name: tool.parameters or {"maxProperties": 0} for tool in TOOLS_OFFERED}
WALKS, STEPS = 12, 700
ALPHABET = [*b"abcw019-.<>/{}[]()'\\,:=| \n", *b'""""""}}]]', *"é".encode()]
"""strings and brackets should end some time"""


@dataclass(frozen=True)
class Model:
    """A vocabulary of bytes, with the markers of a format as special tokens or not."""

    parsers: Parsers
    vocabulary: Vocabulary
    engine: LLGuidance
    compiler: Compiler
    markers: Mapping[int, str]

    def matcher(self, constraint: Constraint) -> LLGuidanceMatcher:
        matcher = self.engine.matcher(self.compiler.compile(constraint).source)
        assert isinstance(matcher, LLGuidanceMatcher)
        return matcher

    def tokens(self, text: str) -> list[int]:
        return self.vocabulary.encode(text)

    def shown(self, tokens: list[int]) -> str:
        """As the server gives them to a parser."""
        pieces = [
            self.parsers.shown[t].encode() if t in self.parsers.shown else self.vocabulary.pieces[t]
            for t in tokens
            if t != EOS
        ]
        return b"".join(pieces).decode("utf-8", "replace")


@cache
def model(name: str, special: bool) -> Model:
    form = TOOLS[name]
    names = tuple(dict.fromkeys(form.markers)) if special else ()
    tokenizer = byte_tokenizer(special=names)
    markers = {TURN + 1 + i: text for i, text in enumerate(names)}
    vocabulary = vocabulary_of(tokenizer, TURN + 1 + len(names))
    return Model(
        choose(name, "gpt-oss" if name == "gpt-oss" else "none", "", markers),
        vocabulary,
        LLGuidance(vocabulary),
        Compiler(vocabulary, Choices("llguidance")),
        markers,
    )


def demanded(
    model: Model, tools: tuple[Tool, ...] = TOOLS_OFFERED, mode: Any = "auto", many: bool = True
) -> Constraint:
    choice = ToolChoice(mode)
    form, constraint = demand(
        model.parsers, tools, choice, many=many, in_reasoning=False, constrained=False
    )
    assert constraint is not None and form is not None
    return constraint


def closers(name: str) -> list[str]:
    """Texts by which a walk gets on, where they are allowed."""
    writing = TOOLS[name].writing
    assert writing is not None
    texts = [*TOOLS[name].markers, *writing.triggers, *(end for _, end in writing.calls)]
    texts += [writing.text, *(end for _, end in writing.blocks)]
    for section in writing.sections:
        texts += [section.begin, section.between, section.end]
    pairs = writing.pairs
    if pairs is not None:
        texts += [pairs.after, pairs.never, pairs.between, *(pairs.text or ())]
        texts += [end + pairs.after for end in (pairs.text or [""])[1:]]
    return [text for text in dict.fromkeys(texts) if text]


def walk(rng: random.Random, model: Model, matcher: LLGuidanceMatcher, name: str) -> list[int]:
    """Tokens that the grammar allows; ends with EOS if it came to an end in time."""
    done: list[int] = []
    mask = np.zeros((1, model.vocabulary.words), np.int32)
    jumps = [model.tokens(text) for text in closers(name)]
    while len(done) < STEPS:
        forced = matcher.forced() if rng.random() < 0.5 else []
        if not forced and rng.random() < (0.3 if done else 0.8):
            jump = rng.choice(jumps)
            if matcher.inner.validate_tokens(jump) == len(jump):
                forced = jump
        if not forced:
            model.engine.fill([(matcher, 0)], mask)
            bits = np.unpackbits(mask[0].view(np.uint8), bitorder="little")
            allowed = {int(token) for token in np.flatnonzero(bits[: len(model.vocabulary.pieces)])}
            assert allowed, model.shown(done)
            if EOS in allowed and len(done) > 9 and (rng.random() < 0.1 or len(done) > STEPS // 2):
                return [*done, EOS]
            likely = [t for t in ALPHABET if t in allowed]
            marks = sorted(allowed & model.markers.keys())
            pool = marks if marks and rng.random() < 0.3 else likely or sorted(allowed - {EOS})
            forced = [rng.choice(pool)] if pool else [EOS]
        if EOS in forced:
            return [*done, EOS]
        matcher.accept(forced)
        done += forced
    return done


def calls_of(model: Model, tokens: list[int]) -> list[Call]:
    form = model.parsers.forced()
    make = model.parsers.parser(form, in_reasoning=False, separate=True, schemas=SCHEMAS)
    parser, parsed = make(), Parsed()
    parsed.add(parser.push(model.shown(tokens)))
    parsed.add(parser.flush())
    return parsed.calls


VOCABULARIES = [(name, special) for name in TOOLS for special in (False, True)]
VOCABULARIES.remove(("gpt-oss", False))  # which is refused


@pytest.mark.parametrize("mode", ["auto", "required"])
@pytest.mark.parametrize(("name", "special"), VOCABULARIES)
def test_whatever_is_sampled_is_a_call(name: str, special: bool, mode: str) -> None:
    rng = random.Random(f"{name} {special} {mode}")
    this = model(name, special)
    finished = made = 0
    for number in range(WALKS):
        tools = TOOLS_OFFERED if number % 3 else TOOLS_OFFERED[:1]
        matcher = this.matcher(demanded(this, tools, mode, many=number % 2 == 0))
        tokens = walk(rng, this, matcher, name)
        if tokens[-1] != EOS:
            continue
        finished += 1
        calls = calls_of(this, tokens)
        made += len(calls)
        text = this.shown(tokens)
        assert calls or mode == "auto", text
        assert number % 2 == 0 or len(calls) <= 1, text
        for call in calls:
            assert call.name in {tool.name for tool in tools}, text
            arguments = json.loads(call.arguments)
            strict = call.name != "loose" or mode == "required"
            schema = SCHEMAS[call.name] if strict else {"type": "object"}
            jsonschema_rs.validate(schema, arguments)
    assert finished > WALKS // 3 and made > WALKS // 4, (finished, made)


def refused(name: str, parameters: dict[str, Any], special: bool = True) -> RequestError:
    this = model(name, special)
    tools = (Tool(name="f", parameters=parameters, strict=True),)
    with pytest.raises(RequestError) as caught:
        this.matcher(demanded(this, tools))
    return caught.value


IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "keyword 'anyOf' of its parameters": {"anyOf": [{"required": ["a"]}]},
    "keyword '$ref' of its parameters": {"$ref": "#/$defs/a", "$defs": {"a": {}}},
    "parameters that are no object": {"type": "array"},
    "the $ref '#'": {"properties": {"a": {"type": "array", "items": {"$ref": "#"}}}},
    "an argument named 'a b'": {"properties": {"a b": {"type": "integer"}}},
    "an argument named 'a>'": {"properties": {"a>": {"type": "string"}}},
    "format 'date' of the text 'a'": {"properties": {"a": {"type": "string", "format": "date"}}},
    "keyword 'not' of the text 'a'": {"properties": {"a": {"type": "string", "not": {}}}},
    "the pattern of the text 'a'": {"properties": {"a": {"type": "string", "pattern": "^a|b$"}}},
    "the values of 'a'": {"properties": {"a": {"enum": ["</parameter>"]}}},
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_cannot_be_written_argument_by_argument(what: str) -> None:
    error = refused("qwen3-coder", {"type": "object", **IMPOSSIBLE[what]})
    assert what in error.message and error.code == "unsupported_schema"
    assert "arguments are written one by one" in error.message


def test_channels_need_markers_of_their_own() -> None:
    error = refused("gpt-oss", NOW, special=False)
    assert error.param == "tools" and "no special tokens" in error.message


def test_a_bare_call_behind_reasoning() -> None:
    parsers = choose("llama3", "think", "")
    tools = [Tool(name="f", parameters=NOW, strict=True)]
    with pytest.raises(RequestError, match="behind reasoning") as caught:
        demand(parsers, tools, ToolChoice(), many=True, in_reasoning=False, constrained=False)
    assert caught.value.param == "tools"


@pytest.mark.parametrize("text", ["Hi. ", " \n", "a [b] {c} < "])
@pytest.mark.parametrize("name", ["llama3", "pythonic", "mistral", "hermes", "kimi-k2"])
def test_an_answer_may_be_text(name: str, text: str) -> None:
    this = model(name, True)
    matcher = this.matcher(demanded(this))
    matcher.accept(this.tokens(text))
    assert matcher.may_end


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_reasoning_between_special_tokens(mode: Any) -> None:
    markers = {TURN + 1: "[THINK]", TURN + 2: "[/THINK]", TURN + 3: "[TOOL_CALLS]"}
    tokenizer = byte_tokenizer(special=tuple(markers.values()))
    vocabulary = vocabulary_of(tokenizer, TURN + 4)
    parsers = choose("mistral", "mistral", "", markers)
    tool = Tool(name="f", parameters=NOW, strict=True)
    _, constraint = demand(
        parsers, [tool], ToolChoice(mode), many=True, in_reasoning=False, constrained=False
    )
    assert constraint is not None
    grammar = Compiler(vocabulary, Choices("llguidance")).compile(constraint)
    for text in ("[THINK]Hm.[/THINK][TOOL_CALLS]f[ARGS]{}", "[TOOL_CALLS]f[ARGS]{}"):
        matcher = LLGuidance(vocabulary).matcher(grammar.source)
        matcher.accept(vocabulary.encode(text))
        assert matcher.may_end, text


@pytest.mark.parametrize(("name", "text"), [("llama3", '{"age": 3'), ("pythonic", " [1, 2")])
def test_what_begins_like_a_call_must_be_one(name: str, text: str) -> None:
    this = model(name, True)
    matcher = this.matcher(demanded(this))
    tokens = this.tokens(text)
    assert matcher.inner.validate_tokens(tokens) < len(tokens)
