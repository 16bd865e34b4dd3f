"""Grammars by xgrammar, an extra: its library needs torch and more."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xgrammar

from inferplane.grammar.contract import GrammarError, Matcher, Vocabulary, refusal
from inferplane.grammar.lark import plain_regex
from inferplane.grammar.schema.document import Unsupported, child
from inferplane.grammar.schema.lower import lower, parse_schema
from inferplane.sampling_params import Constraint

if TYPE_CHECKING:
    from numpy import int32
    from numpy.typing import NDArray

CACHE_BYTES = 256 * 2**20
COMPILE_THREADS = 1
MAX_SPACES = 16
EXACT = frozenset(
    "$schema $ref $defs type const enum properties required additionalProperties items"
    " prefixItems anyOf minItems maxItems minLength maxLength minimum maximum".split()
)
"""keywords that it enforces in every combination; it ignores or approximates others"""


def source_of(constraint: Constraint, whitespace: str) -> str:
    """xgrammar's serialized form. RequestError for what it cannot enforce exactly."""
    kind, text = constraint.kind, constraint.text
    if constraint.after:
        raise refusal(kind, "xgrammar cannot begin it after a text", "unsupported_parameter")
    try:
        if kind == "json_schema":
            schema = lower(parse_schema(text))
            check_exact(schema, "")
            grammar = xgrammar.Grammar.from_json_schema(
                schema,
                any_whitespace=whitespace == "flexible",
                separators=(",", ":") if whitespace == "compact" else None,
                max_whitespace_cnt=MAX_SPACES if whitespace == "flexible" else None,
                strict_mode=False,
            )
        elif kind == "regex":
            grammar = xgrammar.Grammar.from_regex(plain_regex(text))
        elif kind == "ebnf":
            grammar = xgrammar.Grammar.from_ebnf(text)
        else:
            grammar = xgrammar.Grammar.from_structural_tag(text)
    except (RuntimeError, ValueError, TypeError) as error:
        raise refusal(kind, str(error).partition("\n")[0][:300]) from None
    source: str = grammar.serialize_json()
    return source


def check_exact(schema: Any, at: str) -> None:
    """Unsupported for a keyword of a rewritten schema that is not in EXACT."""
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        where = child(at, key)
        if key not in EXACT:
            raise Unsupported(key, where, "is not supported by xgrammar")
        if key in ("properties", "$defs"):
            for name, part in value.items():
                check_exact(part, child(where, name))
        elif isinstance(value, dict) and key in ("items", "additionalProperties"):
            check_exact(value, where)
        elif key in ("anyOf", "prefixItems"):
            for index, part in enumerate(value):
                check_exact(part, child(where, index))
    if ("$ref" in schema or "anyOf" in schema or "enum" in schema) and len(
        schema.keys() - {"$schema", "$defs", "type"}
    ) > 1:
        raise Unsupported("anyOf", at, "with siblings is not supported by xgrammar")


class XGrammar:
    """The engine for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._sorted = sorted((p, i) for i, p in enumerate(vocabulary.pieces) if p)
        hidden = vocabulary.special - vocabulary.ends
        self._info = xgrammar.TokenizerInfo(
            [b"" if i in hidden else piece for i, piece in enumerate(vocabulary.pieces)],
            xgrammar.VocabType.RAW,
            vocab_size=len(vocabulary.pieces),
            stop_token_ids=sorted(vocabulary.ends),
        )
        self._compiler = xgrammar.GrammarCompiler(
            self._info, max_threads=COMPILE_THREADS, cache_limit_bytes=CACHE_BYTES
        )
        self._batch = xgrammar.BatchGrammarMatcher()

    def matcher(self, source: str) -> Matcher:
        try:
            grammar = xgrammar.Grammar.deserialize_json(source)
            return XGrammarMatcher(self, self._compiler.compile_grammar(grammar))
        except (RuntimeError, ValueError) as error:
            raise GrammarError(str(error).partition("\n")[0][:300]) from None

    def longer(self, piece: bytes) -> list[int]:
        """Tokens that begin with these bytes and have more of them."""
        at = bisect_left(self._sorted, (piece + b"\0", -1))
        found = []
        while at < len(self._sorted) and self._sorted[at][0].startswith(piece):
            found.append(self._sorted[at][1])
            at += 1
        return found

    def fill(self, rows: Sequence[tuple[Matcher, int]], mask: "NDArray[int32]") -> None:
        pairs = [(m, row) for m, row in rows if isinstance(m, XGrammarMatcher)]
        try:
            self._batch.batch_fill_next_token_bitmask(
                [matcher.inner for matcher, _ in pairs],
                torch.from_numpy(mask),
                [row for _, row in pairs],
            )
        except RuntimeError as error:  # which of them it was is not said
            for matcher, _ in pairs:
                matcher.error = str(error).partition("\n")[0][:300]


class XGrammarMatcher:
    """A Matcher."""

    def __init__(self, engine: XGrammar, compiled: Any) -> None:
        self.inner = xgrammar.GrammarMatcher(compiled)
        self.error = ""
        self._engine = engine
        self._last: int | None = None

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if not self.inner.accept_token(token):
                self.error = f"token {token} does not satisfy the grammar"
                raise GrammarError(self.error)
            self._last = token

    def rollback(self, count: int) -> None:
        self.inner.rollback(count)
        self._last = None

    def forced(self) -> list[int]:
        text = self.inner.find_jump_forward_string()
        if not text or self.inner.is_terminated():
            return []
        pieces, encode = self._engine.vocabulary.pieces, self._engine.vocabulary.encode
        tokens = encode(text)
        if self._last is not None:  # tokenized behind the token before, as the model would
            before = pieces[self._last].decode("utf-8", "replace")
            joint = encode(before + text)
            if joint[0] == self._last and before + text == _text(joint, pieces):
                tokens = joint[1:]
        rest, cut = b"", len(tokens)
        for at in reversed(range(len(tokens))):  # leave what may merge with what follows
            rest = pieces[tokens[at]] + rest
            longer = self._engine.longer(rest)
            if longer and self._allows(tokens[:at], longer):
                cut = at
        return tokens[:cut]

    def _allows(self, tokens: list[int], candidates: list[int]) -> bool:
        """One of the candidates may come after the tokens."""
        for count, token in enumerate(tokens):
            if not self.inner.accept_token(token):
                self.inner.rollback(count)
                return True  # not to be relied on: leave them to be sampled
        mask = self._next()
        if tokens:
            self.inner.rollback(len(tokens))
        return any(mask[c // 32] >> (c % 32) & 1 for c in candidates)

    def _next(self) -> list[int]:
        """The words of the mask."""
        mask = np.full((1, self._engine.vocabulary.words), -1, np.int32)
        self.inner.fill_next_token_bitmask(torch.from_numpy(mask), 0)
        return mask[0].tolist()  # type: ignore[no-any-return]

    @property
    def done(self) -> bool:
        if self.inner.is_terminated():
            return True
        if not self.inner.is_completed():
            return False
        mask = self._next()
        for end in self._engine.vocabulary.ends:
            mask[end // 32] &= ~(1 << (end % 32))
        return not any(word & 0xFFFFFFFF for word in mask)

    @property
    def may_end(self) -> bool:
        return bool(self.inner.is_completed())


def _text(tokens: list[int], pieces: list[bytes]) -> str:
    return b"".join(pieces[token] for token in tokens).decode("utf-8", "replace")
