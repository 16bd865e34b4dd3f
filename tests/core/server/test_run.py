"""`serve` as a process: what it prints, and how it ends."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from inferplane.config import Config
from inferplane.errors import ConfigError
from inferplane.server.run import DEAD_ENGINE_EXIT_CODE, FAST_EXIT_CODE, listen
from tests.core.server.byte_model import EOS, byte_tokenizer
from tests.devices.poison import POISON

REPO = Path(__file__).parents[3]
FAKE = "inferplane.testing.fake_engine"
POISONED = "tests.devices.poison"
CODE = """
import sys
from inferplane.config import Config
from inferplane.errors import InferplaneError
from inferplane.server.run import serve
model, module, device, length = sys.argv[1:]
config = Config(
    model=model, port=0, max_model_len=int(length), served_model_name="tiny", device=device
)
try:
    code = serve(config, module=module)
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


def arguments(
    folder: Path, module: str = FAKE, device: str = "auto", length: int = 100_000_000
) -> list[str]:
    return [sys.executable, "-W", "error", "-c", CODE, str(folder), module, device, str(length)]


@contextmanager
def serving(
    folder: Path, *others: Any, path: str = "core"
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """(process, url); `others` as for `arguments`"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(REPO / p) for p in path.split())}
    process = subprocess.Popen(
        arguments(folder, *others), stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            line = process.stdout.readline()
            while not line.startswith("serving"):  # what a real engine reports while it starts
                assert line and not line.startswith("try:"), line
                line = process.stdout.readline()
            assert line.startswith("serving tiny on http://127.0.0.1:")
            url = line.split()[-1]
            assert process.stdout.readline().startswith(f"try: curl {url}/v1/chat/completions ")
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


def test_a_device_that_fails(folder: Path) -> None:
    """While one request streams and another waits: both get an error, and the process ends with
    the code that supervisors start it again for."""
    endless = {"max_tokens": 400, "ignore_eos": True, "logit_bias": {str(POISON): -100}}
    stream = {"prompt": [1, 2, 3], "stream": True, **endless}
    with (
        serving(folder, POISONED, "failing", 512, path="core models .") as (process, url),
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        assert http.get("/health/ready").status_code == 200
        with http.stream("POST", "/v1/completions", json=stream) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: {")
            waited = httpx.post(f"{url}/v1/completions", json={"prompt": [1, POISON]}, timeout=60)
            assert waited.status_code == 503
            assert waited.json()["error"]["code"] == "engine_dead"
            rest = [line for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "engine_dead"
        assert process.wait(30) == DEAD_ENGINE_EXIT_CODE


def test_an_engine_that_is_killed_while_idle(folder: Path) -> None:
    with serving(folder) as (process, _):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        assert process.wait(30) == DEAD_ENGINE_EXIT_CODE


def test_an_engine_that_does_not_start(tmp_path: Path, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPO / "core")}
    process = subprocess.run(
        arguments(folder, "inferplane.testing.no_such_engine"),
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
        arguments(folder),
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
