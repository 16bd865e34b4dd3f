"""What every grammar engine must do, with a vocabulary of bytes and with a real one."""

import json
import random
from typing import Any

import numpy as np
import pytest

from inferplane.checkpoint.source import ModelSource
from inferplane.errors import RequestError
from inferplane.grammar.compile import Choices, Compiler
from inferplane.grammar.contract import Engine, GrammarError, Matcher, Vocabulary
from inferplane.grammar.engines import open_engine
from inferplane.grammar.vocabulary import vocabulary_of
from inferplane.sampling_params import (
    Constraint,
    Tag,
    json_object_constraint,
    json_schema_constraint,
    structural_tag_constraint,
)
from tests.core.server.byte_model import VOCAB_SIZE, byte_tokenizer

ENGINES = ("llguidance", "xgrammar")
SCHEMA = {
    "type": "object",
    "properties": {
        "name_of_the_customer": {"enum": ["red", "green"]},
        "n": {"type": "integer"},
        "flag": {"type": "boolean"},
    },
    "required": ["name_of_the_customer", "n", "flag"],
    "additionalProperties": False,
}
TEXT = '{"name_of_the_customer":"red","n":12,"flag":true}'
TOOL = {
    "type": "object",
    "properties": {"x": {"type": "integer"}},
    "required": ["x"],
    "additionalProperties": False,
}
TAGS = structural_tag_constraint([Tag("<tool>", TOOL, "</tool>")], ["<tool>"])
TAG = structural_tag_constraint(
    [Tag("<f=a>", TOOL, "</f>"), Tag("<f=b>", True, "</f>")], ["<f="], required=True, many=False
)


class Bench:
    """One engine, one vocabulary."""

    def __init__(self, name: str, vocabulary: Vocabulary) -> None:
        if name == "xgrammar":
            pytest.importorskip("xgrammar", reason="the extra xgrammar is not installed")
        self.name = name
        self.vocabulary = vocabulary
        self.compiler = Compiler(vocabulary, Choices(name))
        self.engine: Engine = open_engine(name, vocabulary)

    def start(self, constraint: Constraint) -> Matcher:
        return self.engine.matcher(self.compiler.compile(constraint).source)

    def accepts(self, constraint: Constraint, text: str) -> bool:
        matcher = self.start(constraint)
        try:
            matcher.accept(self.vocabulary.encode(text))
        except GrammarError:
            assert matcher.error
            return False
        return matcher.may_end

    def allowed(self, matcher: Matcher) -> set[int]:
        mask = np.full((3, self.vocabulary.words), -1, np.int32)
        self.engine.fill([(matcher, 1)], mask)
        assert (mask[0] == -1).all() and (mask[2] == -1).all()
        bits = np.unpackbits(mask[1].view(np.uint8), bitorder="little")
        return {int(i) for i in np.flatnonzero(bits[: len(self.vocabulary.pieces)])}


@pytest.fixture(
    scope="module", params=[(e, v) for e in ENGINES for v in ("bytes", "demo")], ids=str
)
def bench(request: pytest.FixtureRequest, demo_model: ModelSource) -> Bench:
    name, kind = request.param
    if kind == "bytes":
        return Bench(name, vocabulary_of(byte_tokenizer(), VOCAB_SIZE))
    tokenizer = demo_model.tokenizer()
    return Bench(name, vocabulary_of(tokenizer, tokenizer.vocab_size + 8))


LANGUAGES: list[tuple[Constraint, list[str], list[str]]] = [
    (json_schema_constraint(SCHEMA), [TEXT], [TEXT[:-1], "{}", '{"n":1}', TEXT + " "]),
    (json_object_constraint(), ["{}", '{"a":{"b":null}}'], ["[]", "1", "{", '{"a" : 1}']),
    (Constraint("regex", "^a[0-9]+$"), ["a1", "a123"], ["a", "b1", "a1b", "xa1"]),
    (Constraint("regex", r"a\$|[^a]/"), ["a$", "b/"], ["a", "a/"]),
    (
        Constraint("ebnf", 'root ::= "yes" | "no" rest\nrest ::= [ x]*'),
        ["yes", "no", "no x x"],
        ["maybe", "yesx"],
    ),
    (Constraint("ebnf", 'root ::= "(" root ")" | "x"'), ["x", "((x))"], ["((x)", "()"]),
    (
        TAGS,
        ["hello", 'a <tool>{"x":1}</tool>', '<tool>{"x":1}</tool> and <tool>{"x":2}</tool>'],
        ["a <tool>", "a <tool> b", '<tool>{"x":"y"}</tool>', '<tool>{"x":1}'],
    ),
    (TAG, ['<f=a>{"x":1}</f>', "<f=b>[1]</f>"], ["hello", '<f=a>{"x":1}</f> x', "<f=c>1</f>"]),
]


