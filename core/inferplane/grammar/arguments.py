"""Arguments that a model writes one by one, not as one JSON object: as rules of a Lark grammar.

    <parameter=city>\nRome\n</parameter>      before KEY ... after
    city:<escape>Rome<escape>,n:2            with `between` them, and `text` around what is text

Values of the keys `texts` are written as they are, up to `never`, which they cannot contain; all
others are JSON. Arguments come in the order of the schema; `loose` ones in any order, and only
what is text is told from what is JSON.
"""

import json
from collections.abc import Mapping
from typing import Any

from inferplane.grammar.contract import refusal
from inferplane.grammar.lark import lark_regex, literals
from inferplane.grammar.schema.lower import FORMATS, check_keywords, count_of, lower, mapping
from inferplane.grammar.schema.negate import escape

PAIRS: dict[str, type] = {
    "before": str,
    "after": str,
    "between": str,
    "text": list,
    "never": str,
    "texts": list,
    "loose": bool,
}
"""the fields that describe how arguments are written"""
KEY = "KEY"
NOTES = frozenset(
    "title description default examples $comment $schema deprecated readOnly writeOnly".split()
)
SHARED = ("$defs", "definitions")
OBJECT = NOTES.union(SHARED, ("type", "properties", "required", "additionalProperties"))
TEXT = NOTES.union("type enum const minLength maxLength pattern format".split())
BAD_IN_KEYS = frozenset(" \t\r\n<>=:,(){}[]\"'|")
MAX_KEY = 128


def pair_rules(
    name: str, tag: Mapping[str, Any], special: Mapping[str, int], options: Mapping[str, Any]
) -> tuple[str, list[str]]:
    """What stands for the arguments, and the rules that it needs, all called `name`_something."""
    return _Arguments(name, tag, special, options).rules()


