"""OpenAI's batch files, offline: each line of the input is a request to the application, which runs
in this process over an engine of its own, and each line of the output its answer.

A line of the output is written once its request has been answered, so that a run that was stopped
goes on where it was when it is started again with the same files.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from starlette.types import ASGIApp, Message, Scope

from inferplane.checkpoint.source import open_model
from inferplane.config import Config
from inferplane.errors import ConfigError, InferplaneError, RequestError
from inferplane.ipc.client import ENGINE_MODULE, ProcessClient
from inferplane.server import body
from inferplane.server.http import application
from inferplane.server.limits import MAX_BODY
from inferplane.server.service import new_id

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/score")
BEGINNING = b'{"id":"batch_req_'
"""how every line of the output begins"""
MAX_CUSTOM_ID = 512
RETRY_SECONDS = 0.5

Show = Callable[[str], None]


class BatchLine(body.Schema):
    """One line of the input."""

    custom_id: str
    method: str
    url: str
    body: dict[str, Any]

    def check(self) -> None:
        if not 1 <= len(self.custom_id) <= MAX_CUSTOM_ID:
            raise _invalid("custom_id", f"must have 1 to {MAX_CUSTOM_ID} characters")
        if self.method != "POST":
            raise _invalid("method", "must be 'POST'")
        if self.url not in URLS:
            raise _invalid("url", f"must be one of {', '.join(URLS)}")
        if self.body.get("stream"):
            raise _invalid("body.stream", "is true, but a file cannot be streamed: leave it out")


def _invalid(param: str, what: str) -> RequestError:
    return RequestError(f"'{param}' {what}.", param=param, code="invalid_value")


@dataclass
class Done:
    """What an output file already has: the custom ids that were answered, and the numbers of the
    input's lines that are no requests."""

    ids: set[str] = field(default_factory=set)
    lines: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.ids) + len(self.lines)

    @classmethod
    def of(cls, path: Path) -> "Done":
        """Reads the file; a last line that was cut short is taken off it."""
        done = cls()
        if not path.exists():
            return done
        whole = 0
        with path.open("rb+") as file:
            for number, line in enumerate(file, 1):
                torn = not line.endswith(b"\n")
                if torn and line[: len(BEGINNING)] == BEGINNING[: len(line)]:
                    break
                try:
                    entry = json.loads(line)
                    error = entry["error"]
                    if error is None:
                        done.ids.add(entry["custom_id"])
                    else:
                        done.lines.add(error["line"])
                except (ValueError, KeyError, TypeError):
                    raise ConfigError(
                        f"--output {path} line {number} is not a line of a batch output: "
                        "name another file"
                    ) from None
                whole += len(line)
            file.truncate(whole)
        return done


@dataclass
class Tally:
    """How far a run has come. `failed` requests have an answer that is an error."""

    total: int
    done: int = 0
    failed: int = 0

    def text(self) -> str:
        return f"{self.done} of {self.total} requests" + (
            f", {self.failed} failed" if self.failed else ""
        )


def run_batch(
    config: Config,
    source: Path,
    target: Path,
    *,
    show: Show = lambda text: None,
    module: str = ENGINE_MODULE,
) -> Tally:
    """Answer every line of `source` into `target`. `show` gets the state as it changes."""
    try:
        with source.open("rb") as file:
            total = sum(1 for line in file if line.strip())
    except OSError as error:
        raise ConfigError(f"--input {source} cannot be read: {error.strerror}") from None
    if source.resolve() == target.resolve():
        raise ConfigError(f"--output {target} is the input: name another file")
    try:
        done = Done.of(target)
        output = target.open("ab", buffering=0)
    except OSError as error:
        raise ConfigError(f"--output {target} cannot be written: {error.strerror}") from None
    with output, source.open("rb") as lines:
        tally = Tally(total, done=len(done))
        if len(done) >= total:
            return tally
        run = Run(_requests(lines, done), output, tally, show)
        return asyncio.run(_with_engine(config, module, run))


