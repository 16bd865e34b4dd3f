"""The schema that allows exactly what another one does not, one level at a time: the parts of the
result may hold `not` again.
"""

import string
from itertools import pairwise
from typing import Any

from inferplane.grammar.schema.document import Schema, Unsupported, child
from inferplane.grammar.schema.shapes import TYPES, listed_types, type_of

OPPOSITES = {
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
    "minProperties": ("object", "maxProperties", -1),
    "maxProperties": ("object", "minProperties", 1),
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
}
"""not `key`: a value of this type with this other keyword, its number moved by so much"""
MOST_VALUES = 256


ESCAPED = frozenset(string.punctuation) - {"<", ">"}
"""not those that mean the ends of a word where they are escaped"""


def negate(schema: Schema, at: str, types: set[str]) -> Schema:
    """`types` are those that values may have anyway ("integer" included as itself); `schema` has
    only keywords that constrain. Unsupported names the keyword that cannot be negated."""
    if isinstance(schema, bool):
        return not schema
    branches: list[Schema] = []
    for keyword, value in schema.items():
        branches += _negate_keyword(keyword, value, child(at, keyword), types)
    if len(branches) == 1:
        return branches[0]
    return {"anyOf": branches} if branches else False


def _negate_keyword(keyword: str, value: Any, at: str, types: set[str]) -> list[Schema]:
    if keyword in OPPOSITES:
        kind, opposite, step = OPPOSITES[keyword]
        kind = "integer" if kind == "number" and "number" not in types else kind
        if kind not in types or (step < 0 and value <= 0):
            return []
        return [{"type": kind, opposite: value + step}]
    match keyword:
        case "type":
            return _not_type(value, at, types)
        case "const":
            return _not_values([value], at, types)
        case "enum":
            return _not_values(value, at, types)
        case "required":
            absent = [{"type": "object", "properties": {name: False}} for name in value]
            return list(absent) if "object" in types else []
        case "properties":
            if "object" not in types:
                return []
            return [
                {"type": "object", "required": [name], "properties": {name: {"not": part}}}
                for name, part in value.items()
                if part is not True and part != {}
            ]
        case "allOf":
            return [{"not": part} for part in value]
        case "anyOf":
            return [{"allOf": [{"not": part} for part in value]}]
        case "not":
            return [value]
        case "additionalProperties" | "patternProperties" | "propertyNames" if (
            "object" not in types or value is True
        ):
            return []
        case "items" | "prefixItems" | "contains" | "uniqueItems" if "array" not in types:
            return []
        case "pattern" | "format" if "string" not in types:
            return []
        case "multipleOf" if not types & {"number", "integer"}:
            return []
        case "contains":
            return [{"type": "array", "items": {"not": value}}]
    raise Unsupported(keyword, at, "cannot be negated")


def _not_type(value: Any, at: str, types: set[str]) -> list[Schema]:
    named = set(value if isinstance(value, list) else [value])
    rest = types - named
    if "number" in named:
        rest -= {"integer"}
    elif "integer" in named and "number" in rest:
        raise Unsupported("type", at, "integer cannot be negated where numbers are allowed")
    return [{"type": sorted(rest)}] if rest else []


def _not_values(values: list[Any], at: str, types: set[str]) -> list[Schema]:
    if len(values) > MOST_VALUES:
        raise Unsupported("enum", at, f"has more than {MOST_VALUES} values to exclude")
    kinds = {type_of(value) for value in values}
    rest = types - kinds - ({"integer"} if "number" in kinds else set())
    branches: list[Schema] = [{"type": sorted(rest)}] if rest else []
    if "string" in kinds & types:
        excluded = {value for value in values if isinstance(value, str)}
        branches.append({"type": "string", "pattern": f"^(?:{complement(excluded)})$"})
    if "boolean" in kinds & types:
        left = [flag for flag in (True, False) if not any(flag is value for value in values)]
        branches += [{"const": flag} for flag in left]
    if "number" in kinds and types & {"number", "integer"}:
        numbers = sorted({v for v in values if type_of(v) == "number"})
        branches += _between(numbers, "number" if "number" in types else "integer")
    if kinds & types & {"object", "array"}:
        raise Unsupported("enum", at, "with objects or arrays cannot be negated")
    return branches


def _between(numbers: list[Any], kind: str) -> list[Schema]:
    """The numbers other than these."""
    branches: list[Schema] = [{"type": kind, "exclusiveMaximum": numbers[0]}]
    for low, high in pairwise(numbers):
        if kind == "number" or high - low > 1:
            branches.append({"type": kind, "exclusiveMinimum": low, "exclusiveMaximum": high})
    return [*branches, {"type": kind, "exclusiveMinimum": numbers[-1]}]


def complement(texts: set[str]) -> str:
    """A regular expression for every text but these."""
    first: dict[str, set[str]] = {}
    for text in texts:
        if text:
            first.setdefault(text[0], set()).add(text[1:])
    others = "".join(escape(char) for char in sorted(first))
    parts = [f"[^{others}](?s:.)*" if others else "(?s:.)+"]
    parts += [f"{escape(char)}(?:{complement(rest)})" for char, rest in sorted(first.items())]
    if "" not in texts:
        parts.append("")
    return "|".join(parts)


def escape(text: str) -> str:
    """A regular expression for this text, which may also stand in a character class."""
    return "".join("\\" + c if c in ESCAPED else c for c in text)


def all_types(schema: dict[str, Any], known: set[str]) -> set[str]:
    """Types that values of the schema may have, with "integer" as itself where it is listed alone;
    `known` is what is proved of it."""
    if "type" in schema:
        named = listed_types(schema)
        return {t for t in named if t in known or (t == "integer" and "number" in known)}
    return known & set(TYPES)
