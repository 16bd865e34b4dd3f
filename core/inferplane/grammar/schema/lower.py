"""Rewrites a schema into one of equal meaning that has only keywords which engines enforce, or
refuses it by naming the first keyword that cannot be.

The rewritten schema is in draft 2020-12. What the drafts differ in: arrays as `items`,
`dependencies`, `$id` as anchor. `$ref` with siblings means both, in all drafts.
"""

import json
from collections.abc import Callable
from typing import Any

from inferplane.grammar.contract import refusal
from inferplane.grammar.schema.document import Document, Schema, Unsupported, check_size, child
from inferplane.grammar.schema.negate import all_types, negate
from inferplane.grammar.schema.shapes import Shapes

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MAX_RESULT = 50_000
MAX_NEGATED_ONE_OF = 4

KEPT = tuple(
    "const enum minimum maximum exclusiveMinimum exclusiveMaximum multipleOf pattern required"
    " type".split()
)
COUNTS = tuple("minLength maxLength minItems maxItems minProperties maxProperties".split())
FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri".split())
"""enforced; any other name that the specification knows is refused, the rest are remarks"""
KNOWN_FORMATS = frozenset(
    "idn-email idn-hostname uri-reference iri iri-reference uri-template json-pointer"
    " relative-json-pointer regex".split()
)
REFUSED = tuple(
    "uniqueItems contains minContains maxContains unevaluatedItems unevaluatedProperties"
    " $dynamicRef $recursiveRef extends disallow".split()
)
CONSTRAINING = frozenset(
    "format properties patternProperties additionalProperties items prefixItems additionalItems"
    " allOf anyOf oneOf not if dependencies dependentRequired dependentSchemas propertyNames"
    " $ref".split()
).union(KEPT, COUNTS, REFUSED)


def lower(root: Schema) -> dict[str, Any]:
    """The rewritten document. RequestError (Unsupported) names a keyword and where it is."""
    check_size([root])
    return Lowering(root).run()


def parse_schema(text: str) -> dict[str, Any] | bool:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        raise refusal("json_schema", "is not valid JSON", "invalid_grammar") from None
    if not isinstance(schema, dict | bool):
        raise refusal("json_schema", "must be an object", "invalid_grammar")
    if schema is False:
        raise refusal("json_schema", "false allows nothing", "unsatisfiable_schema")
    return schema


