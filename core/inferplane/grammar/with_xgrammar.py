"""Grammars by xgrammar, an extra: its library needs torch and more."""

import json
import re
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
from inferplane.grammar.structural_tag import parse_tags
from inferplane.grammar.structural_tag import plain as is_plain
from inferplane.sampling_params import Constraint

if TYPE_CHECKING:
    from numpy import int32
    from numpy.typing import NDArray

CACHE_BYTES = 256 * 2**20
COMPILE_THREADS = 1
MAX_SPACES = 16
EXACT = {
    "object": "properties required additionalProperties",
    "array": "items prefixItems minItems maxItems",
    "string": "minLength maxLength",
    "integer": "minimum maximum",
}
"""type -> keywords that it enforces where that is the type; it ignores or approximates others"""
ANYWHERE = frozenset("$schema $ref $defs type const enum anyOf".split())
PLAIN_NAME = re.compile(r"[A-Za-z0-9_ .:-]+")


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
            grammar = xgrammar.Grammar.from_structural_tag(json.dumps(tag_of(text)))
    except (RuntimeError, ValueError, TypeError) as error:
        raise refusal(kind, plain(error)) from None
    source: str = grammar.serialize_json()
    return source


def tag_of(text: str) -> Any:
    """xgrammar's own format as it is, SGLang's in it. Schemas inside are rewritten and checked."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    if isinstance(given, dict) and "format" in given:
        return _checked(given)
    spec = parse_tags(text)
    if not is_plain(spec):
        raise refusal("structural_tag", "xgrammar cannot write such parts", "unsupported_parameter")
    tags = [
        {
            "type": "tag",
            "begin": tag["begin"],
            "content": {"type": "json_schema", "json_schema": tag["schema"]},
            "end": tag["end"],
        }
        for tag in spec["structures"]
    ]
    switches = {key: spec[key] for key in ("triggers", "at_least_one", "stop_after_first")}
    inner = {"type": "triggered_tags", "tags": tags, **switches}
    return _checked({"type": "structural_tag", "format": inner})


def _checked(value: Any) -> Any:
    if isinstance(value, list):
        return [_checked(item) for item in value]
    if not isinstance(value, dict):
        return value
    checked = {key: _checked(item) for key, item in value.items() if key != "json_schema"}
    if "json_schema" in value:
        checked["json_schema"] = lower(value["json_schema"])
        check_exact(checked["json_schema"], "")
    return checked


def plain(error: Exception) -> str:
    """xgrammar's messages begin with the time and a line of its source."""
    return re.sub(r"^\[[0-9:]+\] \S+: ", "", str(error)).partition("\n")[0][:300]


def check_exact(schema: Any, at: str) -> None:
    """Unsupported for a keyword of a rewritten schema that is not enforced where it is."""
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")
    exact = EXACT.get(kind, "").split() if isinstance(kind, str) else []
    alone = {"$ref", "anyOf", "enum", "const"} & schema.keys()
    for key, value in schema.items():
        where = child(at, key)
        siblings = schema.keys() - {key, "type", "$schema", "$defs"}
        if key not in exact and (key not in ANYWHERE or (key in alone and siblings)):
            raise Unsupported(key, where, "is not supported by xgrammar here")
        if key in ("properties", "$defs"):
            for name, part in value.items():
                if not PLAIN_NAME.fullmatch(name):
                    raise Unsupported(key, where, "has a name that xgrammar does not support")
                check_exact(part, child(where, name))
        elif key in ("items", "additionalProperties"):
            check_exact(value, where)
        elif key in ("anyOf", "prefixItems"):
            for index, part in enumerate(value):
                check_exact(part, child(where, index))
    names = schema.get("properties", {})
    for name in schema.get("required", []):
        if name not in names:
            raise Unsupported("required", child(at, "required"), "names an unknown property")


