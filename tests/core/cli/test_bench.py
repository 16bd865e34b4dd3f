"""Measuring: what is sent, what is counted, and the client that talks to servers."""

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from inferplane.cli import bench
from inferplane.cli.main import main
from inferplane.cli.workload import (
    Counts,
    Timing,
    Workload,
    make_prompts,
    measure,
    percentiles,
    summarize,
)
from inferplane.errors import InferplaneError
from inferplane.remote import Remote
from tests.core.cli.conftest import Run
from tests.core.server.live_server import live_server

WORK = Workload(input_len=8, output_len=3, concurrency=2, num_prompts=5, shared_prefix=6)


class FakeTarget:
    name = "fake"
    vocab_size = 100

    def __init__(self, tokens: int = 3) -> None:
        self.prompts: list[list[int]] = []
        self.open = self.most_open = 0
        self._tokens = tokens

    async def run(
        self, prompt: list[int], output_len: int, on_tokens: Callable[[], None]
    ) -> Counts:
        self.prompts.append(prompt)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        for _ in range(output_len):
            await asyncio.sleep(0)
            on_tokens()
        self.open -= 1
        return Counts(min(output_len, self._tokens), 4)


def test_prompts_are_random_but_for_their_prefix() -> None:
    prompts = make_prompts(WORK, 100, random.Random(1))
    assert {len(p) for p in prompts} == {8}
    assert len({tuple(p[:6]) for p in prompts}) == 1
    assert len({tuple(p) for p in prompts}) == 5
    assert all(10 <= token < 100 for p in prompts for token in p)
    assert make_prompts(WORK, 100, random.Random(1)) == prompts


def test_so_many_are_open_at_a_time() -> None:
    target, seen = FakeTarget(), list[int]()
    found = asyncio.run(measure(target, WORK, random.Random(1), seen.append))
    assert target.most_open == 2
    assert seen == [1, 2, 3, 4, 5]
    assert (found.requests, found.output_tokens, found.prompt_tokens) == (5, 15, 40)
    assert found.cached_tokens == 20


def test_times_are_told_apart() -> None:
    timings = [
        Timing(10.0, [10.5, 10.6, 10.8], Counts(3, 0)),
        Timing(20.0, [21.0, 21.3], Counts(3, 0)),
    ]
    found = summarize(WORK, timings, 4.0)
    assert found.output_tokens_per_second == 1.5
    assert found.total_tokens_per_second == (6 + 16) / 4
    assert found.ttft_ms["p50"] == pytest.approx(1000)
    assert found.ttft_ms["mean"] == pytest.approx(750)
    assert found.itl_ms["p50"] == pytest.approx(200)
    assert found.itl_ms["p99"] == pytest.approx(300)


def test_percentiles() -> None:
    hundred = [n / 1000 for n in range(100)]
    found = percentiles(hundred)
    assert [found[p] for p in ("p50", "p90", "p99")] == pytest.approx([50, 90, 99])
    assert percentiles([]) == {}


def test_a_failure_ends_the_measurement() -> None:
    class Failing(FakeTarget):
        async def run(
            self, prompt: list[int], output_len: int, on_tokens: Callable[[], None]
        ) -> Counts:
            if len(self.prompts) == 2:
                raise InferplaneError("it broke")
            return await super().run(prompt, output_len, on_tokens)

    with pytest.raises(InferplaneError, match="it broke"):
        asyncio.run(measure(Failing(), WORK, random.Random(1)))


def test_levels_never_share_prompts_and_short_answers_are_found() -> None:
    target = FakeTarget()
    found = asyncio.run(bench.run_levels(target, [WORK, WORK], 0))
    assert [level.requests for level in found] == [5, 5]
    assert len({tuple(p) for p in target.prompts}) == len(target.prompts) == 2 * (2 + 5)
    with pytest.raises(InferplaneError, match="gave 10 tokens, not 15: it does not honour"):
        asyncio.run(bench.run_levels(FakeTarget(2), [WORK], 0))