class Lowering:
    """One document. Everything that a $ref points to becomes an entry of $defs."""

    def __init__(self, root: Schema) -> None:
        self._document = Document(root)
        self._shapes = Shapes(self._document)
        self._names: dict[str, str] = {}
        self._todo: list[tuple[Schema, str]] = []
        self._made = 0

    def run(self) -> dict[str, Any]:
        result = self.schema(self._document.root, "")
        if isinstance(result, bool):
            result = {} if result else {"not": {}}
        definitions: dict[str, Schema] = {}
        while self._todo:
            schema, pointer = self._todo.pop()
            definitions[self._names[pointer]] = self.schema(schema, pointer)
        result = {"$schema": DIALECT, **result}
        return {**result, "$defs": definitions} if definitions else result

    def schema(self, schema: Any, at: str) -> Schema:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise Unsupported(at.rpartition("/")[2], at, "must be a schema")
        self._made += 1
        if self._made > MAX_RESULT:
            raise Unsupported("$schema", at, "is too large once it is spelled out")
        check_keywords(schema, at)
        out = {key: schema[key] for key in KEPT if key in schema}
        out |= {key: count_of(schema[key], child(at, key)) for key in COUNTS if key in schema}
        more: list[Schema] = []  # further schemas that must hold
        if "$ref" in schema:
            out["$ref"] = self._reference(schema["$ref"], child(at, "$ref"))
        if schema.get("format") in FORMATS:
            out["format"] = schema["format"]
        self._array(schema, at, out)
        self._object(schema, at, out, more)
        self._counts(schema, out, more)
        self._logic(schema, at, out, more)
        if more:
            out["allOf"] = [*out.get("allOf", []), *more]
        return out

    def _reference(self, ref: Any, at: str) -> str:
        target, pointer = self._document.resolve(ref, at)
        if pointer not in self._names:
            self._names[pointer] = f"r{len(self._names)}"
            self._todo.append((target, pointer))
        return f"#/$defs/{self._names[pointer]}"

    def _array(self, schema: dict[str, Any], at: str, out: dict[str, Any]) -> None:
        first, rest = schema.get("prefixItems"), schema.get("items")
        names = ("prefixItems", "items")
        if isinstance(rest, list):
            first, rest = rest, schema.get("additionalItems")
            names = ("items", "additionalItems")
        if first is not None:
            at_first = child(at, names[0])
            out["prefixItems"] = [
                self.schema(part, child(at_first, i)) for i, part in enumerate(listed(first, at))
            ]
        if rest is not None:
            out["items"] = self.schema(rest, child(at, names[1]))

    def _object(
        self, schema: dict[str, Any], at: str, out: dict[str, Any], more: list[Schema]
    ) -> None:
        for key in ("properties", "patternProperties"):
            if key in schema:
                parts = mapping(schema[key], child(at, key))
                out[key] = {n: self.schema(p, child(at, key, n)) for n, p in parts.items()}
        others = schema.get("additionalProperties")
        if others is None and schema.get("unevaluatedProperties") is False:
            others = False  # check_keywords has seen that nothing else evaluates properties
        if others is not None:
            out["additionalProperties"] = self.schema(others, child(at, "additionalProperties"))
        if "propertyNames" in schema:
            self._names_of_properties(schema["propertyNames"], child(at, "propertyNames"), out)
        for key in ("dependencies", "dependentRequired", "dependentSchemas"):
            for name, needed in mapping(schema.get(key, {}), child(at, key)).items():
                if isinstance(needed, list):
                    then: Schema = {"required": [name, *needed]}
                else:
                    part = self.schema(needed, child(at, key, name))
                    then = {"allOf": [{"required": [name]}, part]}
                more.append({"anyOf": [{"properties": {name: False}}, then]})

    def _names_of_properties(self, names: Any, at: str, out: dict[str, Any]) -> None:
        """Names that match a pattern are the only ones that may be there."""
        if names is True or names == {}:
            return
        if names is False:
            names = {"enum": []}
        if isinstance(names, dict) and names.get("type", "string") == "string":
            names = {k: v for k, v in names.items() if k in CONSTRAINING and k != "type"}
            if not names:
                return
        if not isinstance(names, dict) or len(names) != 1 or "patternProperties" in out:
            raise Unsupported("propertyNames", at)
        (keyword, value), others = next(iter(names.items())), out.get("additionalProperties", True)
        listed_names = [value] if keyword == "const" else value if keyword == "enum" else None
        if listed_names is not None:
            allowed = {name for name in listed_names if isinstance(name, str)}
            properties = out.setdefault("properties", {})
            for name in properties.keys() - allowed:
                properties[name] = False
            for name in sorted(allowed - properties.keys()):
                properties[name] = others
            out["additionalProperties"] = False
        elif keyword == "pattern" and isinstance(value, str) and not out.get("properties"):
            out["patternProperties"] = {value: others}
            out["additionalProperties"] = False
        else:
            raise Unsupported("propertyNames", at)

    def _counts(self, schema: dict[str, Any], out: dict[str, Any], more: list[Schema]) -> None:
        """At least or at most one property, spelled out; other counts are left to the engine."""
        names = list(out.get("properties", {}))
        required = set(out.get("required", []))
        closed = out.get("additionalProperties") is False and not out.get("patternProperties")
        least, most = out.get("minProperties"), out.get("maxProperties")
        if least is not None and least <= len(required):
            del out["minProperties"]
        elif least == 1 and names:
            del out["minProperties"]
            branches: list[Schema] = [{"required": [name]} for name in names]
            if not closed:
                absent = dict.fromkeys(names, False)
                branches.append({"properties": absent, "minProperties": 1})
            if "type" not in schema:
                branches.append({"type": ["array", "boolean", "null", "number", "string"]})
            more.append({"anyOf": branches})
        if most is not None and closed and most >= len(names):
            del out["maxProperties"]
        elif most == 1 and closed and schema.get("type") == "object" and not required:
            del out["maxProperties"]
            singles = [{"properties": {n: False for n in names if n != name}} for name in names]
            more.append({"anyOf": singles})

    def _logic(
        self, schema: dict[str, Any], at: str, out: dict[str, Any], more: list[Schema]
    ) -> None:
        for key in ("allOf", "anyOf"):
            if key in schema:
                parts = listed(schema[key], child(at, key))
                out[key] = [self.schema(p, child(at, key, i)) for i, p in enumerate(parts)]
        if "oneOf" in schema:
            more.append(self._one_of(schema, child(at, "oneOf")))
        if "not" in schema:
            more.append(self._negated(schema["not"], child(at, "not"), self._types(schema)))
        if "if" in schema and ("then" in schema or "else" in schema):
            types = self._types(schema)
            condition, at_if = schema["if"], child(at, "if")
            then = self.schema(schema.get("then", True), child(at, "then"))
            other = self.schema(schema.get("else", True), child(at, "else"))
            unless: Schema = self._negated(condition, at_if, types)
            if other is not True:
                unless = {"allOf": [unless, other]}
            when: Schema = then
            if other is not True:
                when = {"allOf": [self.schema(condition, at_if), then]}
            more.append({"anyOf": [when, unless]})

    def _types(self, schema: dict[str, Any]) -> set[str]:
        return all_types(schema, self._shapes.types(schema))

    def _one_of(self, schema: dict[str, Any], at: str) -> Schema:
        """anyOf, where no value is valid for two branches."""
        branches = listed(schema["oneOf"], at)
        rest = {key: value for key, value in schema.items() if key != "oneOf"}
        whole = [{"allOf": [rest, branch]} for branch in branches] if rest else branches
        pairs = [(i, j) for j in range(len(branches)) for i in range(j)]
        parts = [self.schema(branch, child(at, i)) for i, branch in enumerate(branches)]
        overlapping = [(i, j) for i, j in pairs if not self._shapes.disjoint(whole[i], whole[j])]
        if not overlapping:
            return {"anyOf": parts}
        if len(branches) > MAX_NEGATED_ONE_OF:
            raise Unsupported("oneOf", at, "is not supported where branches may overlap")
        types = self._types(schema)
        exclusive: list[Schema] = []
        for i, part in enumerate(parts):
            others = {j for pair in overlapping for j in pair if i in pair} - {i}
            nots = [self._negated(branches[j], child(at, j), types) for j in sorted(others)]
            exclusive.append({"allOf": [part, *nots]} if nots else part)
        return {"anyOf": exclusive}

    def _negated(self, schema: Any, at: str, types: set[str], depth: int = 0) -> Schema:
        """The rewritten complement of a schema."""
        if depth > 8:
            raise Unsupported("not", at, "is nested too deeply")
        if isinstance(schema, dict):
            check_keywords(schema, at)
            schema = {k: v for k, v in schema.items() if k in CONSTRAINING}
            if "then" in schema or "else" in schema:
                raise Unsupported("if", at, "cannot be negated")
            if "format" in schema and schema["format"] not in FORMATS:
                del schema["format"]
            if "$ref" in schema:
                target, _ = self._document.resolve(schema.pop("$ref"), child(at, "$ref"))
                schema = {"allOf": [target, schema]} if schema else target
                return self._negated(schema, at, types, depth + 1)
        negated = negate(schema, at, types)
        return self._spell(negated, at, types, depth + 1)

    def _spell(self, schema: Schema, at: str, types: set[str], depth: int) -> Schema:
        """Rewrite what `negate` made, which has `not` inside."""
        if not isinstance(schema, dict):
            return schema
        if "not" in schema and len(schema) == 1:
            return self._negated(schema["not"], at, types, depth)
        for key in ("anyOf", "allOf"):
            if key in schema and len(schema) == 1:
                return {key: [self._spell(part, at, types, depth) for part in schema[key]]}
        return self.schema(schema, at)


