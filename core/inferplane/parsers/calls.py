"""Call shapes: how formats write the name and the arguments of a call. Each is a small table of
markers with the reader that it needs; machine.py finds where they begin. Here are those whose
arguments are JSON, which is passed on as it is written; written_calls.py has the others."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from inferplane.parsers.json_text import string, value
from inferplane.parsers.source import OVER, SPACE, Out, Reading, Source, markers

MAX_NAME = 128
MAX_HELD = 65536
"""characters of arguments that stand before the name of their function, or of a value whose type
must be known before it can be written as JSON"""
NAME = re.compile(r"[^\s\"'<>{}\[\]()|]+")


class Calls(Protocol):
    """Where shapes report what they read."""

    def begin(self, name: str, id: str | None = None) -> None:
        """A call begins; the one before it ends."""
        ...

    def arguments(self, text: str) -> None: ...

    def finish(self) -> None:
        """The call is whole: without arguments they are {}."""
        ...

    def schema(self, name: str) -> Mapping[str, Any]:
        """The JSON schema of a function's arguments; empty if unknown."""
        ...


class Shape(Protocol):
    """How one call, or several, follow the marker that begins them."""

    def read(self, source: Source, calls: Calls, marker: str) -> Reading[bool]:
        """False if what follows is no call after all: then it is text. A call that has begun
        stays a call, whatever comes."""
        ...


def read_name(source: Source, ends: tuple[str, ...]) -> Reading[tuple[str, str]]:
    """A function's name and the marker after it; the name is "" if it is none."""
    kept: list[str] = []
    yield from source.skip()
    end = yield from source.until(markers(*ends), kept.append, MAX_NAME)
    name = "".join(kept).strip()
    usable = end not in ("", OVER) and NAME.fullmatch(name)
    return (name if usable else ""), end


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """{"name": ..., "arguments": {...}}, several in a list or with `separators` between them.

    `bare` ones begin without a marker, so that an object which is no call must be told from one:
    it has no other keys and has arguments. `stops` end a call whose brackets are not closed.
    """

    names: tuple[str, ...] = ("name",)
    arguments: tuple[str, ...] = ("arguments", "parameters")
    others: tuple[str, ...] = ("id", "type")
    separators: str = ""
    stops: tuple[str, ...] = ()
    bare: bool = False

    def read(self, source: Source, calls: Calls, marker: str) -> Reading[bool]:
        first = marker if marker in ("{", "[") else (yield from source.skip())
        if first == "[":
            if marker != "[":
                yield from source.take()
            return (yield from self._list(source, calls))
        if first != "{":
            return False
        if marker != "{":
            yield from source.take()
        while (yield from self._object(source, calls)):
            if not self.separators:
                return True
            if (yield from source.skip(self.separators + SPACE)) != "{":
                return True
            source.record()
            yield from source.take()
        return False

    def _list(self, source: Source, calls: Calls) -> Reading[bool]:
        some = False
        while True:
            char = yield from source.skip(SPACE + ",")
            if char == "]" and some:
                yield from source.take()
                return True
            if char != "{":
                return some
            if some:
                source.record()
            yield from source.take()
            if not (yield from self._object(source, calls)):
                return False
            some = True

    def _object(self, source: Source, calls: Calls) -> Reading[bool]:
        """After its opening bracket."""
        name, begun = "", False
        held: _Held | None = None
        while True:
            char = yield from source.skip(SPACE + ",")
            if char == "}":
                yield from source.take()
                if name and not begun and (held is not None or not self.bare):
                    calls.begin(name)
                    calls.arguments("".join(held.pieces) if held else "")
                    begun = True
                if begun:
                    calls.finish()
                return begun
            key = yield from _key(source)
            if key is None:
                return begun
            if key in self.names and not name:
                name = yield from _string(source)
                if not NAME.fullmatch(name):
                    return False
            elif key in self.arguments and not begun and held is None:
                begun = bool(name)
                held = _Held()
                if begun:
                    calls.begin(name)
                out = calls.arguments if begun else held.add
                whole = yield from _arguments(source, out, self.stops)
                if not whole or held.size > MAX_HELD:
                    return begun
            elif self.bare and not begun and key not in self.others:
                return False
            elif not (yield from value(source, drop, self.stops)):
                return begun


def drop(text: str) -> None:
    pass


class _Held:
    """Arguments that came before the name; too many of them are not kept."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.size = 0

    def add(self, text: str) -> None:
        self.size += len(text)
        if self.size <= MAX_HELD:
            self.pieces.append(text)


def _key(source: Source) -> Reading[str | None]:
    """A key and its colon."""
    if (yield from source.peek()) != '"':
        return None
    key = yield from _string(source)
    if (yield from source.skip()) != ":":
        return None
    yield from source.take()
    yield from source.skip()
    return key


def _string(source: Source) -> Reading[str]:
    """A short string; "" for anything else."""
    if (yield from source.peek()) != '"':
        return ""
    yield from source.take()
    kept: list[str] = []
    whole = yield from string(source, kept.append, limit=MAX_NAME)
    return "".join(kept) if whole else ""


def _arguments(source: Source, out: Out, stops: tuple[str, ...]) -> Reading[bool]:
    """Arguments are an object; some models write a string with an object in it, or null."""
    first = yield from source.peek()
    if first == '"':
        yield from source.take()
        return (yield from string(source, out))
    if first and first in "{[":
        return (yield from value(source, out, stops))
    kept: list[str] = []
    whole = yield from value(source, kept.append)
    word = "".join(kept)
    out("" if word in ("null", "None") else word)
    return whole


def same_name(text: str) -> tuple[str, str | None]:
    return text, None


@dataclass(frozen=True, slots=True)
class NamedCall:
    """A name, a marker, then the arguments as JSON; up to one of `ends` if they are none.

    A `lead` may stand before the name. `extra` markers have something after them that is no
    argument, up to one of `name_ends`. `split` finds name and id in what stands for the name.
    """

    name_ends: tuple[str, ...]
    ends: tuple[str, ...]
    lead: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    fence: tuple[str, ...] = ()
    split: Callable[[str], tuple[str, str | None]] = same_name

    def read(self, source: Source, calls: Calls, marker: str) -> Reading[bool]:
        yield from source.skip()
        yield from source.one_of(markers(*self.lead))
        text, end = yield from read_name(source, (*self.name_ends, *self.extra))
        name, id = self.split(text)
        if end in self.extra:
            extra, end = yield from read_name(source, self.name_ends)
            id = extra or None
        if not name or end not in self.name_ends:
            return False
        calls.begin(name, id)
        opened = end if end == "{" else ""
        if not opened:
            yield from source.skip()
            if (yield from source.one_of(markers(*self.fence))):
                yield from source.skip()
            first = yield from source.peek()
        if opened or first == "{":
            whole = yield from value(source, calls.arguments, self.ends, opened)
        else:
            whole = bool((yield from source.until(markers(*self.ends), calls.arguments)))
        if whole:
            calls.finish()
        return True


@dataclass(frozen=True, slots=True)
class FirstOf:
    """Calls as JSON if they begin with a bracket, else the other shape."""

    json: JsonCalls
    named: NamedCall

    def read(self, source: Source, calls: Calls, marker: str) -> Reading[bool]:
        first = yield from source.skip()
        shape: Shape = self.json if first and first in "[{" else self.named
        return (yield from shape.read(source, calls, marker))