@pytest.mark.parametrize(("constraint", "good", "bad"), LANGUAGES)
def test_language(bench: Bench, constraint: Constraint, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not bench.accepts(constraint, text)] == []
    assert [text for text in bad if bench.accepts(constraint, text)] == []


@pytest.mark.parametrize("constraint", [case[0] for case in LANGUAGES])
def test_a_random_walk_along_the_mask(bench: Bench, constraint: Constraint) -> None:
    """Every token of the mask can be accepted, none outside it can; rolling back leads to the same
    mask; forced tokens are in it; ends are allowed exactly where the output may end."""
    choose = random.Random(0)
    matcher = bench.start(constraint)
    ends, walked = bench.vocabulary.ends, list[int]()
    for step in range(30):
        allowed = bench.allowed(matcher)
        assert not matcher.error
        assert bool(allowed & ends) == matcher.may_end
        inside, outside = sorted(allowed - ends), set(range(VOCAB_SIZE - 3)) - allowed
        forced = matcher.forced()
        if forced:
            # xgrammar's mask lacks some tokens of recursive rules, which it accepts
            assert forced[0] in allowed or bench.name == "xgrammar"
            matcher.accept(forced)
            matcher.rollback(len(forced))
            assert bench.allowed(matcher) == allowed
        assert matcher.done == (not inside)
        if matcher.done:
            break
        token = choose.choice(inside)
        matcher.accept([token])
        matcher.rollback(1)
        assert bench.allowed(matcher) == allowed
        if outside and step % 5 == 0:
            lost = bench.start(constraint)
            lost.accept(walked)
            with pytest.raises(GrammarError):
                lost.accept([choose.choice(sorted(outside))])
        walked.append(token)
        matcher.accept([token])


def test_forced_text(bench: Bench) -> None:
    matcher = bench.start(json_schema_constraint(SCHEMA))
    pieces, sampled, forced = bench.vocabulary.pieces, 0, 0
    rest = TEXT.encode()
    while rest:
        jump = matcher.forced()
        token = jump or next([t] for t in bench.vocabulary.encode(rest.decode()))
        matcher.accept(token)
        forced, sampled = forced + len(jump), sampled + (not jump)
        taken = b"".join(pieces[t] for t in token)
        assert rest.startswith(taken)
        rest = rest[len(taken) :]
    assert matcher.done
    assert forced > 2 * sampled


VALUES: dict[str, list[Any]] = {
    "string": ["", "a", "the", " x", "\u00e9", "-", "://", "1", "name", "]"],
    "integer": [0, 7, -3, 12345],
    "boolean": [True, False],
    "array": [[], [1], ["a"], [[]]],
}


@pytest.mark.parametrize("kind", VALUES)
def test_forced_text_is_tokenized_as_the_whole_text_is(bench: Bench, kind: str) -> None:
    """Whatever follows: the forced tokens are the first ones of every text that the grammar has."""
    schema = {
        "type": "object",
        "properties": {"a long key": {"type": kind}},
        "required": ["a long key"],
        "additionalProperties": False,
    }
    forced = bench.start(json_schema_constraint(schema)).forced()
    for value in VALUES[kind]:
        text = json.dumps({"a long key": value}, separators=(",", ":"), ensure_ascii=False)
        assert bench.vocabulary.encode(text)[: len(forced)] == forced


