"""Vocabularies in GGUF metadata: conversion and its cache."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferplane.errors import ModelError
from inferplane.text import gguf_vocab
from inferplane.text.gguf_vocab import FAMILIES, cached_tokenizer, convert, special_tokens
from inferplane.text.pieces import BYTE_OF_CHAR
from inferplane.text.tokenizer import Tokenizer, load_gguf
from tests.core.text.vocabularies import NAUGHTY, Metadata, byte_level

CHARS = [char for char, _ in sorted(BYTE_OF_CHAR.items(), key=lambda item: item[1])]
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6


def keys(**values: Any) -> Metadata:
    return Metadata({f"tokenizer.ggml.{key}": value for key, value in values.items()})


def byte_bpe(pre: str = "smollm", **more: Any) -> Metadata:
    """256 bytes, some merges, a control and a user-defined token."""
    tokens = [*CHARS, "th", "Ġt", "Ġth", "the", "<|end|>", "<tool>", "<|bos|>"]
    types = [NORMAL] * 260 + [CONTROL, USER_DEFINED, CONTROL]
    merges = ["t h", "Ġ t", "Ġt h", "th e"]
    return keys(
        model="gpt2",
        pre=pre,
        tokens=tokens,
        token_type=types,
        merges=merges,
        bos_token_id=262,
        eos_token_id=260,
        **more,
    )


def split(pre: str, text: str) -> list[str]:
    pieces = convert(byte_bpe(pre)).pre_tokenizer.pre_tokenize_str(text)
    return [bytes(BYTE_OF_CHAR[c] for c in piece).decode() for piece, _ in pieces]


SPLITS = {
    "default": ["It", "'s", " IT", "'", "S", " 12345", "!?", " \n", " x", " déjà", " \t", " y"],
    "smollm": ["It", "'s", " IT", "'", "S", " ", *"12345", "!?", " \n", " x", " déjà", " \t", " y"],
    "llama-bpe": [
        "It",
        "'s",
        " IT",
        "'S",
        " ",
        "123",
        "45",
        "!?",
        " \n",
        " x",
        " déjà",
        " \t",
        " y",
    ],
    "qwen2": ["It", "'s", " IT", "'S", " ", *"12345", "!?", " \n", " x", " déjà", " \t", " y"],
    "tekken": ["It", "'s", " IT", "'S", " ", *"12345", "!?", " \n", " x", " déjà", " \t", " y"],
}


@pytest.mark.parametrize("pre", SPLITS)
def test_pre_tokenizers(pre: str) -> None:
    assert split(pre, "It's IT'S 12345!? \n x déjà \t y") == SPLITS[pre]


def test_every_name_converts_and_keeps_all_text() -> None:
    for name in [name for family in FAMILIES for name in family.names]:
        tokenizer = Tokenizer(convert(byte_bpe(name)), eos_ids=[])
        nfc = name in ("qwen2", "deepseek-r1-qwen")
        for text in NAUGHTY:
            ids = tokenizer.encode(text, add_special_tokens=False)
            if not nfc:
                assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_qwen_composes_characters() -> None:
    plain, composed = convert(byte_bpe("llama-bpe")), convert(byte_bpe("qwen2"))
    assert composed.encode("e\u0301").ids == composed.encode("é").ids
    assert plain.encode("e\u0301").ids != plain.encode("é").ids


def test_merges_and_added_tokens() -> None:
    tokenizer = Tokenizer(convert(byte_bpe()), eos_ids=[260])
    assert tokenizer.encode("the the<|end|>x<tool>") == [259, 32, 259, 260, 120, 261]
    assert tokenizer.special_ids == {260, 262}
    assert tokenizer.decode([259, 260, 261]) == "the<tool>"


def test_whole_words_are_taken_without_merges() -> None:
    vocabulary = byte_bpe("llama-bpe")
    vocabulary["tokenizer.ggml.merges"] = []
    assert convert(vocabulary).encode("the", add_special_tokens=False).ids == [259]
    vocabulary["tokenizer.ggml.pre"] = "smollm"
    assert convert(vocabulary).encode("the").ids == [116, 104, 101]


@pytest.mark.parametrize(
    ("pre", "more", "expected"),
    [
        ("smollm", {}, [97]),
        ("llama-bpe", {}, [262, 97]),
        ("llama-bpe", {"add_bos_token": False}, [97]),
        ("smollm", {"add_bos_token": True, "add_eos_token": True}, [262, 97, 260]),
    ],
)
def test_what_goes_around_a_text(pre: str, more: dict[str, Any], expected: list[int]) -> None:
    tokenizer = convert(byte_bpe(pre, **more))
    assert tokenizer.encode("a").ids == expected
    assert tokenizer.encode("a", add_special_tokens=False).ids == [97]


PIECES = "a b c ab bc ca abc aa ▁ ▁a ▁ab ▁b ▁▁ é éa abca".split()
SCORES = [-float(i) for i in (9, 8, 7, 3, 1, 5, 4, 2, 12, 6, 0.5, 10, 11, 13, 2.5, 0.25)]


def sentencepiece(prefix: bool = False, **more: Any) -> Metadata:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *PIECES, "\n\n", "  "]
    types = [2, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(PIECES) + [USER_DEFINED] * 2
    return keys(
        model="llama",
        tokens=tokens,
        token_type=types,
        scores=[0.0] * 259 + SCORES + [-50.0, -50.0],
        add_space_prefix=prefix,
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
        **more,
    )


SENTENCEPIECE = convert(sentencepiece())


def joined_by_score(text: str) -> list[str]:
    """sentencepiece's rule, word for word: join the best neighbours until none are left."""
    score = dict(zip(PIECES, SCORES, strict=True))
    parts = list(text.replace(" ", "▁"))
    while True:
        pairs = [(score.get(a + b), -i) for i, (a, b) in enumerate(pairwise(parts))]
        best = max((p for p in pairs if p[0] is not None), default=None)
        if best is None:
            return parts
        at = -best[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("abc é"), max_size=20))
