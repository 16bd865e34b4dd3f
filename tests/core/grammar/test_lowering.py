"""Schemas are rewritten without changing what they allow."""

import json
from typing import Any

import pytest

from inferplane.errors import RequestError
from inferplane.grammar.compile import Choices, Compiler
from inferplane.grammar.contract import GrammarError
from inferplane.grammar.engines import open_engine
from inferplane.grammar.schema.document import Document, Unsupported
from inferplane.grammar.schema.lower import lower
from inferplane.grammar.schema.shapes import Shapes
from inferplane.grammar.vocabulary import vocabulary_of
from inferplane.sampling_params import json_schema_constraint
from tests.core.server.byte_model import VOCAB_SIZE, byte_tokenizer

VOCABULARY = vocabulary_of(byte_tokenizer(), VOCAB_SIZE)
COMPILER = Compiler(VOCABULARY, Choices("llguidance"))
ENGINE = open_engine("llguidance", VOCABULARY)


def accepts(source: str, value: Any) -> bool:
    matcher = ENGINE.matcher(source)
    try:
        matcher.accept(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
    except GrammarError:
        return False
    return matcher.may_end


def dependent(**needs: Any) -> dict[str, Any]:
    names: dict[str, Any] = {"a": {}, "b": {}, "c": {}}
    return {"type": "object", "properties": names, **needs}


CASES: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "not const": ({"type": "string", "not": {"const": "ab"}}, ["", "a", "abc", "b"], ["ab"]),
    "not enum": (
        {"type": ["string", "integer", "boolean"], "not": {"enum": ["x", 3, 5, True]}},
        ["y", "xx", 2, 4, 6, False],
        ["x", 3, 5, True],
    ),
    "not type": ({"not": {"type": ["string", "object"]}}, [1, None, [1], True], ["a", {"a": 1}]),
    "not required": (
        {"type": "object", "properties": {"a": {}, "b": {}}, "not": {"required": ["a"]}},
        [{}, {"b": 1}, {"c": 1}],
        [{"a": 1}, {"a": 1, "b": 2}],
    ),
    "not properties": (
        {"type": "object", "not": {"properties": {"a": {"type": "string"}}}},
        [{"a": 1}],
        [{}, {"a": "x"}],
    ),
    "not number": ({"type": "number", "not": {"minimum": 3}}, [2, 2.5, -9], [3, 4]),
    "not any of": (
        {
            "type": ["string", "null", "number"],
            "not": {"anyOf": [{"type": "null"}, {"const": "x"}]},
        },
        ["y", "", 1],
        [None, "x"],
    ),
    "not not": ({"not": {"not": {"type": "integer"}}}, [1], ["a", None]),
    "one of, apart": (
        {"oneOf": [{"type": "string", "maxLength": 2}, {"type": "integer"}]},
        ["ab", 3],
        ["abc", 2.5, None],
    ),
    "one of, told apart by a property": (
        {
            "type": "object",
            "oneOf": [
                {"properties": {"t": {"const": "a"}, "x": {"type": "integer"}}, "required": ["t"]},
                {"properties": {"t": {"const": "b"}, "y": {"type": "string"}}, "required": ["t"]},
            ],
        },
        [{"t": "a", "x": 1}, {"t": "b", "y": "z"}],
        [{"t": "c"}, {"x": 1}, {"t": "a", "x": "z"}],
    ),
    "one of, overlapping": (
        {"type": "integer", "oneOf": [{"minimum": 5}, {"maximum": 9}]},
        [4, 10],
        [5, 7, 9],
    ),
    "if then else": (
        {
            "type": "object",
            "properties": {"kind": {"enum": ["a", "b"]}, "n": {}},
            "required": ["kind", "n"],
            "if": {"properties": {"kind": {"const": "a"}}},
            "then": {"properties": {"n": {"type": "integer"}}},
            "else": {"properties": {"n": {"type": "string"}}},
        },
        [{"kind": "a", "n": 1}, {"kind": "b", "n": "x"}],
        [{"kind": "a", "n": "x"}, {"kind": "b", "n": 1}],
    ),
    "dependent required": (
        dependent(dependentRequired={"a": ["b"]}),
        [{}, {"b": 1}, {"a": 1, "b": 2}, {"c": 1}],
        [{"a": 1}, {"a": 1, "c": 1}],
    ),
    "dependencies": (
        dependent(dependencies={"a": ["b"], "c": {"properties": {"b": {"type": "null"}}}}),
        [{"a": 1, "b": 1}, {"b": None, "c": 1}, {"c": 1}],
        [{"a": 1}, {"b": 2, "c": 1}],
    ),
    "at least one property": (
        {"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1},
        [{"a": 1}, {"b": 1}, {"z": 1}],
        [{}],
    ),
    "property names": (
        {"type": "object", "propertyNames": {"enum": ["a", "b"]}},
        [{}, {"a": 1}, {"a": 1, "b": 2}],
        [{"c": 1}],
    ),
    "property names that are texts": (
        {"type": "object", "propertyNames": {"type": "string"}, "maxProperties": 1},
        [{}, {"c": 1}],
        [{"a": 1, "b": 2}],
    ),
    "property names by pattern": (
        {
            "type": "object",
            "propertyNames": {"pattern": "^x"},
            "additionalProperties": {"type": "null"},
        },
        [{}, {"x1": None}],
        [{"y": None}, {"x": 1}],
    ),
    "arrays as items": (
        {"items": [{"type": "integer"}], "additionalItems": {"type": "string"}, "type": "array"},
        [[1], [1, "a"], []],
        [["a"], [1, 2]],
    ),
    "references to anywhere": (
        {
            "type": "object",
            "properties": {
                "a": {"oneOf": [{"type": "null"}, {"$ref": "#/$defs/x/not"}]},
                "b": {"$ref": "#/properties/a/oneOf/0"},
            },
            "$defs": {"x": {"not": {"type": "integer"}}},
        },
        [{"a": None}, {"a": 3, "b": None}],
        [{"a": "x"}, {"b": 1}],
    ),
    "anchors": (
        {"$defs": {"x": {"$anchor": "n", "type": "integer"}}, "items": {"$ref": "#n"}},
        [[1, 2]],
        [["a"]],
    ),
    "counts as floats": ({"type": "string", "maxLength": 2.0}, ["ab"], ["abc"]),
    "remarks": (
        {"type": "string", "format": "my-own", "title": "x", "default": 3, "x-y": {"not": {}}},
        ["anything"],
        [3],
    ),
    "items that are unique anyway": (
        {"type": "array", "uniqueItems": True, "maxItems": 1},
        [[1]],
        [[1, 1]],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_meaning(name: str) -> None:
    schema, good, bad = CASES[name]
    source = COMPILER.compile(json_schema_constraint(schema)).source
    assert [value for value in good if not accepts(source, value)] == []
    assert [value for value in bad if accepts(source, value)] == []


REFUSED: list[tuple[Any, str, str]] = [
    ({"uniqueItems": True}, "uniqueItems", "/uniqueItems"),
    ({"properties": {"a": {"contains": {}}}}, "contains", "/properties/a/contains"),
    ({"items": [{"format": "regex"}]}, "format", "/items/0/format"),
    ({"unevaluatedProperties": False, "allOf": [{}]}, "unevaluatedProperties", ""),
    ({"not": {"pattern": "a"}}, "pattern", "/not/pattern"),
    ({"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}, "pattern", "/oneOf/1/pattern"),
    ({"$ref": "other.json"}, "$ref", "/$ref"),
    ({"$ref": "#/missing"}, "$ref", "/$ref"),
    ({"properties": {"a": {"$ref": "#/x", "$id": "y"}}}, "$ref", "/properties/a/$ref"),
    ({"properties": 3}, "properties", "/properties"),
    ({"anyOf": []}, "anyOf", "/anyOf"),
    ({"minItems": 1.5}, "minItems", "/minItems"),
    ({"allOf": [3]}, "0", "/allOf/0"),
    ({"propertyNames": {"type": "integer"}}, "propertyNames", "/propertyNames"),
    ({"propertyNames": {"maxLength": 3}}, "propertyNames", "/propertyNames"),
    ({"additionalProperties": {"$dynamicRef": "#x"}}, "$dynamicRef", "/additionalProperties"),
]


@pytest.mark.parametrize(("schema", "keyword", "pointer"), REFUSED)
def test_refusals_name_keyword_and_pointer(schema: Any, keyword: str, pointer: str) -> None:
    with pytest.raises(Unsupported) as caught:
        lower(schema)
    assert caught.value.keyword == keyword
    assert caught.value.pointer.startswith(pointer)
    assert caught.value.param == "json_schema"


def test_unused_definitions_are_not_looked_at() -> None:
    lowered = lower({"$defs": {"a": {"uniqueItems": True}}, "type": "string"})
    assert "$defs" not in lowered and lowered["type"] == "string"


def test_depth_is_bounded() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100):
        schema = {"items": schema}
    with pytest.raises(RequestError, match="levels deep"):
        lower(schema)


APART: list[tuple[Any, Any]] = [
    ({"type": "string"}, {"type": "integer"}),
    ({"const": 1}, {"const": 2}),
    ({"enum": [1, "a"]}, {"enum": [True, "b"]}),
    ({"const": "abc"}, {"type": "string", "maxLength": 2}),
    ({"type": "integer", "maximum": 3}, {"type": "number", "exclusiveMinimum": 3}),
    (
        {"type": "object", "required": ["a"]},
        {"type": "object", "properties": {"b": {}}, "additionalProperties": False},
    ),
    ({"anyOf": [{"type": "null"}, {"const": 3}]}, {"type": "number", "minimum": 4}),
]
TOGETHER: list[tuple[Any, Any]] = [
    ({}, {"type": "string"}),
    ({"const": 1}, {"const": 1.0}),
    ({"type": "integer"}, {"type": "number"}),
    ({"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 3}),
    ({"properties": {"a": {"const": 1}}}, {"properties": {"a": {"const": 2}}}),
    ({"required": ["a"]}, {"required": ["b"]}),
    ({"maxLength": 1}, {"minLength": 5}),  # both allow numbers
    ({"type": "string", "pattern": "a"}, {"type": "string", "pattern": "b"}),
]


@pytest.mark.parametrize(
    ("a", "b", "apart"), [(*p, True) for p in APART] + [(*p, False) for p in TOGETHER]
)
def test_disjoint(a: Any, b: Any, apart: bool) -> None:
    shapes = Shapes(Document(True))
    assert shapes.disjoint(a, b) == shapes.disjoint(b, a) == apart
