"""Bad requests made from the schemas of all endpoints: each field with values of every wrong type,
out of every range, unknown fields, refused fields; and by hand for the fields that schemas leave
open."""

import json
from collections.abc import Iterator
from typing import Any

from inferplane.server.body import Schema
from inferplane.server.endpoint import Endpoint
from inferplane.server.endpoints import ENDPOINTS

MESSAGES = [{"role": "user", "content": "hi"}]
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/responses/input_tokens": {"input": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/rerank": {"query": "hi", "documents": ["a"]},
    "/v1/score": {"query": "hi", "items": ["a"], "label_token_ids": [1]},
    "/v1/messages": {"model": "tiny", "max_tokens": 5, "messages": MESSAGES},
    "/v1/messages/count_tokens": {"model": "tiny", "messages": MESSAGES},
    "/api/chat": {"model": "tiny", "messages": MESSAGES},
    "/api/generate": {"model": "tiny", "prompt": "hi"},
    "/api/show": {"model": "tiny"},
    "/generate": {"text": "hi"},
    "/abort_request": {"rid": "x"},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1]},
}
POSTS = [endpoint for endpoint in ENDPOINTS if endpoint.body is not None]

HUGE, DEEP = 2**70, {"a": {"b": {"c": [[[]]]}}}
WRONG: dict[str, list[Any]] = {
    "string": [1, 1.5, True, ["x"], {"x": "y"}, DEEP],
    "integer": ["1", 1.5, True, [1, 2], {"x": 1}, HUGE, -HUGE],
    "number": ["1.0", True, [1.5, 2], {"x": 1}],
    "boolean": ["true", 1, 0, 0.5, ["x"], {"x": True}],
    "array": [1.5, True, {"x": 1}, [DEEP], [[[]]], [None]],
    "object": ["x", 1, True, ["x"], [1]],
}
NAMES = [
    "x",
    "Temperature",
    "max-tokens",
    "__class__",
    "$ref",
    "naïve",
    "top_k ",
    "a.b",
    "a[0]",
    "",
]
TEXTS = [1, 1.5, True, {}, [], [1.5], [None], [[]], ["a", 1], [{}], [[["x"]]], ""]
OBJECTS: list[Any] = ["x", 1, True, {}, [], ["x"], [1], [None], [[]], [{}], [{"x": 1}], [DEEP]]
CHOICES: list[Any] = ["x", 1, True, [], {}, {"type": "x"}, {"type": 1}, {"x": 1}]

OPEN: dict[str, dict[str, list[Any]]] = {
    "/v1/chat/completions": {
        "messages": OBJECTS,
        "tools": [*OBJECTS[:3], *OBJECTS[5:]],
        "tool_choice": [*CHOICES, {"type": "function", "function": {"name": "none"}}],
        "functions": [*OBJECTS[:3], *OBJECTS[5:]],
        "function_call": CHOICES,
        "reasoning_effort": ["x", "", 1, True, [], {}],
        "chat_template_kwargs": [{"x": 1}, {"tools": []}, {"messages": []}, {"enable_thinking": 1}],
    },
    "/v1/completions": {"prompt": TEXTS},
    "/v1/responses": {
        "input": [*OBJECTS[1:], "x" * 5000],
        "tools": [*OBJECTS[:3], *OBJECTS[5:], [{"type": "web_search"}], [{"type": "function"}]],
        "tool_choice": [*CHOICES, {"type": "function", "name": "none"}],
        "include": [["x"], ["file_search_call.results"]],
    },
    "/v1/embeddings": {"input": TEXTS},
    "/v1/score": {"query": TEXTS[:-1], "items": TEXTS, "label_token_ids": [[1, 1], [-1], [259]]},
    "/v1/messages": {
        "messages": OBJECTS,
        "system": [1, True, {}, [], ["x"], [{}], [{"type": "image"}], [{"type": "text"}]],
        "tools": [*OBJECTS[:3], *OBJECTS[5:], [{"name": "x"}], [{"type": "bash_20250124"}]],
        "tool_choice": [
            *CHOICES,
            "auto",
            {"type": "any"},
            {"type": "tool"},
            {"type": "tool", "name": "x"},
        ],
        "max_tokens": [0, -1, 513, 2**31],
        "temperature": [-0.1, 1e9],
        "top_p": [0, -1, 1.1],
        "top_k": [-2, 2**31],
        "stop_sequences": [[""], ["x"] * 17, "x", ["y" * 1025]],
        "thinking": [
            {"type": "enabled"},
            {"type": "enabled", "budget_tokens": 2000},
            {"type": "x"},
        ],
    },
    "/v1/messages/count_tokens": {"messages": OBJECTS, "system": [1, True, {}, [], ["x"]]},
    "/api/chat": {
        "messages": [*OBJECTS[:4], *OBJECTS[5:]],
        "tools": [*OBJECTS[:3], *OBJECTS[5:]],
        "format": [1, True, [], "xml", "yaml"],
        "think": [1, 0, 0.5, "x", [], {}],
    },
    "/api/generate": {"format": [1, True, [], "xml"], "think": [1, 0, 0.5, "x", [], {}]},
    "/generate": {
        "text": [1, True, {}, [], [1.5], [None], ["a", 1], [{}], ""],
        "sampling_params": [1, "x", True, [], [{}, {}], [1]],
    },
    "/tokenize": {"prompt": TEXTS, "messages": [[], ["x"], [1], [{}], [[]]]},
    "/detokenize": {"tokens": ["x", 1, True, {}, ["x"], [1.5], [True], [-1], [259], [[1]]]},
}