@pytest.mark.parametrize("kind", ["bytes", "demo"])
def test_a_constraint_that_begins_behind_a_text(kind: str, demo_model: ModelSource) -> None:
    tokenizer = byte_tokenizer() if kind == "bytes" else demo_model.tokenizer()
    bench = Bench("llguidance", vocabulary_of(tokenizer, tokenizer.vocab_size))
    special = "<turn>" if kind == "bytes" else "<|im_start|>"
    for after in ("</think>", special):
        constraint = Constraint("json_schema", json.dumps(TOOL), after=after)
        good = ["{} hm." + after + '{"x":1}', after + '{"x":-5}']
        bad = ['{"x":1}', "hm", "hm" + after, after + "x", after + '{"x":1}' + after]
        assert [text for text in good if not bench.accepts(constraint, text)] == []
        assert [text for text in bad if bench.accepts(constraint, text)] == []


def test_white_space_is_bounded() -> None:
    vocabulary = vocabulary_of(byte_tokenizer(), VOCAB_SIZE)
    compiler = Compiler(vocabulary, Choices(whitespace="flexible"))
    engine = open_engine("llguidance", vocabulary)
    matcher = engine.matcher(compiler.compile(json_schema_constraint(TOOL)).source)
    matcher.accept(b"{" + b" " * 16)
    with pytest.raises(GrammarError):
        matcher.accept(b" ")
    spaced = engine.matcher(compiler.compile(json_schema_constraint(TOOL)).source)
    spaced.accept(b'{\n  "x": 1\n}')
    assert spaced.may_end


REFUSED: list[tuple[Constraint, str, str]] = [
    (json_schema_constraint({"uniqueItems": True}), "unsupported_schema", "/uniqueItems"),
    (
        json_schema_constraint({"properties": {"a/b": {"items": {"pattern": "a(?=b)"}}}}),
        "unsupported_schema",
        "'pattern' at /properties/a~1b/items/pattern",
    ),
    (json_schema_constraint({"$ref": "http://example.org/x"}), "unsupported_schema", "/$ref"),
    (json_schema_constraint(False), "unsatisfiable_schema", "nothing"),
    (
        json_schema_constraint(
            {
                "properties": {
                    "a": {"type": "object", "required": ["b"], "properties": {"b": False}}
                },
                "required": ["a"],
                "type": "object",
            }
        ),
        "unsatisfiable_schema",
        "nothing",
    ),
    (Constraint("json_schema", "{"), "invalid_grammar", "JSON"),
    (Constraint("json_schema", "[]"), "invalid_grammar", "object"),
    (Constraint("regex", "a(?=b)"), "invalid_grammar", "regex"),
    (Constraint("ebnf", "root ::= ("), "invalid_grammar", "ebnf"),
    (Constraint("structural_tag", "{}"), "invalid_grammar", "structures"),
]


@pytest.mark.parametrize(("constraint", "code", "words"), REFUSED)
def test_a_refusal_says_why(constraint: Constraint, code: str, words: str) -> None:
    compiler = Compiler(vocabulary_of(byte_tokenizer(), VOCAB_SIZE), Choices("llguidance"))
    with pytest.raises(RequestError) as caught:
        compiler.compile(constraint)
    assert (caught.value.status, caught.value.code) == (400, code)
    assert caught.value.param == constraint.kind
    assert words in caught.value.message
    assert caught.value.message.startswith(constraint.kind)


def test_what_xgrammar_does_not_enforce_is_refused() -> None:
    pytest.importorskip("xgrammar", reason="the extra xgrammar is not installed")
    compiler = Compiler(vocabulary_of(byte_tokenizer(), VOCAB_SIZE), Choices("xgrammar"))
    schemas: list[dict[str, Any]] = [
        {"minLength": 2},
        {"type": "number", "minimum": 3},
        {"type": "string", "pattern": "a"},
        {"type": "object", "properties": {'a"b': {}}},
        {"type": "object", "required": ["a"]},
        {"anyOf": [{"type": "string"}], "type": "string", "minLength": 1},
    ]
    for schema in schemas:
        with pytest.raises(RequestError, match=r"xgrammar|unknown property"):
            compiler.compile(json_schema_constraint(schema))
