"""Converts the vocabulary in GGUF metadata to a `tokenizers.Tokenizer`.

Knows byte-level BPE ("gpt2", with the pre-tokenizers below) and sentencepiece BPE ("llama").
A converted vocabulary is kept in the cache folder under the digest of its metadata.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from inferplane.errors import ModelError
from inferplane.text.pieces import SPACE_MARK

CONVERSION = 1
"""part of the cache key; raise it when the conversion changes"""

UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6
"""token types; 1 is a normal token"""

KEY = "tokenizer.ggml."


class Vocabulary(Protocol):
    """The metadata of a GGUF file."""

    def get(self, key: str, default: Any = None) -> Any: ...

    def metadata_digest(self) -> str: ...


def cached_tokenizer(vocabulary: Vocabulary, cache: Path) -> Tokenizer:
    """The converted vocabulary, from the cache folder if it is there."""
    path = cache / "vocabulary" / f"{vocabulary.metadata_digest()[:32]}-{CONVERSION}.json"
    if path.is_file():
        try:
            return Tokenizer.from_file(str(path))
        except Exception:  # the package raises plain Exception; a damaged entry is made again
            path.unlink(missing_ok=True)
    tokenizer = convert(vocabulary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / path.name
            tokenizer.save(str(part), pretty=False)
            os.replace(part, path)
    except OSError:  # a read-only cache only means converting again next time
        pass
    return tokenizer


def convert(vocabulary: Vocabulary) -> Tokenizer:
    """Build the tokenizer; ModelError for a kind of vocabulary that we do not know."""
    kind = vocabulary.get(KEY + "model")
    tokens = vocabulary.get(KEY + "tokens")
    if kind not in ("gpt2", "llama") or not tokens:
        raise ModelError(
            f"the GGUF file has a vocabulary of kind {kind!r} with {len(tokens or [])} tokens;"
            " kinds that are read: gpt2 (byte-level BPE), llama (sentencepiece BPE)"
        )
    types = vocabulary.get(KEY + "token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise ModelError(f"the GGUF file has {len(tokens)} tokens but {len(types)} token types")
    try:
        if kind == "gpt2":
            tokenizer, bos = _byte_level(vocabulary, tokens)
        else:
            tokenizer, bos = _sentencepiece(vocabulary, tokens, types), True
    except ModelError:
        raise
    except Exception as error:  # the package raises plain Exception, e.g. for a merge it lacks
        raise ModelError(f"the GGUF file's vocabulary is inconsistent: {error}") from error
    _add_tokens(tokenizer, tokens, types)
    _add_template(tokenizer, vocabulary, bos)
    return tokenizer


def special_tokens(vocabulary: Vocabulary) -> dict[str, str]:
    """Role -> token, as chat templates see them."""
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    tokens = vocabulary.get(KEY + "tokens") or []
    ids = {f"{role}_token": vocabulary.get(f"{KEY}{key}_token_id") for role, key in roles.items()}
    return {role: tokens[i] for role, i in ids.items() if i is not None and 0 <= i < len(tokens)}


def _ids(tokens: list[str]) -> dict[str, int]:
    """Token -> id; of equal tokens the first one counts."""
    return {token: i for i, token in reversed(list(enumerate(tokens)))}


def _byte_level(vocabulary: Vocabulary, tokens: list[str]) -> tuple[Tokenizer, bool]:
    name = vocabulary.get(KEY + "pre", "default")
    family = next((f for f in FAMILIES if name in f.names), None)
    if family is None:
        known = ", ".join(sorted(n for f in FAMILIES for n in f.names))
        raise ModelError(f"the GGUF file has pre-tokenizer {name!r}, those that are read: {known}")
    merges = []
    for merge in vocabulary.get(KEY + "merges") or []:
        left, _, right = merge[1:].partition(" ")
        merges.append((merge[0] + left, right))
    tokenizer = Tokenizer(
        models.BPE(vocab=_ids(tokens), merges=merges, ignore_merges=family.whole_words)
    )
    if family.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = family.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, family.bos


def _sentencepiece(vocabulary: Vocabulary, tokens: list[str], types: list[int]) -> Tokenizer:
    scores = vocabulary.get(KEY + "scores")
    if not scores or len(scores) != len(tokens):
        raise ModelError(f"the GGUF file has {len(tokens)} tokens but {len(scores or [])} scores")
    # Conversion to GGUF writes the spaces of user-defined tokens out; the model has marks.
    marked = [
        token.replace(" ", SPACE_MARK) if kind == USER_DEFINED else token
        for token, kind in zip(tokens, types, strict=True)
    ]
    ids = _ids(marked)
    unknown = next((t for t, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=_merges(marked, types, scores, ids),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=BYTE in types,
        )
    )
    prefix = vocabulary.get(KEY + "add_space_prefix", True)
    to_mark: normalizers.Normalizer = normalizers.Replace(" ", SPACE_MARK)
    if prefix:
        to_mark = normalizers.Sequence([normalizers.Prepend(SPACE_MARK), to_mark])
    tokenizer.normalizer = to_mark
    steps = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges(
    tokens: list[str], types: list[int], scores: list[float], ids: Mapping[str, int]
) -> list[tuple[str, str]]:
    """sentencepiece joins the two neighbours that make the token of the highest score; so each
    way to split a token in two tokens is a merge, in falling order of the token's score."""
    found: list[tuple[float, int, int, str, str]] = []
    for token, kind, score in zip(tokens, types, scores, strict=True):
        if kind in (UNKNOWN, CONTROL, UNUSED, BYTE):
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                found.append((-score, ids[left], ids[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _add_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Tokens that are found in the text before anything else: control tokens, which decoding may
    skip, and user-defined ones. Runs of spaces are left to the merges."""
    special = [t for t, kind in zip(tokens, types, strict=True) if kind in (CONTROL, UNKNOWN)]
    plain = [
        t
        for t, kind in zip(tokens, types, strict=True)
        if kind == USER_DEFINED and t.strip(" " + SPACE_MARK)
    ]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in plain])


def _add_template(tokenizer: Tokenizer, vocabulary: Vocabulary, bos_by_default: bool) -> None:
    """What goes around a text: BOS before it, EOS after it, as the file says."""
    special = special_tokens(vocabulary)
    wanted = {
        "bos_token": vocabulary.get(KEY + "add_bos_token", bos_by_default),
        "eos_token": vocabulary.get(KEY + "add_eos_token", False),
    }
    used = {role: special[role] for role, wish in wanted.items() if wish and role in special}
    if used:
        parts = [used.get("bos_token"), "$A", used.get("eos_token")]
        tokenizer.post_processor = TemplateProcessing(
            single=[part for part in parts if part is not None],
            special_tokens=[(t, tokenizer.token_to_id(t)) for t in sorted(set(used.values()))],
        )


class _Family:
    """Pre-tokenizers that cut text the same way, under the names that GGUF files have for them."""

    def __init__(
        self,
        names: tuple[str, ...],
        pre_tokenizer: Callable[[], pre_tokenizers.PreTokenizer],
        *,
        whole_words: bool = False,
        bos: bool = False,
        nfc: bool = False,
    ) -> None:
        self.names = names
        self.pre_tokenizer = pre_tokenizer
        self.whole_words = whole_words
        """a word that is a token is taken whole, without merging"""
        self.bos = bos
        """BOS is added even if the file does not say so"""
        self.nfc = nfc


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _pattern(regex: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    def build() -> pre_tokenizers.PreTokenizer:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(regex), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    return build


CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + REST
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + REST
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

FAMILIES = (
    _Family(("default", "gpt-2", "phi-2"), _gpt2),
    _Family(("smollm", "starcoder", "refact", "command-r"), _digits),
    _Family(("llama-bpe", "llama3", "llama-v3"), _pattern(LLAMA3), whole_words=True, bos=True),
    _Family(("qwen2", "deepseek-r1-qwen"), _pattern(QWEN2), nfc=True),
    _Family(("tekken",), _pattern(TEKKEN), whole_words=True, bos=True),
)
