"""`inferplane batch`: files of requests, over a fake engine in its own process."""

import json
from pathlib import Path
from typing import Any

import pytest

from inferplane.config import Config
from inferplane.errors import ConfigError, InferplaneError
from inferplane.server.batch import Tally, run_batch
from tests.core.server.byte_model import EOS, byte_tokenizer

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_tokenizer()._backend.save(str(tmp_path / "tokenizer.json"))
    configuration = {"eos_token": "<eos>", "chat_template": "{{ messages[0].content }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(configuration))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS}))
    return tmp_path


def request(name: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    body = body or {"messages": MESSAGES, "max_tokens": 4, "seed": 1}
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "in.jsonl"
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text) + "\n")
    return path


def answer(folder: Path, source: Path, **settings: Any) -> tuple[Tally, list[dict[str, Any]]]:
    target = folder / "out.jsonl"
    config = Config(model=str(folder), **settings)
    tally = run_batch(config, source, target, module="inferplane.testing.fake_engine")
    return tally, [json.loads(line) for line in target.read_text().splitlines()]


def test_answers_and_errors_of_lines(folder: Path) -> None:
    source = write(
        folder,
        request("chat"),
        "",
        request("text", "/v1/completions", prompt="x", max_tokens=3),
        request("refused", temperature=-1, messages=MESSAGES),
        request("unsupported", "/v1/embeddings", input="x"),
        "{broken",
        request("chat"),
        request("no url", "/metrics"),
        request("streamed", stream=True, messages=MESSAGES),
        {**request("more"), "extra": 1},
    )
    shown: list[str] = []
    target = folder / "out.jsonl"
    config = Config(model=str(folder))
    module = "inferplane.testing.fake_engine"
    tally = run_batch(config, source, target, show=shown.append, module=module)
    entries = [json.loads(line) for line in target.read_text().splitlines()]
    assert (tally.total, tally.done, tally.failed) == (9, 9, 7)
    assert shown[-1] == "9 of 9 requests, 7 failed"
    answers = {e["custom_id"]: e["response"] for e in entries if e["error"] is None}
    assert set(answers) == {"chat", "text", "refused", "unsupported"}
    assert answers["chat"]["status_code"] == 200
    assert answers["chat"]["body"]["object"] == "chat.completion"
    assert len(answers["text"]["body"]["choices"][0]["text"]) == 3
    assert answers["refused"]["status_code"] == 400
    assert answers["refused"]["body"]["error"]["param"] == "temperature"
    assert answers["unsupported"]["body"]["error"]["code"] == "unsupported_by_model"
    errors = {e["error"]["line"]: e["error"] for e in entries if e["error"] is not None}
    params = {line: error["param"] for line, error in errors.items()}
    expected = {6: None, 7: "custom_id", 8: "url", 9: "body.stream", 10: "extra"}
    assert params == expected
    assert "line 1" in errors[7]["message"]


def test_goes_on_where_it_was(folder: Path) -> None:
    names = [f"r{i}" for i in range(20)]
    source = write(folder, *map(request, names), "{broken")
    _, whole = answer(folder, source)
    target = folder / "out.jsonl"
    lines = target.read_bytes().splitlines(keepends=True)
    target.write_bytes(b"".join(lines[:9]) + lines[9][:30])
    tally, again = answer(folder, source)
    assert tally.done == tally.total == 21
    assert again[:9] == whole[:9]
    assert sorted(e["custom_id"] or "" for e in again) == sorted([*names, ""])
    texts = {e["custom_id"]: e["response"] and e["response"]["body"]["choices"] for e in whole}
    assert texts == {
        e["custom_id"]: e["response"] and e["response"]["body"]["choices"] for e in again
    }
    before = target.read_bytes()
    answer(folder, source)
    assert target.read_bytes() == before


def test_a_full_queue_is_waited_for(folder: Path) -> None:
    lines = [request(f"r{i}", messages=MESSAGES, n=2, max_tokens=3) for i in range(6)]
    tally, entries = answer(folder, write(folder, *lines), max_running=3, max_queue=3)
    assert tally.failed == 0
    assert {e["response"]["status_code"] for e in entries} == {200}


def test_the_engine_dies(folder: Path) -> None:
    source = write(folder, *(request(f"r{i}") for i in range(3)))
    behaviour = 'fake:{"exit_at_step": 6}'
    config = Config(model=behaviour, max_running=1)
    target = folder / "out.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        from inferplane.checkpoint.source import open_model
        from inferplane.server import batch

        patch.setattr(batch, "open_model", lambda model, revision: open_model(str(folder)))
        with pytest.raises(InferplaneError, match=r"the engine died after 1 of 3 requests: run"):
            run_batch(config, source, target, module="inferplane.testing.fake_engine")
    assert len(target.read_text().splitlines()) == 1
    tally, _ = answer(folder, source)
    assert tally.done == 3


def test_unusable_files(folder: Path) -> None:
    config = Config(model=str(folder))
    source = write(folder, request("a"))
    with pytest.raises(ConfigError, match=r"--input .* cannot be read"):
        run_batch(config, folder / "none", folder / "out")
    with pytest.raises(ConfigError, match=r"--output .* is the input"):
        run_batch(config, source, source)
    with pytest.raises(ConfigError, match=r"--output .* cannot be written"):
        run_batch(config, source, folder)
    for text in ('{"a": 1}\n', '{"a": 1}', "some text"):
        other = folder / "other"
        other.write_text(text)
        with pytest.raises(ConfigError, match=r"line 1 is not a line of a batch output"):
            run_batch(config, source, other)
        assert other.read_text() == text