def check_keywords(schema: dict[str, Any], at: str) -> None:
    """Refuse what nobody enforces, unless it demands nothing here."""
    for key in REFUSED:
        if key in schema and not HARMLESS.get(key, never)(schema):
            raise Unsupported(key, child(at, key))
    name = schema.get("format")
    if name in KNOWN_FORMATS:
        raise Unsupported("format", child(at, "format"), f"{name!r} is not supported")
    if at and "$ref" in schema and ("$id" in schema or "id" in schema):
        raise Unsupported("$ref", child(at, "$ref"), "beside an $id is not supported")
    for key in ("properties", "patternProperties"):
        mapping(schema.get(key, {}), child(at, key))
    if not isinstance(schema.get("required", []), list):
        raise Unsupported("required", child(at, "required"), "must be a list of names")


def never(schema: dict[str, Any]) -> bool:
    return False


def _few_items(schema: dict[str, Any]) -> bool:
    most = schema.get("maxItems")
    return schema["uniqueItems"] is False or (isinstance(most, int | float) and most <= 1)


def _no_evaluation(schema: dict[str, Any]) -> bool:
    others = ("allOf", "anyOf", "oneOf", "not", "if", "$ref", "dependentSchemas", "dependencies")
    value = schema["unevaluatedProperties"]
    return value is True or (value is False and not any(key in schema for key in others))


HARMLESS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "uniqueItems": _few_items,
    "contains": lambda schema: schema.get("minContains") == 0 and "maxContains" not in schema,
    "minContains": lambda schema: "contains" not in schema or schema["minContains"] == 0,
    "maxContains": lambda schema: "contains" not in schema,
    "unevaluatedItems": lambda schema: schema["unevaluatedItems"] is True,
    "unevaluatedProperties": _no_evaluation,
}
"""keyword -> whether this schema would mean the same without it"""


def listed(value: Any, at: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise Unsupported(at.rpartition("/")[2], at, "must be a list with at least one schema")
    return value


def mapping(value: Any, at: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unsupported(at.rpartition("/")[2], at, "must be an object")
    return value


def count_of(value: Any, at: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise Unsupported(at.rpartition("/")[2], at, "must be a whole number")
    return int(value)
