"""Turns tokens into text as they come, and stops at a stop string.

Each token's bytes are decoded once. Held back are only the bytes of an unfinished character and
the longest end of the text that may be the beginning of a stop string.
"""

import codecs
from collections.abc import Callable, Mapping, Sequence

from inferplane.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of one sequence. Of several stop strings the one complete first wins, and of those
    complete at the same character the longest, so that the result does not depend on how many
    tokens come at a time."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        skip_special_tokens: bool = True,
        shown: Mapping[int, str] | None = None,
        include_stop: bool = False,
    ) -> None:
        """`shown` has texts for special tokens that a parser must see."""
        self._piece = _shown(tokenizer, shown) if shown else tokenizer.token_bytes
        self._skip = frozenset[int]()
        if skip_special_tokens:
            self._skip = tokenizer.special_ids - frozenset(shown or ())
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.strip_start
        self._include_stop = include_stop
        self._held = ""
        self.stopped: str | None = None
        """the stop string that ended the text"""
        self.watch(stop)

    def watch(self, stop: Sequence[str]) -> None:
        """Look for these stop strings in the text that follows, and for no others."""
        self._matchers = [_Matcher(s) for s in sorted(set(stop), key=len, reverse=True) if s]

    def push(self, ids: Sequence[int]) -> str:
        """New text that is safe to send; "" after a stop string."""
        piece = self._piece
        return self._take(
            self._bytes.decode(b"".join([piece(i) for i in ids if i not in self._skip]))
        )

    def flush(self) -> str:
        """What was held back, at the end of the sequence; an unfinished character is U+FFFD."""
        sent = self._take(self._bytes.decode(b"", final=True))
        rest, self._held = self._held, ""
        return sent + rest

    def _take(self, text: str) -> str:
        if self.stopped is not None or not text:
            return ""
        while self._strip and text:
            if text[0] == " ":
                text = text[1:]
                self._strip -= 1
            else:
                self._strip = 0
        if not self._matchers:
            return text
        return self._search(text)

    def _search(self, text: str) -> str:
        start = len(self._held)
        text = self._held + text
        for at in range(start, len(text)):
            for matcher in self._matchers:
                if matcher.feed(text[at]):
                    self.stopped = matcher.stop
                    self._held = ""
                    end = at + 1
                    return text[: end if self._include_stop else end - len(matcher.stop)]
        safe = len(text) - max(matcher.matched for matcher in self._matchers)
        self._held = text[safe:]
        return text[:safe]


def _shown(tokenizer: Tokenizer, shown: Mapping[int, str]) -> Callable[[int], bytes]:
    texts = {token: text.encode() for token, text in shown.items()}

    def piece(token: int) -> bytes:
        text = texts.get(token)
        return tokenizer.token_bytes(token) if text is None else text

    return piece


class _Matcher:
    """Knuth-Morris-Pratt search for one stop string, a character at a time. `matched` is how much
    of it the text ends with."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._fallback = [0] * len(stop)
        """for each length - 1, the longest shorter prefix that is also an end of that prefix"""
        length = 0
        for at in range(1, len(stop)):
            while length and stop[at] != stop[length]:
                length = self._fallback[length - 1]
            length += stop[at] == stop[length]
            self._fallback[at] = length

    def feed(self, char: str) -> bool:
        """Whether the stop string is now complete."""
        while self.matched and char != self.stop[self.matched]:
            self.matched = self._fallback[self.matched - 1]
        self.matched += char == self.stop[self.matched]
        return self.matched == len(self.stop)
