"""What a grammar engine offers: a compiled grammar, the state of each sequence in it, and masks.

A constraint is compiled once, on the side of the API, to a Grammar: the text that one engine
takes. The side that runs the model makes a Matcher of it for each sequence. The text decides
everything: nothing else of the request is looked at again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from inferplane.errors import InferplaneError, RequestError

if TYPE_CHECKING:
    from numpy import int32
    from numpy.typing import NDArray

LLGUIDANCE, XGRAMMAR = "llguidance", "xgrammar"


class GrammarError(InferplaneError):
    """A sequence cannot go on in its grammar: a limit is reached, or a token is not allowed. Only
    its request fails."""


class Grammar(msgspec.Struct, frozen=True):
    """A compiled constraint. `source` is what the engine of this name takes: llguidance's own
    format, or xgrammar's serialized grammar. `slow`: its matcher takes long to build."""

    engine: str
    source: str
    slow: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model as engines see them.

    `pieces` has the bytes of each token id, empty for ids that must never be sampled by a grammar;
    its length is the width of the logits. `special` ids stand for no text. `ends` are the ids that
    end a sequence. `encode` tokenizes a text without adding anything to it.
    """

    pieces: list[bytes]
    special: frozenset[int]
    ends: frozenset[int]
    encode: Callable[[str], list[int]]

    @property
    def words(self) -> int:
        """i32 words of one row of a bitmask"""
        return -(-len(self.pieces) // 32)


class Matcher(Protocol):
    """How far one sequence has got in its grammar."""

    def accept(self, tokens: Sequence[int]) -> None:
        """Take tokens, in order. GrammarError if one is not allowed."""
        ...

    def rollback(self, count: int) -> None:
        """Give back the last `count` accepted tokens, as after a draft that was not accepted."""
        ...

    def forced(self) -> list[int]:
        """Tokens that the grammar leaves no choice about, tokenized as the model would: the last
        ones stay out if they might merge with what follows. They are not yet accepted."""
        ...

    @property
    def done(self) -> bool:
        """The output is complete and nothing may follow it."""
        ...

    @property
    def may_end(self) -> bool:
        """The output would be complete if it ended here."""
        ...

    @property
    def error(self) -> str:
        """Why it cannot go on; "" if it can."""
        ...


class Engine(Protocol):
    """A library for grammars, with one vocabulary."""

    def matcher(self, source: str) -> Matcher:
        """A sequence at its start. GrammarError if the source cannot be compiled. Any thread may
        call it."""
        ...

    def fill(self, rows: Sequence[tuple[Matcher, int]], mask: "NDArray[int32]") -> None:
        """Write the tokens that each matcher allows into its row of i32[n, words], bit 0 of a
        word first. Runs outside the interpreter lock. A matcher that fails says so in `error`."""
        ...


def refusal(kind: str, why: str, code: str = "invalid_grammar") -> RequestError:
    """The answer to a constraint that cannot be used."""
    return RequestError(f"{kind}: {why}", param=kind, code=code)
