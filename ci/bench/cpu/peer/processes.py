"""Runs one engine in a process of its own and reads what it reaches.

Every process is the only one that computes, in a session of its own that is ended with it.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ci.bench.cpu.peer.install import CORES, PEERS, Unavailable, environment, last_line
from ci.bench.machine import INFERPLANE, run_json
from ci.bench.startup import children, first_token, memory

REPOSITORY = Path(__file__).parents[4]
DRIVERS = Path(__file__).parent / "drivers"
OURS = "inferplane"
DEADLINE = 600.0

Found = dict[str, float]


def surroundings(engine: str) -> dict[str, str]:
    """The environment variables of an engine's processes; all cores compute."""
    if engine != OURS:
        return environment(PEERS[engine].running)
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": ":".join(paths), "OMP_NUM_THREADS": str(len(CORES))}


@contextmanager
def running(
    command: list[str], engine: str, log: Path, seconds: float = DEADLINE
) -> Iterator["subprocess.Popen[str]"]:
    """A process that is killed with its children at the end, or after `seconds`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            env=surroundings(engine),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def driver(engine: str, python: Path, job: dict[str, Any], log: Path) -> dict[str, Any]:
    """{"values": case -> value, "versions"} of a job of kind steps. Raises Unavailable."""
    script = DRIVERS / f"drive_{engine.replace('.', '_')}.py"
    with running([str(python), str(script), json.dumps(job)], engine, log) as process:
        return result(process, log)


def ceilings(log: Path) -> dict[str, Any]:
    """The same of the machine itself."""
    command = [sys.executable, "-m", "ci.bench.cpu.peer.ceilings"]
    with running(command, OURS, log) as process:
        return result(process, log)


def result(process: "subprocess.Popen[str]", log: Path) -> dict[str, Any]:
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    found = [line.removeprefix("RESULT ") for line in lines if line.startswith("RESULT ")]
    if process.wait() or not found:
        raise Unavailable(f"ended with {process.returncode}: {last_line(log)} (all of it: {log})")
    parsed: dict[str, Any] = json.loads(found[-1])
    return parsed


def start(engine: str, python: Path, job: dict[str, Any], log: Path) -> Found:
    """Seconds from the start of a driver's process to its first token, and its memory after a
    request, in MB."""
    script = DRIVERS / f"drive_{engine.replace('.', '_')}.py"
    begin = time.perf_counter()
    with running([str(python), str(script), json.dumps(job)], engine, log) as process:
        await_line(process, "FIRST", log)
        first = time.perf_counter() - begin
        await_line(process, "READY", log)
        return {"start": first, "memory": resident(process.pid)}


def await_line(process: "subprocess.Popen[str]", wanted: str, log: Path) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == wanted:
            return
    raise Unavailable(f"ended before {wanted}: {last_line(log)} (all of it: {log})")


def resident(pid: int) -> float:
    """Proportional set size of a process and all below it, MB."""
    return sum(memory(each)["pss"] for each in [pid, *children(pid)]) / 1e6


def serve(
    engine: str, python: Path, job: dict[str, Any], log: Path, requests: int, concurrency: int
) -> Found:
    """The same of a server's processes, and with `requests`, output tokens a second of so many of
    them, `concurrency` at a time, by the client that `inferplane bench --url` is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [*server(engine, python, job), "--port", str(port)]
    begin = time.perf_counter()
    with running(command, engine, log) as process:
        assert process.stdout is not None
        threading.Thread(target=process.stdout.read, daemon=True).start()
        try:
            first_token(url, process)
        except SystemExit as error:
            raise Unavailable(f"{error}: {last_line(log)} (all of it: {log})") from error
        found = {"start": time.perf_counter() - begin}
        complete(url, job)
        found["memory"] = resident(process.pid)
        if requests:
            client = [*INFERPLANE, "bench", "--url", url, "--num-prompts", str(requests)]
            client += ["--concurrency", str(concurrency), "--input-len", str(job["prompt"])]
            client += ["--output-len", str(job["output"])]
            level = run_json(client)["levels"][0]
            found[f"http/{concurrency}"] = level["output_tokens_per_second"]
        return found


def server(engine: str, python: Path, job: dict[str, Any]) -> list[str]:
    if engine == OURS:
        options = [
            word for k, v in job["options"].items() for word in (f"--{k.replace('_', '-')}", str(v))
        ]
        return [str(python), "-m", "inferplane", "serve", job["model"], *options]
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", job["model"]]
    return [*command, "--dtype", "bfloat16", "--max-model-len", str(job["context"])]


def complete(url: str, job: dict[str, Any]) -> None:
    """One request of the benchmark's lengths."""
    body = {
        "model": models(url),
        "prompt": list(range(200, 200 + job["prompt"])),
        "max_tokens": job["output"],
        "temperature": 0,
        "ignore_eos": True,
    }
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        answer.read()


def models(url: str) -> str:
    with urllib.request.urlopen(f"{url}/v1/models") as answer:
        name: str = json.load(answer)["data"][0]["id"]
    return name
