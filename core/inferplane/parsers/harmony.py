"""Harmony, the format of gpt-oss: an answer is a row of messages, each for a channel.

    <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...

analysis is reasoning; final is the answer, and so is commentary that is for nobody; a message
with a recipient (`to=functions.NAME`) is a call, its body the arguments. The prompt ends with
`<|start|>assistant`, and the first header goes on from there. What has no header is text.
"""

from typing import Protocol

from inferplane.parsers.calls import NAME
from inferplane.parsers.source import OVER, Reading, Source, markers

MAX_HEADER = 256
START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
MARKERS = (START, CHANNEL, CONSTRAIN, MESSAGE, "<|end|>", "<|call|>", "<|return|>")
BEGINS = markers(START, CHANNEL, MESSAGE)
ENDS = markers("<|end|>", "<|call|>", "<|return|>", START, CHANNEL)
ALL = markers(*MARKERS)
FUNCTIONS = "functions."


class Sink(Protocol):
    """The machine, as far as harmony needs it."""

    @property
    def source(self) -> Source: ...
    @property
    def may_call(self) -> bool: ...
    def paragraph(self) -> None: ...
    def open_reasoning(self) -> None: ...
    def close_reasoning(self) -> None: ...
    def say(self, text: str) -> None: ...
    def think(self, text: str) -> None: ...
    def begin(self, name: str) -> None: ...
    def arguments(self, text: str) -> None: ...
    def finish(self) -> None: ...


def run(sink: Sink) -> Reading[None]:
    """The whole answer."""
    source = sink.source
    end = ""
    while True:
        begin = end if end in (START, CHANNEL) else (yield from source.one_of(BEGINS))
        if not begin:
            if not (yield from source.skip()):
                return
            begin = yield from source.one_of(BEGINS)
        channel, recipient = "", ""
        if begin in (START, CHANNEL):
            found = yield from _header(source, begin)
            if found is None:
                end = ""
                continue
            channel, recipient = found
        end = yield from _body(sink, channel, recipient)
        if not end:
            return


def _header(source: Source, begin: str) -> Reading[tuple[str, str] | None]:
    """Channel and recipient, up to the message; None if there is none."""
    parts: dict[str, list[str]] = {START: [], CHANNEL: [], CONSTRAIN: []}
    part, room = begin, MAX_HEADER
    while True:
        kept: list[str] = []
        found = yield from source.until(ALL, kept.append, room)
        room -= sum(map(len, kept))
        parts[part] += kept
        if found in parts:
            part = found
        elif found == MESSAGE:
            break
        else:  # too long, or the text or the message ended
            return ("", "") if found == OVER else None
    words = "".join([*parts[CHANNEL], " ", *parts[START]]).split()
    recipient = next((w.removeprefix("to=") for w in words if w.startswith("to=")), "")
    channel = next((w for w in "".join(parts[CHANNEL]).split() if not w.startswith("to=")), "")
    return channel, recipient


def _body(sink: Sink, channel: str, recipient: str) -> Reading[str]:
    """One message; the marker that ends it."""
    source = sink.source
    name = recipient.removeprefix(FUNCTIONS)
    is_call = name != recipient or channel != "analysis"
    if is_call and sink.may_call and NAME.fullmatch(name):
        sink.begin(name)
        yield from source.skip()
        end = yield from source.until(ENDS, sink.arguments)
        if end:
            sink.finish()
    elif channel == "analysis":
        sink.open_reasoning()
        end = yield from source.until(ENDS, sink.think)
        if end:
            sink.close_reasoning()
    else:
        sink.paragraph()
        end = yield from source.until(ENDS, sink.say)
    return end
