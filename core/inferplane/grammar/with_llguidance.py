"""Grammars by llguidance: derivatives of regular expressions below an Earley parser."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import llguidance

from inferplane.grammar.contract import GrammarError, Matcher, Vocabulary

if TYPE_CHECKING:
    from numpy import int32
    from numpy.typing import NDArray

MOST_CACHED_BYTES = 4 * 2**20
"""of grammar text, each with a matcher at its start to copy"""
MAX_THREADS = 8
ROWS_A_THREAD = 8
"""fewer than so many rows are filled sooner than another thread has been woken"""


MOST_STATES, MOST_TRIAL_STATES = 50_000, 20_000
"""of the lexer, for a sequence and for a trial; each takes 1 to 2 kB and about 2 us to make"""


def limits(states: int) -> Any:
    """What one grammar may cost. A mask reaches `step_max_items` after 1 ms, and
    the library's own limit of work in the lexer after 14 ms."""
    return llguidance.LLParserLimits(
        max_lexer_states=states,
        max_grammar_size=200_000,
        step_max_items=20_000,
        verbose_errors=False,
    )


class LLGuidance:
    """The engine for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary, trial: bool = False) -> None:
        """Remembers compiled grammars, as the sequences of a request have equal ones; a `trial`
        does not, and has stricter limits."""
        self._keep = not trial
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Tokens(vocabulary)),
            n_vocab=len(vocabulary.pieces),
            eos_token=sorted(vocabulary.ends),
        )
        self._limits = limits(MOST_TRIAL_STATES if trial else MOST_STATES)
        threads = min(MAX_THREADS, len(os.sched_getaffinity(0)) // 2)
        self._executor = llguidance.LLExecutor(threads) if threads > 1 else None
        self._lock = threading.Lock()  # of what is remembered
        self._start: OrderedDict[str, Any] = OrderedDict()
        self._cached_bytes = 0

    def matcher(self, source: str) -> Matcher:
        start = self._start.get(source)
        if start is None:
            start = llguidance.LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
            if start.is_error():
                raise GrammarError(first_line(start.get_error()))
            if not self._keep:
                return LLGuidanceMatcher(start)
            self._remember(source, start)
        return LLGuidanceMatcher(start.deep_copy())

    def _remember(self, source: str, start: Any) -> None:
        with self._lock:
            if source in self._start:
                return
            self._start[source] = start
            self._cached_bytes += len(source)
            while self._cached_bytes > MOST_CACHED_BYTES and len(self._start) > 1:
                self._cached_bytes -= len(self._start.popitem(last=False)[0])

    def fill(self, rows: Sequence[tuple[Matcher, int]], mask: "NDArray[int32]") -> None:
        pairs = [(m.inner, row) for m, row in rows if isinstance(m, LLGuidanceMatcher)]
        count, words = mask.shape
        start, size = mask.ctypes.data, 4 * words
        if self._executor is not None and len(pairs) > ROWS_A_THREAD:
            self._executor.unsafe_compute_mask_ptr(pairs, start, size, count)
            return
        for inner, row in pairs:
            inner.unsafe_compute_mask_ptr(start + row * size, size)


class LLGuidanceMatcher:
    """A Matcher. llguidance reports failures by a state that it never leaves."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def accept(self, tokens: Sequence[int]) -> None:
        if not self.inner.consume_tokens(list(tokens)):
            raise GrammarError(self.error)

    def rollback(self, count: int) -> None:
        if not self.inner.rollback(count):
            raise GrammarError(self.error)

    def forced(self) -> list[int]:
        tokens: list[int] = self.inner.compute_ff_tokens()
        return tokens

    @property
    def done(self) -> bool:
        return bool(self.inner.is_stopped()) and not self.inner.is_error()

    @property
    def may_end(self) -> bool:
        return bool(self.inner.is_accepting())

    @property
    def error(self) -> str:
        return first_line(self.inner.get_error()) if self.inner.is_error() else ""


class _Tokens:
    """A vocabulary as llguidance wants to see it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = vocabulary.pieces
        self.special_token_ids = sorted(vocabulary.special)
        self.eos_token_id = min(vocabulary.ends)
        self.bos_token_id = None
        self._encode = vocabulary.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text.decode() if isinstance(text, bytes) else text)


def first_line(message: str) -> str:
    """Errors go on with the state of the parser, which is the client's text."""
    return message.partition("\n")[0][:300]
