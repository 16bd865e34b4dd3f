"""From a constraint to the Grammar of an engine that enforces it exactly, or a refusal.

Runs where it may take time and memory, and be killed: see trial_worker.
"""

import importlib.util
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from inferplane.errors import ConfigError, RequestError
from inferplane.grammar.contract import (
    LLGUIDANCE,
    XGRAMMAR,
    Engine,
    Grammar,
    GrammarError,
    Vocabulary,
    refusal,
)
from inferplane.grammar.engines import open_engine
from inferplane.grammar.lark import lark_grammar, lark_regex
from inferplane.grammar.schema.document import child
from inferplane.grammar.schema.lower import CONSTRAINING, lower, parse_schema
from inferplane.grammar.structural_tag import lark_of
from inferplane.sampling_params import Constraint

if TYPE_CHECKING:
    from numpy import int32
    from numpy.typing import NDArray

WHITESPACE: dict[str, dict[str, Any]] = {
    "compact": {"whitespace_flexible": False},
    "flexible": {"whitespace_flexible": True, "whitespace_pattern": r"[ \n\r\t]{0,16}"},
}
TRIED_TOKENS, FREE_TOKENS = 128, 2
MASK_SECONDS, FREE_SECONDS = 0.002, 0.02
"""of a processor, that the masks of a walk may take: for each token, and once"""
SLOW_SECONDS = 0.02
"""a matcher that takes longer to build is built in what time others leave"""
CLOSING, CLOSING_SHARE = (b'"', b"}", b"]", b",", b":"), 0.3
"""first bytes of tokens which end a part of a text, and how often a walk prefers them"""
MAX_SEARCHED = 200
"""parts of a refused schema that are tried alone, to name the one at fault"""


@dataclass(frozen=True)
class Choices:
    """What the server's configuration says: see config."""

    backend: str = "auto"
    whitespace: str = "compact"

    def __post_init__(self) -> None:
        if self.backend == XGRAMMAR and importlib.util.find_spec(XGRAMMAR) is None:
            raise ConfigError(
                "--grammar-backend is xgrammar, which is not installed:"
                " pip install inferplane[xgrammar]"
            )


