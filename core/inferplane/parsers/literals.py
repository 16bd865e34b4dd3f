"""Values in notations that are not JSON, turned into JSON while they are read."""

import re
from dataclasses import dataclass

from inferplane.parsers.json_text import quoted, string
from inferplane.parsers.source import SPACE, Out, Reading, Source, markers

MAX_WORD = 256
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
WORDS = {"True": "true", "False": "false", "None": "null"}
WORDS |= {word: word for word in ("true", "false", "null")}
CLOSED_BY = {"{": "}", "[": "]", "(": "]"}


@dataclass(frozen=True, slots=True)
class Notation:
    """`quotes` are the delimiters of strings that know escapes, `raw` of those that do not, and
    `ends` what ends a word. A key may stand without quotes; a word that is no number and none of
    WORDS is a string."""

    quotes: str = "\"'"
    raw: str = ""
    ends: str = ",}])"
    brackets: str = "[{("


PYTHON = Notation()


def literal(source: Source, out: Out, notation: Notation, opened: str = "") -> Reading[bool]:
    """Read one value and give it to `out` as JSON; False if the text ended in it or right after a
    word. `opened` is the bracket it begins with, if that has been taken. Nesting is kept on a
    list, not by recursion."""
    reader = _Reader(source, out, notation)
    if opened:
        reader.open(opened)
    else:
        yield from source.skip()
        if not (yield from reader.item()):
            return False
    while reader.stack:
        if not (yield from reader.next()):
            return False
    return True


def text_of(source: Source, notation: Notation, limit: int) -> Reading[str | None]:
    """A string, if one begins here."""
    kept: list[str] = []
    if notation.raw and (yield from source.one_of(markers(notation.raw))):
        found = yield from source.until(markers(notation.raw), kept.append, limit)
        return "".join(kept) if found == notation.raw else None
    quote = yield from source.peek()
    if not quote or quote not in notation.quotes:
        return None
    yield from source.take()
    whole = yield from string(source, kept.append, quote, limit)
    return "".join(kept) if whole else None


class _Reader:
    """`stack` has the bracket that ends each open container."""

    def __init__(self, source: Source, out: Out, notation: Notation) -> None:
        self._source = source
        self._out = out
        self._notation = notation
        self._empty: list[bool] = []
        self.stack: list[str] = []

    def open(self, bracket: str) -> None:
        self.stack.append(CLOSED_BY[bracket])
        self._empty.append(True)
        self._out("[" if bracket == "(" else bracket)

    def next(self) -> Reading[bool]:
        """One item or one closing bracket of the innermost container."""
        char = yield from self._source.skip(SPACE + ",")
        if not char:
            return False
        if char in ")]}":
            yield from self._source.take()
            self._empty.pop()
            self._out(self.stack.pop())
            return True
        if not self._empty[-1]:
            self._out(", ")
        self._empty[-1] = False
        if self.stack[-1] == "}" and not (yield from self._key()):
            return False
        return (yield from self.item())

    def _key(self) -> Reading[bool]:
        key = yield from text_of(self._source, self._notation, MAX_WORD)
        if key is None:
            key = yield from self._word(",:={}[]()")
        self._out(f'"{quoted(key)}": ')
        if (yield from self._source.skip()) in (":", "="):
            yield from self._source.take()
            yield from self._source.skip()
        return True

    def item(self) -> Reading[bool]:
        source, notation = self._source, self._notation
        if notation.raw and (yield from source.one_of(markers(notation.raw))):
            self._out('"')
            found = yield from source.until(markers(notation.raw), self._quote)
            return self._end(bool(found))
        char = yield from source.peek()
        if not char:
            return False
        if char in notation.brackets:
            self.open((yield from source.take()))
        elif char in notation.quotes:
            yield from source.take()
            self._out('"')
            return self._end((yield from string(source, self._quote, char)))
        else:
            return (yield from self._plain())
        return True

    def _plain(self) -> Reading[bool]:
        """A number or a word; one that is longer than any of these is passed on as it comes."""
        word = yield from self._word(self._notation.ends)
        if len(word) == MAX_WORD:
            self._out('"')
            while word:
                self._quote(word)
                word = yield from self._word(self._notation.ends)
            return self._end(True)
        word = word.strip()
        if word in WORDS:
            self._out(WORDS[word])
        elif NUMBER.fullmatch(word):
            self._out(word)
        else:
            self._out(f'"{quoted(word)}"')
        return bool((yield from self._source.peek()))

    def _quote(self, text: str) -> None:
        self._out(quoted(text))

    def _end(self, whole: bool) -> bool:
        if whole:
            self._out('"')
        return whole

    def _word(self, ends: str) -> Reading[str]:
        """Up to one of `ends`, and at most MAX_WORD characters."""
        kept: list[str] = []
        while len(kept) < MAX_WORD:
            char = yield from self._source.peek()
            if not char or char in ends:
                break
            kept.append((yield from self._source.take()))
        return "".join(kept)
