"""Our tokenizer against transformers and `tokenizers` on the same files."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from inferplane.checkpoint.source import ModelSource
from inferplane.errors import ModelError, RequestError
from inferplane.text.tokenizer import Tokenizer, load_folder
from tests.core.text.vocabularies import NAUGHTY, byte_fallback, byte_level, metaspace

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save(folder: Path, backend: Backend, **config: Any) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    written = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    return folder


@pytest.fixture(scope="module")
def demo_pair(
    demo_model: ModelSource, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Any]:
    """The demo model's vocabulary, ours and as transformers loads it from a folder."""
    from inferplane.text.gguf_vocab import convert

    backend = convert(demo_model.file)  # type: ignore[attr-defined]
    folder = save(
        tmp_path_factory.mktemp("demo"),
        backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
    )
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    return load_folder(folder, {}, {}), theirs


@pytest.mark.parametrize("text", NAUGHTY, ids=range(len(NAUGHTY)))
def test_naughty_strings_as_transformers(demo_pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = demo_pair
    ids = theirs.encode(text)
    assert ours.encode(text) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]
    for prompt in (True, False):
        chat = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert ours.render_chat(messages, add_generation_prompt=prompt) == chat
        encoded = theirs.apply_chat_template(
            messages, add_generation_prompt=prompt, return_dict=False
        )
        assert ours.encode_chat(messages, add_generation_prompt=prompt) == encoded


def test_demo_model_matches_its_gguf_read_by_transformers(
    demo_model: ModelSource, demo_pair: tuple[Tokenizer, Any]
) -> None:
    ours = demo_model.tokenizer()
    for text in NAUGHTY:
        assert ours.encode(text) == demo_pair[1].encode(text)
    assert ours.vocab_size == 49152
    assert ours.bos_id == 1
    assert 2 in ours.eos_ids
    assert ours.encode("x y") == ours.encode("x y", add_special_tokens=False)


@pytest.mark.parametrize(
    "backend", [byte_level(), byte_fallback(False), byte_fallback(True), metaspace()]
)
def test_decoding_is_that_of_tokenizers(backend: Backend) -> None:
    tokenizer = Tokenizer(backend, eos_ids=[])
    for text in NAUGHTY:
        ids = backend.encode(text).ids
        assert tokenizer.decode(ids) == backend.decode(ids)
        assert tokenizer.decode(ids, False) == backend.decode(ids, skip_special_tokens=False)


def test_any_bytes_decode_as_in_tokenizers() -> None:
    backend = byte_level()
    tokenizer = Tokenizer(backend, eos_ids=[])
    rng = random.Random(0)
    for _ in range(2000):
        ids = [rng.randrange(263) for _ in range(rng.randrange(12))]
        assert tokenizer.decode(ids) == backend.decode(ids)


def test_bytes_and_text_of_a_token() -> None:
    tokenizer = Tokenizer(byte_level(), eos_ids=[])
    assert [tokenizer.token_bytes(i) for i in (0x41, 0xE2, 256)] == [b"A", b"\xe2", b"\xf0\x9f"]
    assert tokenizer.token_text(0xE2) == "\ufffd"
    assert tokenizer.token_bytes(tokenizer.encode("<|end|>")[0]) == b"<|end|>"
    for absent in (-1, tokenizer.vocab_size, 2**40):
        assert tokenizer.token_bytes(absent) == b""
    assert tokenizer.decode([0x41, 10**6, 0x42]) == "AB"
    marked = Tokenizer(byte_fallback(True), eos_ids=[])
    assert marked.token_bytes(3 + 0xE2) == b"\xe2"
    assert marked.token_text(marked.encode("the")[0]) == " th"


def test_no_decoder_joins_words_with_spaces() -> None:
    backend = Backend(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    tokenizer = Tokenizer(backend, eos_ids=[])
    assert tokenizer.decode([1, 2, 0]) == backend.decode([1, 2, 0]) == "b c a"


def test_unknown_decoder_is_refused() -> None:
    backend = byte_level()
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ModelError, match=r"decoder has step .*WordPiece.* supported steps: Byte"):
        Tokenizer(backend, eos_ids=[])


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(RequestError, match="half of a surrogate") as caught:
        Tokenizer(byte_level(), eos_ids=[]).encode("a\ud83d")
    assert caught.value.status == 400


def test_prompts_are_never_cut_or_padded() -> None:
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    assert Tokenizer(backend, eos_ids=[]).encode("abcdef") == list(b"abcdef")


@pytest.mark.parametrize(
    ("config", "generation", "named", "expected"),
    [
        (7, None, None, {7}),
        (7, 8, None, {8}),
        (7, [8, 9], None, {8, 9}),
        (None, [8], "<|end|>", {8, 261}),
        (None, None, {"content": "<|end|>"}, {261}),
        (None, None, None, set()),
    ],
)
def test_ids_that_end(
    tmp_path: Path, config: Any, generation: Any, named: Any, expected: set[int]
) -> None:
    save(tmp_path, byte_level(), eos_token=named)
    tokenizer = load_folder(tmp_path, {"eos_token_id": config}, {"eos_token_id": generation})
    assert tokenizer.eos_ids == expected


def test_ids_that_end_must_be_ids(tmp_path: Path) -> None:
    save(tmp_path, byte_level())
    with pytest.raises(ModelError, match="eos_token_id is 'x', must be"):
        load_folder(tmp_path, {}, {"eos_token_id": "x"})


def test_tokens_that_only_the_config_has(tmp_path: Path) -> None:
    added = {
        "262": {"content": "added é token", "special": False},
        "263": {"content": "<|new|>", "special": True},
        "264": {"content": "plain", "special": False, "normalized": False},
    }
    save(tmp_path, byte_level(), added_tokens_decoder=added)
    tokenizer = load_folder(tmp_path, {}, {})
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    text = "a<|new|>b plain added é token"
    assert tokenizer.encode(text) == theirs.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == "ab plain added é token"


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        load_folder(tmp_path, {}, {})
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json must hold a JSON object"):
        load_folder(tmp_path, {}, {})
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json is not valid JSON"):
        load_folder(tmp_path, {}, {})


def test_without_tokenizer_json_transformers_converts(tmp_path: Path) -> None:
    backend = byte_level()
    state = json.loads(backend.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(state["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(m) for m in state["merges"]))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "Ġt", "bos_token": "Ġt"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"unk_token": "a"}))
    tokenizer = load_folder(tmp_path, {}, {})
    assert tokenizer.encode("the é 😀") == backend.encode("the é 😀").ids


def test_folder_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    save(tmp_path, byte_level(), chat_template=TEMPLATE)
    path = [entry for entry in sys.path if entry.endswith("core")]
    program = (
        f"import sys; sys.path[:0] = {path!r}\n"
        "from pathlib import Path\n"
        "from inferplane.text.tokenizer import load_folder\n"
        "from inferplane.text.detokenizer import Detokenizer\n"
        f"t = load_folder(Path({str(tmp_path)!r}), {{}}, {{}})\n"
        "ids = t.encode_chat([{'role': 'user', 'content': 'x'}])\n"
        "print(Detokenizer(t).push(ids)[:12], {'torch', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "<|im_start|> set()\n", done.stderr
