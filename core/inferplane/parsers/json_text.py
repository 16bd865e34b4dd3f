"""JSON values inside of model text: passed on as they are written, while they are written."""

import re

from inferplane.parsers.source import SPACE, Out, Reading, Source, markers

STRUCTURE = ('"', "{", "}", "[", "]")
CLOSED_BY = {"{": "}", "[": "]"}
STRING = markers('"', "\\")
MAX_SCALAR = 400
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
HEX = {"u": 4, "x": 2, "U": 8}
REPLACEMENT = "\ufffd"

QUOTED = re.compile('["\\\\\\x00-\\x1f\\x7f\\ud800-\\udfff]')
NAMED = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def quoted(text: str) -> str:
    """`text` as the inside of a JSON string. Piece by piece it gives the same as at once."""
    return QUOTED.sub(_quote, text)


def _quote(match: "re.Match[str]") -> str:
    char = match.group()
    if "\ud800" <= char <= "\udfff":
        return REPLACEMENT
    return NAMED.get(char) or f"\\u{ord(char):04x}"


def value(source: Source, out: Out, stops: tuple[str, ...] = (), opened: str = "") -> Reading[bool]:
    """Read one JSON value and give it to `out` as it is written; False if the text ended in it.

    Only strings and brackets are looked at, so what is no JSON goes through as it is. One of
    `stops` outside of strings ends it too; brackets that are still open then get closed.
    `opened` is its first character, if that has been taken.
    """
    first = opened or (yield from source.peek())
    if first == '"':
        if not opened:
            out((yield from source.take()))
        return (yield from _verbatim_string(source, out))
    if first not in CLOSED_BY:
        return (yield from _scalar(source, out))
    stack: list[str] = []
    if opened:
        out(opened)
        stack.append(CLOSED_BY[opened])
    wanted = markers(*STRUCTURE, *stops)
    while True:
        found = yield from source.until(wanted, out)
        if not found:
            return False
        if found in stops:
            out("".join(reversed(stack)))
            return True
        out(found)
        if found == '"':
            if not (yield from _verbatim_string(source, out)):
                return False
        elif found in CLOSED_BY:
            stack.append(CLOSED_BY[found])
        else:
            stack.pop()
            if not stack:
                return True


def _verbatim_string(source: Source, out: Out) -> Reading[bool]:
    """The rest of a string, after its opening quote."""
    while True:
        found = yield from source.until(STRING, out)
        if not found:
            return False
        out(found)
        if found == '"':
            return True
        out((yield from source.take()))


def _scalar(source: Source, out: Out) -> Reading[bool]:
    """A number or a word: up to what can follow a value."""
    while True:
        char = yield from source.peek()
        if not char:
            return False
        if char in ',}]"<' or char in SPACE:
            return True
        out((yield from source.take()))


def string(source: Source, out: Out, quote: str = '"', limit: int | None = None) -> Reading[bool]:
    """The contents of a string after its opening quote, escapes resolved; False if the text ended
    in it, or if it is longer than `limit`. Escapes are those of JSON and Python."""
    wanted = STRING if quote == '"' else markers(quote, "\\")
    text = _Unescaped(out)
    while True:
        room = None if limit is None else max(0, limit - text.length)
        found = yield from source.until(wanted, text.add, room)
        if found not in wanted.literals:
            return False
        if found == quote:
            text.end()
            return True
        char = yield from source.take()
        if char not in HEX:
            text.add(ESCAPES.get(char, char if char in "\\/\"'" else "\\" + char))
            continue
        digits = yield from _digits(source, HEX[char])
        if len(digits) == HEX[char]:
            text.add_code(int(digits, 16))
        else:
            text.add(f"\\{char}{digits}")


def _digits(source: Source, count: int) -> Reading[str]:
    digits = ""
    while len(digits) < count:
        char = yield from source.peek()
        if not char or char not in "0123456789abcdefABCDEF":
            break
        digits += yield from source.take()
    return digits


class _Unescaped:
    """Puts the halves of surrogate pairs together; a half by itself is U+FFFD."""

    def __init__(self, out: Out) -> None:
        self._out = out
        self._high = 0
        self.length = 0

    def add(self, text: str) -> None:
        if self._high:
            self._high = 0
            text = REPLACEMENT + text
        self.length += len(text)
        self._out(text)

    def add_code(self, code: int) -> None:
        if self._high and 0xDC00 <= code < 0xE000:
            code = 0x10000 + ((self._high - 0xD800) << 10) + (code - 0xDC00)
            self._high = 0
        if 0xD800 <= code < 0xDC00:
            self.end()
            self._high = code
        else:
            lone = 0xDC00 <= code < 0xE000 or code > 0x10FFFF
            self.add(REPLACEMENT if lone else chr(code))

    def end(self) -> None:
        if self._high:
            self.add("")