async def _with_engine(config: Config, module: str, run: "Run") -> Tally:
    client = ProcessClient(config, module=module)
    await client.start(run.show)
    try:
        app = await application(config, open_model(config.model, config.revision), client, None)
        try:
            await run.all(app, min(config.max_running, config.max_queue) or 1)
        finally:
            app.state.service.generator.close()
    finally:
        await client.close()
    return run.tally


def _requests(lines: BinaryIO, done: Done) -> Iterator[tuple[int, BatchLine | RequestError]]:
    """(number, request) of each line that has no answer yet; an error for one that is none."""
    seen: dict[str, int] = {}
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        try:
            line = _parse(raw, seen)
        except RequestError as error:
            if number not in done.lines:
                yield number, error
            continue
        seen[line.custom_id] = number
        if line.custom_id not in done.ids:
            yield number, line


def _parse(raw: bytes, seen: dict[str, int]) -> BatchLine:
    if len(raw) > MAX_BODY:
        raise RequestError(f"The line is larger than {MAX_BODY} bytes.", code="request_too_large")
    line = body.parse(BatchLine, body.decode(raw))
    line.check()
    if line.custom_id in seen:
        raise _invalid("custom_id", f"is that of line {seen[line.custom_id]} too")
    return line


class Run:
    """Sends requests to the application, several at a time, and writes their answers."""

    def __init__(
        self,
        requests: Iterator[tuple[int, BatchLine | RequestError]],
        output: Any,
        tally: Tally,
        show: Show,
    ) -> None:
        self._requests = requests
        self._output = output
        self.tally = tally
        self.show = show
        self._running = 0
        self._begun = 0

    async def all(self, app: ASGIApp, concurrency: int) -> None:
        self.show(self.tally.text())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, self.tally.total)):
                    group.create_task(self._work(app))
        except* InferplaneError as errors:
            raise errors.exceptions[0] from None

    async def _work(self, app: ASGIApp) -> None:
        for number, request in self._requests:
            if isinstance(request, RequestError):
                self._write_error(number, request)
                continue
            status, answer = await self._answer(app, request)
            if status == 503 and answer["error"]["code"] == "engine_dead":
                raise InferplaneError(
                    f"the engine died after {self.tally.text()}: run the same command again to "
                    "go on from there"
                )
            response = {"status_code": status, "request_id": new_id("req_"), "body": answer}
            self._write(request.custom_id, response, None, failed=status != 200)

    async def _answer(self, app: ASGIApp, request: BatchLine) -> tuple[int, dict[str, Any]]:
        """A full queue is waited for, unless this request was alone in it all the time."""
        self._running += 1
        self._begun += 1
        try:
            while True:
                alone, begun = self._running == 1, self._begun
                status, answer = await call(app, request.url, request.body)
                if status != 429 or (alone and self._begun == begun):
                    return status, answer
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            self._running -= 1

    def _write_error(self, number: int, error: RequestError) -> None:
        shown = {"code": error.code, "message": error.message, "param": error.param}
        self._write(None, None, {**shown, "line": number}, failed=True)

    def _write(
        self,
        custom_id: str | None,
        response: dict[str, Any] | None,
        error: dict[str, Any] | None,
        *,
        failed: bool,
    ) -> None:
        entry = {
            "id": new_id("batch_req_"),
            "custom_id": custom_id,
            "response": response,
            "error": error,
        }
        self._output.write(msgspec.json.encode(entry) + b"\n")
        self.tally.done += 1
        self.tally.failed += failed
        self.show(self.tally.text())


async def call(app: ASGIApp, path: str, value: Any) -> tuple[int, dict[str, Any]]:
    """(status, JSON body) of a POST to an application in this process."""
    status = 0
    parts: list[bytes] = []
    content = msgspec.json.encode(value)

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    messages: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()  # this client stays
        return messages.pop()

    await app(_scope(path, len(content)), receive, send)
    answer: dict[str, Any] = msgspec.json.decode(b"".join(parts))
    return status, answer


def _scope(path: str, length: int) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", str(length).encode()),
        ],
        "client": None,
        "server": None,
    }