class _Arguments:
    def __init__(
        self,
        name: str,
        tag: Mapping[str, Any],
        special: Mapping[str, int],
        options: Mapping[str, Any],
    ) -> None:
        self._name = name
        self._pairs: dict[str, Any] = tag["pairs"]
        self._schema: dict[str, Any] = tag["schema"] if isinstance(tag["schema"], dict) else {}
        self._special = special
        self._options = dict(options)
        self._rules: list[str] = []
        self._needed: set[Any] = set()

    def rules(self) -> tuple[str, list[str]]:
        if not self._pairs["loose"]:
            self._check()
        properties = mapping(self._schema.get("properties", {}), "/properties")
        required = self._schema.get("required", [])
        self._needed = {key for key in required if isinstance(key, str)}
        properties |= dict.fromkeys(sorted(self._needed - properties.keys()), True)
        pairs = [self._pair(n, key, part) for n, (key, part) in enumerate(properties.items())]
        if not pairs:
            return "", []
        between = literals(self._pairs["between"], self._special)
        if self._pairs["loose"]:
            any_of = " | ".join(pairs)
            self._rules.append(f"{self._name}_any: {any_of}")
            self._rules.append(f"{self._name}: ({self._name}_any ({between} {self._name}_any)*)?")
        else:
            self._in_order(list(properties), pairs, between)
        return self._name, self._rules

    def _in_order(self, keys: list[str], pairs: list[str], between: str) -> None:
        """Rules for the arguments from each on, where none (a) or some (b) came before."""
        name = self._name
        self._rules += [f'{name}_a{len(keys)}: ""', f'{name}_b{len(keys)}: ""']
        for n in reversed(range(len(keys))):
            skip_a = skip_b = ""
            if keys[n] not in self._needed:
                skip_a, skip_b = f" | {name}_a{n + 1}", f" | {name}_b{n + 1}"
            self._rules.append(f"{name}_a{n}: {pairs[n]} {name}_b{n + 1}{skip_a}")
            self._rules.append(f"{name}_b{n}: {between} {pairs[n]} {name}_b{n + 1}{skip_b}")
        self._rules.append(f"{name}: {name}_a0")

    def _check(self) -> None:
        """Refuse what arguments of their own cannot be held to."""
        for key in self._schema:
            if key not in OBJECT:
                raise self._unsupported(f"keyword {key!r} of its parameters")
        if self._schema.get("type", "object") not in ("object", ["object"]):
            raise self._unsupported("parameters that are no object")
        todo: list[Any] = [self._schema]
        for part in todo:
            if isinstance(part, dict):
                ref = part.get("$ref", "#/$defs/")
                if not isinstance(ref, str) or not ref.startswith(("#/$defs/", "#/definitions/")):
                    raise self._unsupported(f"the $ref {ref!r:.80}")
                if part.keys() & {"$id", "id", "$dynamicRef", "$recursiveRef", "$anchor"} and any(
                    isinstance(part.get(k), str) for k in ("$id", "id", "$anchor")
                ):
                    raise self._unsupported("a schema with an identifier")
                todo += part.values()
            elif isinstance(part, list):
                todo += part

    def _unsupported(self, what: str) -> Exception:
        return refusal(
            "structural_tag",
            f"{what} cannot be enforced in this model's format of calls, in which arguments are"
            " written one by one",
            "unsupported_schema",
        )

    def _pair(self, number: int, key: str, schema: Any) -> str:
        """The rule of one argument."""
        pairs, rule = self._pairs, f"{self._name}_p{number}"
        if not key or len(key) > MAX_KEY or BAD_IN_KEYS & set(key):
            raise self._unsupported(f"an argument named {key!r:.80}")
        before = literals(pairs["before"].replace(KEY, key), self._special)
        if key in pairs["texts"]:
            opened, closed = pairs["text"]
            value = self._text(key, {} if pairs["loose"] else schema)
            after = literals(closed + pairs["after"], self._special)
            terminal = f"T_{self._name}_{number}".upper()
            never = f"~/(?s:.*){escape(pairs['never'])}(?s:.*)/"
            if after.startswith("<["):
                self._rules.append(f"{terminal}: ({value}) & {never}")
            else:  # one terminal, as the text alone would not know where it ends
                first, after = first_literal(after)
                self._rules.append(f"{terminal}: (({value}) & {never}) {first}")
            body = f"{literals(opened, self._special)} {terminal} {after}"
        else:
            shared = {k: self._schema[k] for k in SHARED if k in self._schema}
            if pairs["loose"] or schema is True:
                whole: Any = {}
            else:
                whole = lower({**shared, **schema} if isinstance(schema, dict) else schema)
            value = f"%json {json.dumps({**whole, 'x-guidance': self._options})}"
            body = f"{value} {literals(pairs['after'], self._special)}"
        self._rules.append(f"{rule}: {before} {body}")
        return rule

    def _text(self, key: str, schema: Any) -> str:
        """A terminal for the texts that a schema allows."""
        if not isinstance(schema, dict):
            schema = {}
        check_keywords(schema, f"/properties/{key}")
        for keyword in schema:
            if keyword not in TEXT:
                raise self._unsupported(f"keyword {keyword!r} of the text {key!r:.80}")
        if schema.get("format") in FORMATS:
            raise self._unsupported(f"format {schema['format']!r} of the text {key!r:.80}")
        low = count_of(schema.get("minLength", 0), "minLength")
        high = count_of(schema["maxLength"], "maxLength") if "maxLength" in schema else ""
        terms = [f"/(?s:.{{{low},{high}}})/" if low or high != "" else "/(?s:.*)/"]
        if "pattern" in schema:
            terms.append(f"/{self._searched(key, schema['pattern'])}/")
        for choices in (schema.get("enum"), [schema["const"]] if "const" in schema else None):
            if choices is not None:
                texts = [c for c in choices if isinstance(c, str) and self._pairs["never"] not in c]
                if not texts:
                    raise self._unsupported(f"the values of {key!r:.80}")
                terms.append("(" + "|".join(f"/{escape_lark(text)}/" for text in texts) + ")")
        return " & ".join(terms)

    def _searched(self, key: str, pattern: Any) -> str:
        """A pattern that only some part of the text must match, as one for the whole of it."""
        bare = pattern if isinstance(pattern, str) else "\\"
        left, right = bare.startswith("^"), bare.endswith("$") and not bare.endswith("\\$")
        inner = bare[left : len(bare) - right]
        plain = inner.replace("\\\\", "").replace("\\^", "").replace("\\$", "").replace("[^", "")
        if "^" in plain or "$" in plain or ((left or right) and "|" in plain):
            raise self._unsupported(f"the pattern of the text {key!r:.80}")
        around = ("" if left else "(?s:.*)", "" if right else "(?s:.*)")
        return f"{around[0]}({lark_regex(f'^{inner}$')}){around[1]}"


def escape_lark(text: str) -> str:
    """A pattern for exactly this text, between slashes."""
    return escape(text).replace("\n", "\\n").replace("\r", "\\r") or "(?:)"


def first_literal(parts: str) -> tuple[str, str]:
    """The string that a row of literals begins with, and the others."""
    _, end = json.JSONDecoder().raw_decode(parts)
    return parts[:end], parts[end:]
