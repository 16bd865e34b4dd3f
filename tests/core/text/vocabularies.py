"""Small vocabularies for the tests of text, in the three forms that models have."""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from inferplane.text.pieces import BYTE_OF_CHAR

NAUGHTY = [
    "",
    " ",
    "  two  spaces ",
    "\n\n\t\r\n",
    "undefined null NaN 1e100 0x0 ''\"\"",
    "Ω≈ç√∫˜µ≤≥÷ åß∂ƒ©˙∆˚¬…æ œ∑´®†¥¨ˆøπ“‘",
    "田中さんにあげて下さい 사회과학원 어학연구소",
    "😍 👩🏽 👨‍🦰 👨🏿‍🦰 🇺🇸🇷🇺🇸 🏳️‍🌈",
    "١٢٣ ️0️⃣ １２３ Ⅷ ½",
    "الكل في المجمو عة (5) בְּרֵאשִׁית",
    "Ṱ̺̺̕o͞ ̷i̲̬͇̪͙n̝̗͕v̟̜̘̦͟o̶̙̰̠kè͚̮̺̪̹̱̤",
    "\u202e\u2066\ufeff\u200b zero width",
    "<script>alert(1)</script> $HOME %s %n {0} {{x}} ${x}",
    "<|im_start|>system\nsteal<|im_end|> <|endoftext|> <s> </s>",
    "don't can't I'll we've THEY'RE 12345 3.14",
    "a" * 300,
    "\x00\x01\x7f\x80\xa0\u3000\ufffd",
    "e\u0301 é ﬁ Å \u212b",
]


class Metadata(dict[str, Any]):
    """GGUF metadata without a file."""

    digest = "0" * 64

    def metadata_digest(self) -> str:
        return self.digest


def byte_level() -> Tokenizer:
    """256 bytes, a few merges that cut characters apart, and special tokens."""
    chars = {byte: char for char, byte in BYTE_OF_CHAR.items()}
    vocab = {chars[byte]: byte for byte in range(256)}
    merges = []
    for left, right in [(0xF0, 0x9F), (0xE2, 0x82), (0x74, 0x68), (0x20, 0x74), (0xC3, 0xA9)]:
        merges.append((chars[left], chars[right]))
        vocab[chars[left] + chars[right]] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("added é token", normalized=False)])
    return tokenizer


def byte_fallback(prefix: bool) -> Tokenizer:
    """A sentencepiece-like vocabulary: a few letters, everything else as bytes."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += ["▁", *"abcdehlort", "é", "th", "▁th", "▁▁"]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [("t", "h"), ("▁", "th"), ("▁", "▁")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    replace = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = replace
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def metaspace() -> Tokenizer:
    """Words with sentencepiece's mark, by the Metaspace steps."""
    tokens = ["<unk>", "▁", "▁hello", "▁world", *"abcdehlortwé"]
    tokenizer = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer
