"""The fields that say what the output must be: OpenAI's, vLLM's and SGLang's."""

import json
from typing import Any

import msgspec

from inferplane.errors import RequestError
from inferplane.grammar.schema.negate import escape
from inferplane.sampling_params import Constraint, json_object_constraint, json_schema_constraint
from inferplane.server.body import Schema

FIELDS = (
    "response_format",
    "json_schema",
    "regex",
    "ebnf",
    "structural_tag",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
)
"""on /v1/chat/completions and /v1/completions"""
MAX_CHOICES = 1024


class ConstraintFields(Schema):
    """At most one of them may be set; `constrain_after` is the text behind which it holds."""

    response_format: Any = None
    json_schema: Any = None
    regex: Any = None
    ebnf: Any = None
    structural_tag: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    constrain_after: str | None = None

    def constraint(self) -> tuple[Constraint, str] | None:
        """The constraint and the field that it comes from. RequestError if it has no sense."""
        given = [name for name in FIELDS if getattr(self, name) is not None]
        found = [(constraint, name) for name in given if (constraint := self._of(name))]
        if len(found) > 1:
            first, second = found[0][1], found[1][1]
            raise RequestError(
                f"{first} and {second} exclude each other: send one of them",
                param=second,
                code="invalid_value",
            )
        if not found and self.constrain_after:
            raise RequestError(
                "constrain_after needs a constraint that it puts off",
                param="constrain_after",
                code="invalid_value",
            )
        if not found:
            return None
        (constraint, name), after = found[0], self.constrain_after or ""
        return msgspec.structs.replace(constraint, after=after), name

    def _of(self, name: str) -> Constraint | None:
        value = getattr(self, name)
        match name:
            case "response_format":
                return of_response_format(value)
            case "json_schema" | "guided_json":
                return of_schema(value, name)
            case "regex" | "guided_regex":
                return Constraint("regex", text_of(value, name))
            case "ebnf" | "guided_grammar":
                return Constraint("ebnf", text_of(value, name))
            case "structural_tag":
                return of_structural_tag(value, name)
            case _:
                return of_choices(value, name)


def of_response_format(value: Any) -> Constraint | None:
    kind = value.get("type") if isinstance(value, dict) else None
    match kind:
        case "text":
            return None
        case "json_object":
            return json_object_constraint()
        case "json_schema":
            inner = value.get("json_schema")
            if not isinstance(inner, dict):
                raise _wrong("response_format.json_schema", "must be an object")
            if inner.get("schema") is None:
                return json_object_constraint()
            return of_schema(inner["schema"], "response_format.json_schema.schema")
        case "structural_tag":
            return of_structural_tag(value, "response_format")
    raise _wrong(
        "response_format",
        "must be an object whose type is text, json_object, json_schema or structural_tag",
    )


def of_schema(value: Any, name: str) -> Constraint:
    """A schema, or its JSON text."""
    if isinstance(value, str):
        return Constraint("json_schema", value)
    if not isinstance(value, dict | bool):
        raise _wrong(name, "must be a JSON schema")
    return json_schema_constraint(value)


def of_structural_tag(value: Any, name: str) -> Constraint:
    if isinstance(value, dict):
        return Constraint("structural_tag", json.dumps(value, ensure_ascii=False))
    return Constraint("structural_tag", text_of(value, name))


def of_choices(value: Any, name: str) -> Constraint:
    """One of these texts."""
    texts = isinstance(value, list) and all(isinstance(text, str) and text for text in value)
    if not texts or not 0 < len(value) <= MAX_CHOICES:
        raise _wrong(name, f"must be a list of 1 to {MAX_CHOICES} texts")
    return Constraint("regex", "|".join(f"(?:{escape(text)})" for text in value))


def text_of(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _wrong(name, "must be a text")
    return value


def _wrong(name: str, why: str) -> RequestError:
    return RequestError(f"{name} {why}", param=name, code="invalid_type")
