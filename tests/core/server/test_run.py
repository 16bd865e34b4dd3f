"""`serve` as a process: what it prints, and how it ends."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from inferplane.config import Config
from inferplane.errors import ConfigError
from inferplane.server.run import FAST_EXIT_CODE, listen
from tests.core.server.byte_model import EOS, byte_tokenizer

REPO = Path(__file__).parents[3]
CODE = """
import sys
from inferplane.config import Config
from inferplane.errors import InferplaneError
from inferplane.server.run import serve
try:
    code = serve(
        Config(model=sys.argv[1], port=0, max_model_len=100_000_000, served_model_name="tiny"),
        module="inferplane.testing.fake_engine",
    )
except InferplaneError as error:
    sys.exit(f"error: {error}")
sys.exit(code)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with all that the API process reads."""
    byte_tokenizer()._backend.save(str(tmp_path / "tokenizer.json"))
    configuration = {"eos_token": "<eos>", "chat_template": "{{ messages[0].content }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(configuration))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    generation = {"eos_token_id": [EOS, 300], "temperature": 0.25}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return tmp_path


@contextmanager
def serving(folder: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """(process, url)"""
    environment = {**os.environ, "PYTHONPATH": str(REPO / "core")}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CODE, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            lines = [process.stdout.readline() for _ in range(3)]
            assert lines[0] == "loading nothing\n"
            assert lines[1].startswith("serving tiny on http://127.0.0.1:")
            url = lines[1].split()[-1]
            assert lines[2].startswith(f"try: curl {url}/v1/chat/completions ")
            yield process, url
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish(folder: Path, number: signal.Signals) -> None:
    body = {"prompt": "x", "max_tokens": 3000, "stream": True}
    with serving(folder) as (process, url), httpx.Client(base_url=url, timeout=60) as http:
        assert http.get("/health/ready").status_code == 200
        with http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: {")
            process.send_signal(number)
            assert process.stdout is not None
            assert process.stdout.readline().startswith("stopping")
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert process.wait(30) == 0


def test_a_second_signal_does_not_wait(folder: Path) -> None:
    body = {"prompt": "x", "max_tokens": 90_000_000, "stream": True}
    with (
        serving(folder) as (process, url),
        httpx.Client(base_url=url, timeout=60) as http,
        http.stream("POST", "/v1/completions", json=body) as response,
    ):
        assert next(response.iter_lines()).startswith("data: {")
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("stopping")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == FAST_EXIT_CODE


def test_a_signal_while_idle_and_the_curl_line(folder: Path) -> None:
    with serving(folder) as (process, url):
        messages = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 5}
        answer = httpx.post(f"{url}/v1/chat/completions", json=messages).json()
        assert len(answer["choices"][0]["message"]["content"]) == 5
        assert "server" not in httpx.get(f"{url}/health/live").headers
        process.terminate()
        assert process.wait(20) == 0


def test_an_engine_that_does_not_start(tmp_path: Path, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPO / "core")}
    code = CODE.replace("fake_engine", "no_such_engine")
    process = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert process.returncode == 1
    assert "error: The engine did not start: " in process.stderr
    assert "exit code 1" in process.stderr
    assert "serving" not in process.stdout


def test_a_vocabulary_that_cannot_be_read(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    environment = {**os.environ, "PYTHONPATH": str(REPO / "core")}
    process = subprocess.run(
        [sys.executable, "-c", CODE, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert process.returncode == 1
    assert "error: " in process.stderr and "tokenizer.json" in process.stderr


def test_a_taken_port() -> None:
    with listen(Config(model="m", port=0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}"):
            listen(Config(model="m", port=port))


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("inferplane.server.http", {"torch", "transformers"}),
        ("inferplane.server.run", {"torch", "transformers", "fastapi", "uvicorn"}),
    ],
)
def test_what_is_not_imported(module: str, absent: set[str]) -> None:
    """Before the engine process starts, nothing that can be imported beside it."""
    code = f"import {module}, sys; print({absent} & {{*sys.modules}})"
    environment = {**os.environ, "PYTHONPATH": str(REPO / "core")}
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert output.stdout.strip() == "set()", output.stderr