def test_sentencepiece_joins_by_score(text: str) -> None:
    encoding = SENTENCEPIECE.encode(text, add_special_tokens=False)
    assert encoding.tokens == joined_by_score(text)
    assert SENTENCEPIECE.decode(encoding.ids) == text


def test_sentencepiece_bytes_and_special_tokens() -> None:
    tokenizer = Tokenizer(SENTENCEPIECE, eos_ids=[2], special={"bos_token": "<s>"})
    assert tokenizer.encode("€") == [1, 3 + 0xE2, 3 + 0x82, 3 + 0xAC]
    assert tokenizer.decode(tokenizer.encode("€ a\n\nb")) == "€ a\n\nb"
    newlines = 259 + len(PIECES)
    assert newlines in tokenizer.encode("a\n\nb")
    assert tokenizer.special_ids == {0, 1, 2}
    for text in NAUGHTY:
        if "<" not in text:
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_prefix_space() -> None:
    tokenizer = Tokenizer(convert(sentencepiece(prefix=True)), eos_ids=[])
    assert tokenizer.token_text(tokenizer.encode("ab", add_special_tokens=False)[0]) == " ab"
    for text in ("ab", " ab", "  ab c "):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "kind 'bert' .*: gpt2 .* llama"),
        ({"tokens": []}, "with 0 tokens"),
        ({"pre": "unheard-of"}, "pre-tokenizer 'unheard-of', those that are read: .*llama-bpe"),
        ({"merges": ["q zz"]}, "vocabulary is inconsistent"),
        ({"merges": [""]}, "vocabulary is inconsistent"),
        ({"token_type": [1]}, "263 tokens but 1 token types"),
    ],
)
def test_vocabularies_that_are_not_read(changes: dict[str, Any], message: str) -> None:
    vocabulary = byte_bpe() | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(ModelError, match=message):
        convert(Metadata(vocabulary))


def test_sentencepiece_without_scores_is_refused() -> None:
    with pytest.raises(ModelError, match="tokens but 1 scores"):
        convert(Metadata(sentencepiece() | {"tokenizer.ggml.scores": [0.0]}))


def test_roles_of_special_tokens() -> None:
    assert special_tokens(byte_bpe()) == {"bos_token": "<|bos|>", "eos_token": "<|end|>"}
    assert special_tokens(keys(tokens=["a"], bos_token_id=5)) == {}


def test_templates_in_metadata(tmp_path: Path) -> None:
    vocabulary = byte_bpe()
    assert not load_gguf(vocabulary, {}, None, tmp_path).has_chat_template
    vocabulary["tokenizer.chat_template"] = "{{ bos_token }}d"
    vocabulary["tokenizer.chat_templates"] = ["tool_use"]
    vocabulary["tokenizer.chat_template.tool_use"] = "t"
    tokenizer = load_gguf(vocabulary, {"eos_token_id": [260]}, None, tmp_path)
    assert tokenizer.encode_chat([]) == [262, 100]
    assert tokenizer.render_chat([], tools=[{}]) == "t"
    assert tokenizer.eos_ids == {260}
    assert tokenizer.bos_id == 262
    assert load_gguf(vocabulary, {}, "given", tmp_path).render_chat([]) == "given"


def test_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def counted(vocabulary: Any) -> Any:
        calls.append(vocabulary)
        return convert(vocabulary)

    monkeypatch.setattr(gguf_vocab, "convert", counted)
    vocabulary = byte_bpe()
    first = cached_tokenizer(vocabulary, tmp_path)
    again = cached_tokenizer(vocabulary, tmp_path)
    assert len(calls) == 1
    for text in NAUGHTY:
        assert first.encode(text).ids == again.encode(text).ids
    [entry] = (tmp_path / "vocabulary").iterdir()
    vocabulary.digest = "1" * 64
    cached_tokenizer(vocabulary, tmp_path)
    assert len(calls) == 2
    entry.write_text("damaged")
    vocabulary.digest = "0" * 64
    assert cached_tokenizer(vocabulary, tmp_path).encode("the").ids == [259]
    assert len(calls) == 3
    cached_tokenizer(vocabulary, tmp_path)
    assert len(calls) == 3


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert cached_tokenizer(byte_bpe(), tmp_path / "file").encode("the").ids == [259]


def test_byte_table_is_that_of_tokenizers() -> None:
    backend = byte_level()
    for byte in range(128):
        token = backend.encode(chr(byte)).tokens[0]
        assert BYTE_OF_CHAR[token] == byte
    assert sorted(BYTE_OF_CHAR.values()) == list(range(256))