Case = tuple[dict[str, Any], str]
"""(body, the field at fault)"""


def cases(endpoint: Endpoint) -> Iterator[Case]:
    """All bad bodies for an endpoint."""
    assert endpoint.body is not None
    good = GOOD[endpoint.path]
    for field, value in _values(endpoint.body):
        yield {**good, field: value}, field
    for field, values in OPEN.get(endpoint.path, {}).items():
        for value in values:
            body = {**good, field: value}
            if field == "messages" and endpoint.path == "/tokenize":
                del body["prompt"]
            yield body, field
    for name, value, path in _nested(endpoint.body):
        yield {**good, name: value}, path
    for field in endpoint.body.model_json_schema().get("required", ()):
        yield {key: value for key, value in good.items() if key != field}, field
        yield {**good, field: None}, field


def refused(endpoint: Endpoint) -> Iterator[Case]:
    """Known fields that are not supported."""
    assert endpoint.body is not None
    good = GOOD[endpoint.path]
    for field in endpoint.body.refused:
        name, _, inner = field.partition(".")
        for value in ("x", 1, {"a": 1}, ["x"]):
            yield {**good, name: {inner: value} if inner else value}, field
    for name, nested in endpoint.body.nested.items():
        for field in nested.refused:
            yield {**good, name: {field: "x"}}, f"{name}.{field}"


def _values(schema: type[Schema]) -> Iterator[tuple[str, Any]]:
    """(field, bad value) by what the schema says of its type, and unknown names."""
    described = schema.model_json_schema()
    for field, kind in described["properties"].items():
        if field not in schema.refused and field not in schema.nested:
            for value in _bad(kind, described.get("$defs", {})):
                yield field, value
    for name in NAMES:
        yield name, 1
        yield name, None


def _nested(schema: type[Schema]) -> Iterator[tuple[str, Any, str]]:
    """(field, value, the field inside at fault)"""
    for name, nested in schema.nested.items():
        for field, value in _values(nested):
            yield name, {field: value}, f"{name}.{field}"
    described = schema.model_json_schema()
    known = described.get("$defs", {})
    for name, kind in described["properties"].items():
        for option in kind.get("anyOf", [kind]):
            inner = known.get(option.get("$ref", "").rpartition("/")[2])
            if inner is None:
                continue
            base = {field: _example(inner, field) for field in inner.get("required", ())}
            for field, described_inner in inner["properties"].items():
                if f"{name}.{field}" not in schema.refused:
                    for value in _bad(described_inner, known):
                        yield name, {**base, field: value}, f"{name}.{field}"
            yield name, {**base, "zz": 1}, f"{name}.zz"


def _example(schema: dict[str, Any], field: str) -> Any:
    return schema["properties"][field].get("enum", ["x"])[0]


def _bad(kind: dict[str, Any], known: dict[str, Any]) -> list[Any]:
    """Values that fit none of the types that a schema allows; none if it allows anything."""
    options = kind.get("anyOf", [kind])
    types = {option.get("type", "object" if "$ref" in option else "") for option in options}
    types.discard("null")
    if types == {""}:
        return ["no such word", 1, {}] if any("enum" in option for option in options) else []
    found: list[Any] = []
    for name in types:
        found += [value for value in WRONG[name] if not _fits(value, types - {name}, options)]
    for option in options:
        found += _beyond(option)
    return found


def _beyond(option: dict[str, Any]) -> list[Any]:
    """Just outside of the limits."""
    found: list[Any] = []
    if "enum" in option or "const" in option:
        found.append("no such word")
    if "minimum" in option:
        found.append(option["minimum"] - 1)
    if "maximum" in option:
        found.append(option["maximum"] + 1)
    if "maxLength" in option:
        found.append("x" * (option["maxLength"] + 1))
    if option.get("minLength"):
        found.append("")
    if "maxItems" in option and option["items"].get("type") == "string":
        found.append(["x"] * (option["maxItems"] + 1))
    if option.get("minItems"):
        found.append([])
    if "maxProperties" in option:
        found.append({f"k{i}": "v" for i in range(option["maxProperties"] + 1)})
    return found


def _fits(value: Any, types: set[str], options: list[dict[str, Any]]) -> bool:
    """Whether another of the allowed types takes the value."""
    words = {bool: "boolean", int: "integer", float: "number", str: "string"}
    words |= {list: "array", dict: "object"}
    word = words[type(value)]
    if word in types or (word == "integer" and "number" in types):
        return True
    lists = [o["items"].get("type") for o in options if o.get("type") == "array"]
    return bool(lists) and word in lists and word != "array"


def body_of(case: Case) -> bytes:
    return json.dumps(case[0]).encode()
