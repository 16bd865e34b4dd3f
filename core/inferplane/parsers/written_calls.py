"""Call shapes whose arguments are not JSON: between tags, as Python writes a call, or in braces.
They become JSON while they are read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inferplane.parsers.calls import MAX_NAME, Calls, drop, read_name
from inferplane.parsers.json_text import quoted, value
from inferplane.parsers.literals import PYTHON, WORDS, Notation, literal
from inferplane.parsers.source import SPACE, Reading, Source, markers


@dataclass(frozen=True, slots=True)
class TaggedCall:
    """A name and then each argument between tags. A value is text if the schema says string, else
    JSON (or a Python word) if it parses as such, else text. `newlines` around values are no part
    of them. `exact`: a grammar has written it, so that all that is no text is JSON, and in the
    strings of that the tags mean nothing.
    """

    name_open: str
    name_ends: tuple[str, ...]
    key_open: str
    key_end: str
    value_open: str
    value_end: str
    end: str
    newlines: bool = False
    exact: bool = False

    def read(self, source: Source, calls: Calls, marker: str) -> Reading[bool]:
        if self.name_open and marker != self.name_open:
            yield from source.skip()
            if not (yield from source.one_of(markers(self.name_open))):
                return False
        name, end = yield from read_name(source, self.name_ends)
        if not name:
            return False
        calls.begin(name)
        properties = calls.schema(name).get("properties")
        kinds = properties if isinstance(properties, dict) else {}
        calls.arguments("{")
        first = True
        while end not in ("", self.end):
            if end == self.key_open:
                if not (yield from self._pair(source, calls, kinds, first)):
                    return True
                first = False
            end = yield from source.until(markers(self.key_open, self.end), drop)
        if end:
            calls.arguments("}")
            calls.finish()
        return True

    def _pair(
        self, source: Source, calls: Calls, kinds: Mapping[str, Any], first: bool
    ) -> Reading[bool]:
        kept: list[str] = []
        if (yield from source.until(markers(self.key_end), kept.append, MAX_NAME)) != self.key_end:
            return False
        key = "".join(kept).strip()
        if self.value_open:
            yield from source.skip()
            yield from source.one_of(markers(self.value_open))
        between = "" if first else ", "
        calls.arguments(f'{between}"{quoted(key)}": ')
        trimmed = _Trimmed(self.newlines)
        text_only = is_text(kinds.get(key))
        held: list[str] = []

        def write(text: str) -> None:
            text = trimmed.take(text)
            if text_only:
                calls.arguments(quoted(text))
            else:
                held.append(text)

        calls.arguments('"' if text_only else "")
        if self.exact and not text_only:
            yield from source.skip()
            yield from value(source, held.append)
            whole = yield from source.until(markers(self.value_end), drop)
        else:
            whole = yield from source.until(markers(self.value_end), write)
        if not whole:
            return False
        calls.arguments('"' if text_only else _as_json("".join(held)))
        return True


class _Trimmed:
    """Leaves out the first and the last newline of a text that comes in pieces."""

    def __init__(self, active: bool) -> None:
        self._active = active
        self._start = True
        self._held = ""

    def take(self, text: str) -> str:
        if not self._active or not text:
            return text
        if self._start:
            self._start = False
            text = text.removeprefix("\n")
        text = self._held + text
        self._held = "\n" if text.endswith("\n") else ""
        return text.removesuffix("\n")


def is_text(schema: Any) -> bool:
    """Whether a value of this schema can only be a string."""
    if not isinstance(schema, dict):
        return False
    if schema.get("type") == "string":
        return True
    choices = schema.get("enum")
    return isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)


def _as_json(text: str) -> str:
    bare = text.strip()
    if bare in WORDS:
        return WORDS[bare]
    try:
        json.loads(bare, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return f'"{quoted(text)}"'
    return bare


def _refuse(word: str) -> None:
    raise ValueError(word)  # NaN and Infinity are no JSON


@dataclass(frozen=True, slots=True)
class PythonCalls:
    """[f(a=1, b="x"), g()], with values as Python writes them."""

    def read(self, source: Source, calls: Calls, marker: str) -> Reading[bool]:
        if marker != "[":
            if (yield from source.skip()) != "[":
                return False
            yield from source.take()
        some = False
        while True:
            char = yield from source.skip(SPACE + ",")
            if char == "]" and some:
                yield from source.take()
                return True
            if some:
                source.record()
            name, end = yield from read_name(source, ("(", ")", "]", ","))
            if not name or end != "(":
                return False
            first = yield from self._key(source)
            if first is None:
                return False
            calls.begin(name)
            if not (yield from self._rest(source, calls, first)):
                return True
            some = True

    def _key(self, source: Source) -> Reading[str | None]:
        """A keyword with its "=", "" at the end of the call, None for anything else."""
        if (yield from source.skip(SPACE + ",")) == ")":
            yield from source.take()
            return ""
        name, end = yield from read_name(source, ("=", ")", ",", "("))
        return name if name and end == "=" else None

    def _rest(self, source: Source, calls: Calls, key: str | None) -> Reading[bool]:
        calls.arguments("{")
        between = ""
        while key:
            calls.arguments(f'{between}"{quoted(key)}": ')
            between = ", "
            if not (yield from literal(source, calls.arguments, PYTHON)):
                return False
            key = yield from self._key(source)
        if key is None:
            return False
        calls.arguments("}")
        calls.finish()
        return True


@dataclass(frozen=True, slots=True)
class BracedCall:
    """call:name{key:value, ...}, in a notation of its own."""

    lead: str
    notation: Notation

    def read(self, source: Source, calls: Calls, marker: str) -> Reading[bool]:
        yield from source.skip()
        if not (yield from source.one_of(markers(self.lead))):
            return False
        name, end = yield from read_name(source, ("{",))
        if not name:
            return False
        calls.begin(name)
        if (yield from literal(source, calls.arguments, self.notation, end)):
            calls.finish()
        return True