SHAPE = ["--input-len", "20", "--output-len", "4", "--concurrency", "1", "3", "--num-prompts", "6"]


def test_bench_in_process(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    words = ["--device", "plain", "--kv-cache-tokens", "4096", "--shared-prefix", "16"]
    done = run("bench", str(tiny_folder), *words, *SHAPE, "--json", str(file))
    assert done.returncode == 0, done.stderr
    head, *levels, _ = done.stdout.splitlines()[1:]
    assert head.split()[:4] == ["concurrency", "requests", "in", "out"]
    assert [x.split()[:4] for x in levels] == [["1", "6", "20", "4"], ["3", "6", "20", "4"]]
    written = json.loads(file.read_text())
    one, three = written["levels"]
    assert (one["concurrency"], one["output_tokens"], one["cached_tokens"]) == (1, 24, 5 * 16)
    assert 0 < three["cached_tokens"] <= 5 * 16
    assert set(one["ttft_ms"]) == {"p50", "p90", "p99", "mean"} == set(one["itl_ms"])


def test_bench_of_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.RemoteTarget, "vocab_size", 200)
    file = tmp_path / "result.json"
    with live_server() as server:
        assert main(["bench", "--url", server.url, *SHAPE, "--json", str(file)]) == 0
        measured = [s for s in server.core.submitted if s.max_tokens == 4]
        assert len(measured) == 2 * 6 + 1 + 3
        assert all(len(s.prompt) == 20 and not s.stop_ids for s in measured)
        with pytest.raises(SystemExit):
            main(["bench", "--url", server.url, "--nonsense"])
    assert f"tiny at {server.url}" in capsys.readouterr().out
    assert [x["output_tokens"] for x in json.loads(file.read_text())["levels"]] == [24, 24]


def test_a_result_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.RemoteTarget, "vocab_size", 200)
    with live_server() as server:
        assert main(["bench", "--url", server.url, *SHAPE, "--json", "/nowhere/x"]) == 1
    assert "--json /nowhere/x cannot be written" in capsys.readouterr().err


async def serve_raw(answer: list[bytes], use: Callable[[str], object]) -> object:
    """A server that says exactly these parts, each in a packet of its own."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in answer:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        return await asyncio.to_thread(use, f"http://{host}:{port}")


def events_of(url: str) -> list[object]:
    async def collect() -> list[object]:
        return [event async for event in Remote(url).events("/x", {})]

    return asyncio.run(collect())


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def test_events_may_be_cut_anywhere() -> None:
    whole = 'data: {"a": "日"}\n\ndata: {"b": 2}\n\ndata: [DONE]\n\n'.encode()
    for size in (1, 7, 12, len(whole)):
        parts = [chunk(whole[i : i + size]) for i in range(0, len(whole), size)]
        found = asyncio.run(serve_raw([CHUNKED, *parts, b"0\r\n\r\n"], events_of))
        assert found == [{"a": "日"}, {"b": 2}]
    plain = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    assert len(asyncio.run(serve_raw([plain, whole], events_of))) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([CHUNKED, chunk(b'data: {"a": 1}\n\n'), b"0\r\n\r\n"], "the answer broke off"),
        ([CHUNKED, chunk(b'data: {"a": 1}\n\n')], "cannot be reached or is no HTTP server"),
        ([CHUNKED, chunk(b'data: {"error": {"message": "it died"}}\n\n')], "it died"),
        ([b"SSH-2.0-OpenSSH\r\n"], "is no HTTP server"),
        ([], "is no HTTP server"),
        ([b"HTTP/1.1 503 x\r\nContent-Length: 4\r\n\r\nbusy"], "answered 503: busy"),
        (
            [b'HTTP/1.1 400 x\r\n\r\n{"error": {"message": "no such thing"}}'],
            "/x answered 400: no such thing",
        ),
    ],
)
def test_what_is_wrong_with_a_server_is_said(answer: list[bytes], message: str) -> None:
    with pytest.raises(InferplaneError, match=message):
        asyncio.run(serve_raw(answer, events_of))
