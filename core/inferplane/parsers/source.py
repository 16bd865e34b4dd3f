"""Text that is read while it comes.

A reader is a generator: it yields where it needs more text, and goes on when there is some. What
it reads depends on the characters alone, never on how they were cut into pieces. Every character
is looked at a bounded number of times, and held back is only the longest end of the text that may
be the beginning of a marker.
"""

import re
from collections.abc import Callable, Generator, Iterable, Mapping
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


def stand_ins(literals: Iterable[str]) -> dict[str, str]:
    """A character of its own for each special token, from those that Unicode leaves to private
    use. So a marker that is a token is told from the same marker in words, which is text."""
    return {text: chr(0xF0000 + i) for i, text in enumerate(sorted(set(literals)))}


class Source:
    """The text of one answer. `special` are the stand-ins by which special tokens are in it: as
    markers they go by their names, anywhere else they are dropped."""

    def __init__(self, special: Mapping[str, str] | None = None) -> None:
        self._special = dict(special or {})
        self._names = {char: name for name, char in self._special.items()}
        self._text = ""
        self._at = 0
        self._closed = False
        self._record: list[str] | None = None

    def _spelled(self, wanted: Markers, *more: str) -> Markers:
        """These markers as the text has them."""
        if not self._special:
            return wanted
        return markers(*(self._special.get(t, t) for t in wanted.literals), *more)

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
        seen = self._spelled(wanted)
        while True:
            rest = self._text[self._at : self._at + seen.longest]
            open_end = not self._closed and len(rest) < seen.longest
            if not (open_end and any(t != rest and t.startswith(rest) for t in seen.literals)):
                found = next((t for t in seen.literals if rest.startswith(t)), "")
                self._take(len(found))
                return self._names.get(found, found)
            yield

    def until(self, wanted: Markers, out: Out, limit: int | None = None) -> Reading[str]:
        """Give `out` what comes before the next marker, and take the marker.

        Returns the marker, "" at the end of the text, or OVER after exactly `limit` characters
        if more than those come before one.
        """
        seen = self._spelled(wanted, *self._names)
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
                marker = self._names.get(marker, marker)
                if marker in wanted.literals:
                    return marker
            elif self._closed:
                return ""
            else:
                yield
