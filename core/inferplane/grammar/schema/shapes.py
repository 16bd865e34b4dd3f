"""What can be said for certain about a schema: its types, which values it rejects, and whether two
schemas have no value in common. "False" means "not sure".
"""

from contextlib import suppress
from typing import Any, TypeGuard

from inferplane.grammar.schema.document import Document, Schema, Unsupported

TYPES = ("null", "boolean", "object", "array", "number", "string")
"""integers are numbers"""
MOST_STEPS = 20_000


def type_of(value: Any) -> str:
    """The JSON type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    kinds = {int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return kinds[type(value)]


def equal(a: Any, b: Any) -> bool:
    """As JSON: 1 is 1.0, true is not 1."""
    if type_of(a) != type_of(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return bool(a == b)


def listed_types(schema: dict[str, Any]) -> set[str]:
    """The types of `type` alone, with "integer" as itself."""
    named = schema.get("type", [*TYPES])
    return set(named if isinstance(named, list) else [named])


class Shapes:
    """Proofs about the schemas of one document. All of them together take bounded work."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._steps = 0

    def types(self, schema: Schema, depth: int = 0) -> set[str]:
        """Types that the schema's values may have; never too few."""
        if isinstance(schema, bool):
            return set(TYPES) if schema else set()
        found = {"number" if t == "integer" else t for t in listed_types(schema)}
        for values in self._values(schema):
            found &= {type_of(value) for value in values}
        if depth > 16 or self._exhausted():
            return found
        for part in self._all(schema):
            found &= self.types(part, depth + 1)
        for branches in self._any(schema):
            found &= set[str]().union(*(self.types(b, depth + 1) for b in branches))
        return found

    def rejects(self, schema: Schema, value: Any, depth: int = 0) -> bool:
        """The value is certainly not valid."""
        if isinstance(schema, bool):
            return not schema
        if self._exhausted() or depth > 16:
            return False
        kind, named = type_of(value), listed_types(schema)
        integral = kind == "number" and float(value).is_integer()
        if kind not in named and not ("integer" in named and integral):
            return True
        for values in self._values(schema):
            if not any(equal(value, other) for other in values):
                return True
        if kind == "object" and self._rejects_object(schema, value, depth):
            return True
        if kind == "number" and not _inside(value, *_numbers(schema)):
            return True
        low, high = _lengths(schema, kind)
        if kind in ("string", "array") and not low <= len(value) <= high:
            return True
        return any(self.rejects(part, value, depth + 1) for part in self._all(schema)) or any(
            all(self.rejects(branch, value, depth + 1) for branch in branches)
            for branches in self._any(schema)
        )

    def _rejects_object(self, schema: dict[str, Any], value: dict[str, Any], depth: int) -> bool:
        if any(name not in value for name in _strings(schema.get("required"))):
            return True
        properties = _properties(schema)
        for name, item in value.items():
            if name in properties:
                if self.rejects(properties[name], item, depth + 1):
                    return True
            elif _forbids(schema, name):
                return True
        return False

    def disjoint(
        self, a: Schema, b: Schema, depth: int = 0, within: frozenset[str] = frozenset(TYPES)
    ) -> bool:
        """No value of the types `within` is valid for both."""
        if isinstance(a, bool) or isinstance(b, bool):
            return a is False or b is False
        if self._exhausted() or depth > 8:
            return False
        common = within & self.types(a) & self.types(b)
        if not common:
            return True
        for one, other in ((a, b), (b, a)):
            for values in self._values(one):
                if all(self.rejects(one, v) or self.rejects(other, v) for v in values):
                    return True
            if any(self.disjoint(part, other, depth + 1, common) for part in self._all(one)):
                return True
            for branches in self._any(one):
                if all(self.disjoint(branch, other, depth + 1, common) for branch in branches):
                    return True
        return all(self._disjoint_in(kind, a, b, depth) for kind in common)

    def _disjoint_in(self, kind: str, a: dict[str, Any], b: dict[str, Any], depth: int) -> bool:
        """No value of one type is valid for both, judged by the keywords of that type."""
        if kind == "number":
            return _apart(_numbers(a), _numbers(b))
        if kind in ("string", "array"):
            (low_a, high_a), (low_b, high_b) = _lengths(a, kind), _lengths(b, kind)
            return low_a > high_b or low_b > high_a
        if kind != "object":
            return False
        required_a, required_b = _strings(a.get("required")), _strings(b.get("required"))
        ours, theirs = _properties(a), _properties(b)
        if any(theirs.get(name) is False or _forbids(b, name) for name in required_a):
            return True
        if any(ours.get(name) is False or _forbids(a, name) for name in required_b):
            return True
        return any(
            self.disjoint(ours.get(name, True), theirs.get(name, True), depth + 1)
            for name in set(required_a) | set(required_b)
            if name in ours and name in theirs
        )

    def _values(self, schema: dict[str, Any]) -> list[list[Any]]:
        found = [[schema["const"]]] if "const" in schema else []
        listed = schema.get("enum")
        return [*found, listed] if isinstance(listed, list) else found

    def _all(self, schema: dict[str, Any]) -> list[Schema]:
        parts = _schemas(schema.get("allOf"))
        if "$ref" in schema:
            with suppress(Unsupported):
                parts.append(self._document.resolve(schema["$ref"], "")[0])
        return parts

    def _any(self, schema: dict[str, Any]) -> list[list[Schema]]:
        branches = [_schemas(schema.get(name)) for name in ("anyOf", "oneOf")]
        return [some for some in branches if some]

    def _exhausted(self) -> bool:
        self._steps += 1
        return self._steps > MOST_STEPS


def _schemas(value: Any) -> list[Schema]:
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, dict | bool)]


def _strings(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _properties(schema: dict[str, Any]) -> dict[str, Schema]:
    value = schema.get("properties")
    return value if isinstance(value, dict) else {}


def _forbids(schema: dict[str, Any], name: str) -> bool:
    """An object with this property is certainly not valid."""
    return (
        schema.get("additionalProperties") is False
        and name not in _properties(schema)
        and not schema.get("patternProperties")
    )


Bounds = tuple[float, bool, float, bool]
"""least value, whether it is left out, largest value, whether it is left out"""


def _numbers(schema: dict[str, Any]) -> Bounds:
    low, low_open, high, high_open = float("-inf"), False, float("inf"), False
    for name in ("minimum", "exclusiveMinimum"):
        value, is_open = schema.get(name), name != "minimum"
        if _is_number(value) and (value, is_open) > (low, low_open):
            low, low_open = value, is_open
    for name in ("maximum", "exclusiveMaximum"):
        value, is_open = schema.get(name), name != "maximum"
        if _is_number(value) and (-value, is_open) > (-high, high_open):
            high, high_open = value, is_open
    return low, low_open, high, high_open


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _inside(value: float, low: float, low_open: bool, high: float, high_open: bool) -> bool:
    above = value > low or (value == low and not low_open)
    return above and (value < high or (value == high and not high_open))


def _apart(a: Bounds, b: Bounds) -> bool:
    for (_, _, high, high_open), (low, low_open, _, _) in ((a, b), (b, a)):
        if high < low or (high == low and (high_open or low_open)):
            return True
    return False


def _lengths(schema: dict[str, Any], kind: str) -> tuple[float, float]:
    low, high = ("minLength", "maxLength") if kind == "string" else ("minItems", "maxItems")
    least, most = schema.get(low), schema.get(high)
    return (
        least if isinstance(least, int | float) else 0,
        most if isinstance(most, int | float) else float("inf"),
    )
