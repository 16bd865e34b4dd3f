"""Text that is read while it comes.

A reader is a generator: it yields where it needs more text, and goes on when there is some. What
it reads depends on the characters alone, never on how they were cut into pieces. Every character
is looked at a bounded number of times, and held back is only the longest end of the text that may
be the beginning of a marker.
"""

import re
from collections.abc import Callable, Generator, Iterable
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
Out = Callable[[str], object]

SPACE = " \t\r\n"
OVER = "over"
"""what `until` returns instead of a marker when its limit is reached"""


class Markers:
    """Literal strings to look for. Of several the leftmost counts, and there the longest."""

    def __init__(self, literals: Iterable[str]) -> None:
        self.literals = tuple(sorted({t for t in literals if t}, key=lambda t: (-len(t), t)))
        self.longest = max(map(len, self.literals), default=0)
        self._prefixes = {t[:n] for t in self.literals for n in range(1, len(t))}
        # an alternation of literals: nothing in it can backtrack further than one literal
        pattern = "|".join(map(re.escape, self.literals)) or "(?!)"
        self.search = re.compile(pattern).search

    def held(self, text: str, at: int) -> int:
        """How many characters at the end of `text` may be the beginning of a marker."""
        for count in range(min(self.longest - 1, len(text) - at), 0, -1):
            if text[-count:] in self._prefixes:
                return count
        return 0


@lru_cache(maxsize=256)
def markers(*literals: str) -> Markers:
    return Markers(literals)


class Source:
    """The text of one answer. `hidden` are markers that are dropped wherever they are not what is
    looked for: the special tokens among them are nothing that a client should see."""

    def __init__(self, hidden: Iterable[str] = ()) -> None:
        self._hidden = tuple(hidden)
        self._text = ""
        self._at = 0
        self._closed = False
        self._record: list[str] | None = None

    def feed(self, text: str) -> None:
        self._text = self._text[self._at :] + text
        self._at = 0

    def close(self) -> None:
        """No more text comes."""
        self._closed = True

    def record(self) -> None:
        """Remember what is read from here on."""
        self._record = []

    def recorded(self) -> str:
        """What was read since `record`, which ends."""
        raw, self._record = "".join(self._record or ()), None
        return raw

    def _take(self, count: int) -> str:
        piece = self._text[self._at : self._at + count]
        self._at += count
        if self._record is not None and piece:
            self._record.append(piece)
        return piece

    def peek(self) -> Reading[str]:
        """The next character, not taken; "" at the end of the text."""
        while self._at == len(self._text) and not self._closed:
            yield
        return self._text[self._at : self._at + 1]

    def take(self) -> Reading[str]:
        """The next character; "" at the end of the text."""
        yield from self.peek()
        return self._take(1)

    def skip(self, chars: str = SPACE) -> Reading[str]:
        """Take all that follows of `chars`; the next character, as `peek`."""
        while True:
            char = yield from self.peek()
            if not char or char not in chars:
                return char
            self._take(1)

    def one_of(self, wanted: Markers) -> Reading[str]:
        """Take the longest of these that the text goes on with; "" for none of them."""
        while True:
            rest = self._text[self._at : self._at + wanted.longest]
            open_end = not self._closed and len(rest) < wanted.longest
            if not (open_end and any(t != rest and t.startswith(rest) for t in wanted.literals)):
                found = next((t for t in wanted.literals if rest.startswith(t)), "")
                return self._take(len(found))
            yield

    def until(self, wanted: Markers, out: Out, limit: int | None = None) -> Reading[str]:
        """Give `out` what comes before the next marker, and take the marker.

        Returns the marker, "" at the end of the text, or OVER after exactly `limit` characters
        if more than those come before one.
        """
        seen = markers(*wanted.literals, *self._hidden) if self._hidden else wanted
        room = float("inf") if limit is None else limit
        while True:
            found = seen.search(self._text, self._at)
            keep = 0 if self._closed else seen.held(self._text, self._at)
            certain = len(self._text) - keep
            if found is not None and found.start() >= certain:
                found = None  # a longer marker may begin here
            free = (certain if found is None else found.start()) - self._at
            if free > room:
                out(self._take(int(room)))
                return OVER
            if free:
                out(self._take(free))
                room -= free
            if found is not None:
                marker = self._take(len(found.group()))
                if marker in wanted.literals:
                    return marker
            elif self._closed:
                return ""
            else:
                yield
