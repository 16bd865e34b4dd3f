"""The one machine that runs every format: an incremental parser of one answer.

An answer is text, with reasoning where it begins and calls between. White space next to reasoning
and calls is no part of the answer. What begins like a call and is none becomes text, as the model
wrote it; a call that has begun stays one, with the arguments as far as they came. Special tokens
that are no markers here never reach the client.
"""

import secrets
import string
from collections.abc import Callable, Mapping
from typing import Any

from inferplane.parsers import harmony
from inferplane.parsers.events import Arguments, Event, Reasoning, Text, ToolCall
from inferplane.parsers.formats import ReasoningFormat, ToolFormat
from inferplane.parsers.source import SPACE, Reading, Source, markers

JUNK = SPACE + "}]`"
"""may stand between the arguments of a call and the marker that closes it"""


def long_id() -> str:
    return "call_" + secrets.token_hex(12)


def short_id() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


class Machine:
    """Parses one answer, by a reasoning format and a tool format that may each be none.

    `special` are the stand-ins of special tokens in the text, see source.py; `schemas` the
    arguments' JSON schemas by function; `in_reasoning` says that the prompt has already opened
    the reasoning. Without `separate` reasoning is text with its tags. See events.Parser.
    """

    def __init__(
        self,
        tools: ToolFormat | None,
        reasoning: ReasoningFormat | None,
        *,
        special: Mapping[str, str] | None = None,
        schemas: Mapping[str, Mapping[str, Any]] | None = None,
        in_reasoning: bool = False,
        separate: bool = True,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        self.in_reasoning = in_reasoning
        self.tools = tools
        self._reasoning = reasoning
        self._special = frozenset(special or ())
        self._hide = dict.fromkeys(map(ord, (special or {}).values()), "")
        self._schemas = schemas or {}
        self._separate = separate and reasoning is not None
        self.new_id = new_id or (short_id if tools and tools.short_ids else long_id)
        self.source = Source(special)
        self._events: list[Event] = []
        self._count = 0
        self._bare_arguments = True
        self._space = ""
        self._lead = in_reasoning and self._separate
        self._spoken = False
        self._broken = False
        channels = (tools and tools.channels) or (reasoning and reasoning.channels)
        self._run = harmony.run(self) if channels else self._answer()
        next(self._run, None)

    def push(self, text: str) -> list[Event]:
        if text:
            self.source.feed(text)
            next(self._run, None)
        return self._taken()

    def flush(self) -> list[Event]:
        self.source.close()
        next(self._run, None)
        if self._space and not self._lead and not (self.in_reasoning and self._separate):
            self._events.append(Text(self._space))
        self._space = ""
        return self._taken()

    def _taken(self) -> list[Event]:
        """The events so far, neighbours of a kind put together."""
        events, self._events = self._events, []
        merged: list[Event] = []
        for event in events:
            last = merged[-1] if merged else None
            match last, event:
                case Text(a), Text(b):
                    merged[-1] = Text(a + b)
                case Reasoning(a), Reasoning(b):
                    merged[-1] = Reasoning(a + b)
                case Arguments(i, a), Arguments(j, b) if i == j:
                    merged[-1] = Arguments(i, a + b)
                case _:
                    merged.append(event)
        return merged

    # what is read, in the order of an answer

    def _answer(self) -> Reading[None]:
        yield from self._begin()
        tools = self.tools
        opens = tools.opens if tools else ()
        others = (*tools.closes, *tools.drop) if tools else ()
        wanted = markers(*opens, *others)
        while True:
            marker = yield from self.source.until(wanted, self.say)
            if not marker:
                return
            if marker in opens:
                yield from self._call(marker)
            elif tools and marker in tools.closes and (self._broken or not self._count):
                self._broken = False
                self._literally(marker)

    def _begin(self) -> Reading[None]:
        """Reasoning, and calls that no marker opens, stand where the answer begins."""
        form = self._reasoning
        if form is not None:
            opened = self.in_reasoning
            if not opened:
                yield from self._white()
                opened = bool((yield from self.source.one_of(markers(form.opens))))
            if opened:
                yield from self._think(form)
        if self.tools and self.tools.bare:
            first = yield from self._white()
            if first and first in self.tools.bare:
                yield from self._call("")

    def _white(self) -> Reading[str]:
        """White space, which is text if text follows; the next character."""
        while True:
            char = yield from self.source.peek()
            if not char or char not in SPACE:
                return char
            self.say((yield from self.source.take()))

    def _think(self, form: ReasoningFormat) -> Reading[None]:
        tools = self.tools
        ends = (*tools.opens, *tools.drop) if tools and form.calls_end_it else ()
        if not self.in_reasoning:
            self.open_reasoning()
            if form.header:
                yield from self.source.one_of(markers(form.header))
            if not self._separate:
                self._literally(form.opens)
        marker = yield from self.source.until(markers(form.closes, *ends), self.think)
        if not marker:
            return
        self.close_reasoning()
        if not self._separate and marker == form.closes:
            self._literally(marker)
        if marker in ends and tools and marker in tools.opens:
            yield from self._call(marker)

    def open_reasoning(self) -> None:
        self.in_reasoning = True
        if self._separate:
            self._space, self._lead = "", True

    def close_reasoning(self) -> None:
        self.in_reasoning = False
        if self._separate:
            self._space, self._lead = "", True

    def _call(self, marker: str) -> Reading[None]:
        assert self.tools is not None
        before = self._count
        self.source.record()
        if (yield from self.tools.shape.read(self.source, self, marker)):
            self.source.recorded()
            self._space, self._lead = "", True
            if self.tools.closes:
                yield from self.source.skip(JUNK)
                yield from self.source.one_of(markers(*self.tools.closes))
            return
        raw = self.source.recorded()
        if self._count == before:
            self._literally(marker)
            self._broken = True
        self.say(raw)

    # what is made of it

    @property
    def may_call(self) -> bool:
        return self.tools is not None

    def say(self, text: str) -> None:
        """Text of the answer."""
        self._spoken = self._spoken or bool(text)
        self._write(Text, text)

    def think(self, text: str) -> None:
        if self._separate:
            self._write(Reasoning, text)
        else:
            self.say(text)

    def paragraph(self) -> None:
        """What is said next stands apart from what was said before."""
        if self._spoken:
            self._space, self._lead = "\n\n", False

    def _write(self, kind: type[Text] | type[Reasoning], text: str) -> None:
        """White space at its end waits for what follows, and is dropped where none may lead."""
        if self._hide:
            text = text.translate(self._hide)
        if self._lead:
            text = text.lstrip()
            self._lead = not text
        body = text.rstrip()
        if body:
            self._events.append(kind(self._space + body))
            self._space = text[len(body) :]
        else:
            self._space += text

    def _literally(self, marker: str) -> None:
        if marker not in self._special:
            self.say(marker)

    def begin(self, name: str, id: str | None = None) -> None:
        self._space = ""
        self.source.recorded()
        name, id = name.translate(self._hide), id and id.translate(self._hide)
        self._events.append(ToolCall(self._count, id or self.new_id(), name))
        self._count += 1
        self._bare_arguments = True

    def arguments(self, text: str) -> None:
        text = text.translate(self._hide) if self._hide else text
        if text:
            self._events.append(Arguments(self._count - 1, text))
            self._bare_arguments = False

    def finish(self) -> None:
        if self._bare_arguments:
            self.arguments("{}")

    def schema(self, name: str) -> Mapping[str, Any]:
        return self._schemas.get(name, {})