class XGrammar:
    """The engine for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary, trial: bool = False) -> None:
        self.vocabulary = vocabulary
        texts = [b"" if i in vocabulary.special else p for i, p in enumerate(vocabulary.pieces)]
        self.longest = max(map(len, texts))
        self._sorted = sorted(filter(None, texts))
        self._first = np.array([piece[0] if piece else -1 for piece in texts])
        hidden = vocabulary.special - vocabulary.ends
        self._info = xgrammar.TokenizerInfo(
            [b"" if i in hidden else piece for i, piece in enumerate(vocabulary.pieces)],
            xgrammar.VocabType.RAW,
            vocab_size=len(vocabulary.pieces),
            stop_token_ids=sorted(vocabulary.ends),
        )
        self._compiler = xgrammar.GrammarCompiler(
            self._info,
            max_threads=COMPILE_THREADS,
            cache_enabled=not trial,
            cache_limit_bytes=CACHE_BYTES,
        )
        self._batch = xgrammar.BatchGrammarMatcher()

    def matcher(self, source: str) -> Matcher:
        try:
            grammar = xgrammar.Grammar.deserialize_json(source)
            return XGrammarMatcher(self, self._compiler.compile_grammar(grammar))
        except (RuntimeError, ValueError) as error:
            raise GrammarError(plain(error)) from None

    def grows(self, piece: bytes, following: set[int]) -> bool:
        """A token begins with these bytes, and then has one of the bytes that may follow."""
        at = bisect_left(self._sorted, piece + b"\0")
        while at < len(self._sorted) and self._sorted[at].startswith(piece):
            if self._sorted[at][len(piece)] in following:
                return True
            at += 1
        return False

    def first_bytes(self, mask: "NDArray[int32]") -> set[int]:
        """With which bytes the tokens of a mask, i32[words], begin; not its ends of sequence."""
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(self._first)]
        return set(self._first[bits.astype(bool)].tolist()) - {-1}

    def fill(self, rows: Sequence[tuple[Matcher, int]], mask: "NDArray[int32]") -> None:
        pairs = [(m, row) for m, row in rows if isinstance(m, XGrammarMatcher)]
        target = torch.from_numpy(mask)
        inner, places = [m.inner for m, _ in pairs], [row for _, row in pairs]
        try:
            self._batch.batch_fill_next_token_bitmask(inner, target, places)
        except RuntimeError:  # one by one, to see whose failure it is
            for matcher, row in pairs:
                try:
                    matcher.inner.fill_next_token_bitmask(target, row)
                except RuntimeError as error:
                    matcher.error = plain(error)


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
        return self._settled(tokens, text.encode())

    def _settled(self, tokens: list[int], text: bytes) -> list[int]:
        """The first of the text's tokens: those that end before any place from which a longer
        token might lead beyond the text."""
        for count, token in enumerate(tokens):
            if not self.inner.accept_token(token):
                self.inner.rollback(count)
                return []  # not to be relied on: leave them to be sampled
        following = self._engine.first_bytes(self._next())
        self.inner.rollback(len(tokens))
        places = range(max(0, len(text) - self._engine.longest), len(text))
        open_from = next((at for at in places if self._engine.grows(text[at:], following)), None)
        if open_from is None:
            return tokens
        settled, end = list[int](), 0
        for token in tokens:
            end += len(self._engine.vocabulary.pieces[token])
            if end > open_from:
                break
            settled.append(token)
        return settled

    def _next(self) -> "NDArray[int32]":
        """The mask of the next token, i32[words]."""
        mask = np.full((1, self._engine.vocabulary.words), -1, np.int32)
        self.inner.fill_next_token_bitmask(torch.from_numpy(mask), 0)
        row: NDArray[int32] = mask[0]
        return row

    @property
    def done(self) -> bool:
        if self.inner.is_terminated():
            return True
        return self.inner.is_completed() and not self._engine.first_bytes(self._next())

    @property
    def may_end(self) -> bool:
        return bool(self.inner.is_completed())


def _text(tokens: list[int], pieces: list[bytes]) -> str:
    return b"".join(pieces[token] for token in tokens).decode("utf-8", "replace")