class Compiler:
    """Compiles for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary, choices: Choices) -> None:
        self._vocabulary = vocabulary
        self._choices = choices
        installed = importlib.util.find_spec(XGRAMMAR) is not None
        every = (LLGUIDANCE, XGRAMMAR) if installed else (LLGUIDANCE,)
        self._names = every if choices.backend == "auto" else (choices.backend,)
        self._json = WHITESPACE[choices.whitespace]
        self._engines: dict[str, Engine] = {}
        pieces = enumerate(vocabulary.pieces)
        self._ending = bits_of(vocabulary, vocabulary.ends)
        self._walked = ~self._ending & bits_of(vocabulary, range(len(vocabulary.pieces)))
        self._closing = bits_of(vocabulary, (i for i, piece in pieces if piece[:1] in CLOSING))

    def warm_up(self) -> None:
        """Load what compiling needs, so that it is in nobody's time limit."""
        for name in self._names:
            self._with(name, Constraint("regex", "a"))

    def compile(self, constraint: Constraint) -> Grammar:
        """RequestError names the field, and for schemas the keyword and its JSON pointer."""
        first: RequestError | None = None
        for name in self._names:
            try:
                return self._with(name, constraint)
            except RequestError as error:
                first = first or error
        assert first is not None
        raise first

    def _with(self, name: str, constraint: Constraint) -> Grammar:
        grammar = self._grammar(name, constraint)
        try:
            if constraint.after:  # tokens come before it, which tell nothing
                grammar = self._try(grammar, FREE_TOKENS)
                self._try(self._grammar(name, msgspec.structs.replace(constraint, after="")))
            else:
                grammar = self._try(grammar)
        except GrammarError as error:
            if constraint.kind == "json_schema":
                raise self._located(json.loads(constraint.text), str(error)) from None
            raise refusal(constraint.kind, str(error)) from None
        return grammar

    def _grammar(self, name: str, constraint: Constraint) -> Grammar:
        if name == XGRAMMAR:
            from inferplane.grammar.with_xgrammar import source_of

            return Grammar(XGRAMMAR, source_of(constraint, self._choices.whitespace))
        return Grammar(LLGUIDANCE, self._llguidance(constraint))

    def _try(self, grammar: Grammar, tokens: int = TRIED_TOKENS) -> Grammar:
        """Walk through the grammar for so many tokens. GrammarError if the engine cannot take
        them, or reaches a limit of work or states on the way."""
        import numpy as np

        engine = self._engines.get(grammar.engine)
        if engine is None:
            engine = self._engines[grammar.engine] = open_engine(
                grammar.engine, self._vocabulary, trial=True
            )
        begin = time.thread_time()
        matcher = engine.matcher(grammar.source)
        built = time.thread_time()
        draw, seconds = Random(0), 0.0
        mask = np.full((1, self._vocabulary.words), -1, np.int32)
        for step in range(tokens):
            begun = time.thread_time()
            engine.fill([(matcher, 0)], mask)
            seconds += time.thread_time() - begun
            if matcher.error:
                raise GrammarError(matcher.error)
            if seconds > FREE_SECONDS + MASK_SECONDS * (step + 1):
                raise GrammarError(
                    f"its masks take {1e3 * seconds / (step + 1):.1f} ms a token,"
                    f" at most {1e3 * MASK_SECONDS:g}: simplify it"
                )
            token = self._pick(mask[0], draw)
            if token is None:
                break
            matcher.accept([token])
            if matcher.done:
                break
        return msgspec.structs.replace(grammar, slow=built - begin > SLOW_SECONDS)

    def _pick(self, row: "NDArray[int32]", draw: Random) -> int | None:
        """A token that a mask, i32[words], allows: often one that closes something, so that a
        walk leaves strings and lists. None: only the end is allowed."""
        import numpy as np

        bits = row & self._walked
        closing = bits & self._closing
        if draw.random() < CLOSING_SHARE and closing.any():
            bits = closing
        words = np.flatnonzero(bits)
        if not len(words):
            if not (row & self._ending).any():
                raise GrammarError("nothing can satisfy it")
            return None
        word = draw.choice(words)
        ones = np.flatnonzero(int(bits[word]) >> np.arange(32) & 1)
        return int(32 * word + draw.choice(ones))

    def _llguidance(self, constraint: Constraint) -> str:
        kind, text = constraint.kind, constraint.text
        answer: dict[str, Any]
        if kind == "json_schema":
            answer = {"json_schema": self._guided(lower(parse_schema(text)))}
        elif kind == "regex":
            answer = {"lark_grammar": f"start: /{lark_regex(text)}/"}
        elif kind == "ebnf":
            answer = {"lark_grammar": lark_grammar(text)}
        else:
            answer = {"lark_grammar": lark_of(text, self._special(), self._json)}
        if not constraint.after:
            return json.dumps({"grammars": [answer]})
        marker = self._special().get(constraint.after)
        if marker is not None:
            lark = f"start: FREE <[{marker}]> @answer\nFREE: /(?s:.*)/"
        else:
            suffix = json.dumps(constraint.after)
            lark = f"start: before @answer\nbefore[suffix={suffix}]: /(?s:.*)/"
        return json.dumps({"grammars": [{"lark_grammar": lark}, {"name": "answer", **answer}]})

    def _special(self) -> dict[str, int]:
        """The text of special tokens, and which they are."""
        pieces = self._vocabulary.pieces
        named = ((pieces[i].decode("utf-8", "replace"), i) for i in self._vocabulary.special)
        return {text: token for text, token in named if text}

    def _guided(self, schema: dict[str, Any]) -> dict[str, Any]:
        return {**schema, "x-guidance": self._json}

    def _located(self, root: Any, why: str) -> RequestError:
        """Which keyword of a refused schema it was: the smallest part that is refused alone."""
        if not isinstance(root, dict):
            return refusal("json_schema", why, "unsupported_schema")
        shared = {k: root[k] for k in ("$defs", "definitions", "$id", "id") if k in root}
        for pointer, schema in sorted(parts_of(root), key=lambda part: -part[0].count("/")):
            if self._usable({**shared, **schema} if pointer else schema):
                continue
            if why.startswith("Unsatisfiable"):
                why = f"the schema at {pointer or '/'} allows nothing: {why}"
                return refusal("json_schema", why, "unsatisfiable_schema")
            for keyword in schema:
                rest = {k: v for k, v in schema.items() if k != keyword}
                if keyword in CONSTRAINING and self._usable({**shared, **rest}):
                    where = child(pointer, keyword)
                    why = f"keyword {keyword!r} at {where} is not supported: {why}"
                    return refusal("json_schema", why, "unsupported_schema")
            why = f"the schema at {pointer or '/'} is not supported: {why}"
            return refusal("json_schema", why, "unsupported_schema")
        return refusal("json_schema", why, "unsupported_schema")

    def _usable(self, schema: Any) -> bool:
        try:
            source = json.dumps({"grammars": [{"json_schema": self._guided(lower(schema))}]})
            self._try(Grammar(LLGUIDANCE, source))
        except RequestError:
            return True  # refused for another reason, such as a reference that it has lost
        except GrammarError:
            return False
        return True


def bits_of(vocabulary: Vocabulary, tokens: Iterable[int]) -> "NDArray[int32]":
    """A mask, i32[words], of these tokens."""
    import numpy as np

    flags = np.zeros(32 * vocabulary.words, np.uint8)
    flags[list(tokens)] = 1
    mask: NDArray[int32] = np.packbits(flags, bitorder="little").view(np.int32)
    return mask


def parts_of(root: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(pointer, schema) of a schema and those inside it."""
    todo = [("", root)]
    for pointer, schema in todo:
        if not isinstance(schema, dict) or len(todo) > MAX_SEARCHED:
            continue
        yield pointer, schema
        for key, value in schema.items():
            if key in ("properties", "patternProperties", "$defs", "definitions"):
                inside = value.items() if isinstance(value, dict) else ()
                todo += [(child(pointer, key, name), part) for name, part in inside]
            elif key in ("allOf", "anyOf", "oneOf", "prefixItems") and isinstance(value, list):
                todo += [(child(pointer, key, i), part) for i, part in enumerate(value)]
            elif key in CONSTRAINING and isinstance(value, dict):
                todo.append((child(pointer, key), value))
