"""The client and a real engine process, with a fake engine core in it."""

import asyncio
import json
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from inferplane.config import Config
from inferplane.errors import EngineDeadError, InferplaneError, RequestError
from inferplane.ipc.client import PATIENCE_SECONDS, ProcessClient
from inferplane.messages import Submit
from inferplane.sampling_params import SamplingParams

FAKE = "inferplane.testing.fake_engine"
REPO = Path(__file__).parents[3]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def submit(name: str, max_tokens: int = 10, **fields: Any) -> Submit:
    return Submit(
        request_id=name,
        prompt=[*name.encode()],
        stop_ids=[],
        max_tokens=max_tokens,
        seed=1,
        **{"params": SamplingParams(), **fields},
    )


@asynccontextmanager
async def engine(model: str = "fake", **settings: Any) -> AsyncIterator[ProcessClient]:
    client = ProcessClient(Config(model=model, **settings), module=FAKE)
    await client.start(lambda text: None)
    try:
        yield client
    finally:
        await client.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), 60)

    asyncio.run(limited())


async def tokens(client: ProcessClient, request: Submit) -> list[int]:
    return [t async for output in client.generate(request) for t in output.tokens]


def test_start_generate_stop() -> None:
    async def test() -> None:
        said: list[str] = []
        client = ProcessClient(Config(model="fake", max_model_len=64), module=FAKE)
        with pytest.raises(RequestError) as early:
            _ = client.info
        assert early.value.status == 503 and not client.ready()
        await client.start(said.append)
        directory = client._directory
        assert said == ["loading nothing"]
        assert client.info.max_model_len == 64 and client.ready()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        first = await tokens(client, submit("a"))
        assert len(first) == 10 and first == await tokens(client, submit("a"))
        pid = client.pid
        await client.close()
        await client.close()
        assert not directory.exists() and not client.ready()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        with pytest.raises(EngineDeadError):
            await tokens(client, submit("b"))

    run(test)


def test_many_sequences_keep_apart() -> None:
    async def test() -> None:
        async with engine() as client:
            alone = [await tokens(client, submit(f"s{i}", 50)) for i in range(50)]
            together = await asyncio.gather(
                *[tokens(client, submit(f"s{i}", 50)) for i in range(50)]
            )
            assert alone == together and len({tuple(t) for t in alone}) == 50
            assert client.open_sequences == 0

    run(test)


def test_closing_the_iteration_aborts() -> None:
    async def test() -> None:
        async with engine() as client:
            outputs = client.generate(submit("endless", 10**9))
            await anext(outputs)
            await outputs.aclose()
            task = asyncio.create_task(tokens(client, submit("endless", 10**9)))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await client.flush_cache()  # an answer: everything sent before has been handled
            assert client.stats.aborted == 2 and client.stats.running == 0
            assert client.open_sequences == 0
            await tokens(client, submit("a"))
            assert client.stats.aborted == 2

    run(test)


def test_abort_by_id() -> None:
    async def test() -> None:
        async with engine() as client:
            outputs = client.generate(submit("endless", 10**9))
            await anext(outputs)
            client.abort("endles")  # not a prefix of an id
            client.abort("other")
            await client.flush_cache()
            assert client.stats.running == 1
            client.abort("endless")
            reasons = [output.finish_reason async for output in outputs]
            assert reasons[-1] == "abort"

    run(test)


def test_refused() -> None:
    async def test() -> None:
        async with engine(max_queue=1) as client:
            outputs = client.generate(submit("endless", 10**9))
            await anext(outputs)
            with pytest.raises(RequestError) as refused:
                await tokens(client, submit("too many"))
            assert refused.value.status == 429 and refused.value.code == "queue_full"
            with pytest.raises(InferplaneError, match="make it unique"):
                await tokens(client, submit("endless"))
            await outputs.aclose()

    run(test)


def test_who_falls_behind_gets_larger_pieces() -> None:
    async def test() -> None:
        async with engine() as client:
            params = SamplingParams(logprobs=2, prompt_logprobs=1)
            request = submit("a", 50, params=params)
            single = [output async for output in client.generate(request)]
            outputs = client.generate(request)
            pieces = [await anext(outputs)]
            while client.stats.finished < 2:
                await client.flush_cache()
            pieces += [output async for output in outputs]
            assert len(pieces) <= 2 and pieces[-1].finish_reason == "length"
            for kind in ("tokens", "logprobs", "prompt_logprobs"):
                whole, parts = (
                    [x for output in each for x in getattr(output, kind) or []]
                    for each in (single, pieces)
                )
                assert whole == parts, kind
            assert {output.cached_tokens for output in pieces} == {pieces[0].cached_tokens}

    run(test)


@pytest.mark.parametrize("end", ["abort", "death"])
def test_what_came_before_the_end_is_delivered(end: str) -> None:
    async def test() -> None:
        async with engine() as client:
            right = await tokens(client, submit("endless", 100))
            outputs = client.generate(submit("endless", 10**9))
            got = (await anext(outputs)).tokens
            await client.flush_cache()
            seen = client.stats.output_tokens
            while client.stats.output_tokens < seen + 30:
                await client.flush_cache()
            if end == "abort":
                client.abort("endless")
                await client.flush_cache()
            else:
                os.kill(client.pid, signal.SIGKILL)
                while client.ready():
                    await asyncio.sleep(0)
            last = await anext(outputs)
            got += last.tokens
            assert len(got) >= 30 and got[:100] == right[: len(got)]
            assert last.finish_reason == ("abort" if end == "abort" else None)
            with pytest.raises(StopAsyncIteration if end == "abort" else EngineDeadError):
                await anext(outputs)

    run(test)


CAUSES = {
    "exception": ('{"crash_at_step": 2}', "secret detail of a crash"),
    "exit": ('{"exit_at_step": 2}', "exit code 3"),
    "killed": ("{}", "by signal 9"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_death_fails_every_open_sequence(cause: str) -> None:
    behaviour, message = CAUSES[cause]

    async def test() -> None:
        async with engine(f"fake:{behaviour}") as client:
            tasks = [asyncio.create_task(tokens(client, submit(f"s{i}", 10**9))) for i in range(5)]
            if cause == "killed":
                await asyncio.sleep(0)
                os.kill(client.pid, signal.SIGKILL)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results] == [EngineDeadError] * 5
            assert all(message in str(result) for result in results)
            assert not client.ready() and client.open_sequences == 0
            with pytest.raises(EngineDeadError):
                await tokens(client, submit("later"))
            with pytest.raises(EngineDeadError):
                _ = client.info

    run(test)


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ('{"fail_to_load": "no such folder"}', "no such folder .*exit code 1"),
        ('{"bad": 1}', "unknown field `bad` .*exit code 1"),
    ],
)
def test_failing_to_start(behaviour: str, message: str) -> None:
    async def test() -> None:
        client = ProcessClient(Config(model=f"fake:{behaviour}"), module=FAKE)
        with pytest.raises(InferplaneError, match=f"The engine did not start: .*{message}"):
            await client.start(lambda text: None)
        assert not client._directory.exists()

    run(test)


def test_missing_module() -> None:
    async def test() -> None:
        client = ProcessClient(Config(model="fake"), module="inferplane.no_such_module")
        with pytest.raises(InferplaneError, match=r"no message .*exit code 1"):
            await client.start(lambda text: None)

    run(test)


def test_ready_needs_recent_answers() -> None:
    async def test() -> None:
        clock = Clock()
        client = ProcessClient(Config(model="fake"), module=FAKE, clock=clock)
        await client.start(lambda text: None)
        try:
            os.kill(client.pid, signal.SIGSTOP)
            clock.now += PATIENCE_SECONDS
            assert client.ready()
            clock.now += 0.1
            assert not client.ready()
            os.kill(client.pid, signal.SIGCONT)
            await client.flush_cache()
            assert client.ready()
        finally:
            await client.close()

    run(test)


def test_garbage_from_the_engine_is_dropped() -> None:
    async def test() -> None:
        async with engine() as client:
            for frame in (b"", b"\xc1", b"\x91\x81\xa4type\xa4exec"):
                for message in client._frames.decode(frame):
                    client._dispatch(message)
            assert client.malformed == 3
            assert len(await tokens(client, submit("a"))) == 10

    run(test)


def test_neither_settings_nor_key_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERPLANE_API_KEY", "canary-key")

    async def test() -> None:
        async with engine(served_model_name="canary-name") as client:
            process = Path(f"/proc/{client.pid}")
            assert b"canary" not in process.joinpath("cmdline").read_bytes()
            assert b"canary" not in process.joinpath("environ").read_bytes()
            assert client.info.model == "fake"

    run(test)


PARENT = """
import asyncio
from inferplane.config import Config
from inferplane.ipc.client import ProcessClient

async def main():
    client = ProcessClient(Config(model="fake"), module="inferplane.testing.fake_engine")
    await client.start(lambda text: None)
    print(client.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_the_engine_dies_with_its_parent() -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPO / "core")}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
        engine_process = os.pidfd_open(pid)
        try:
            parent.kill()
            parent.wait(20)
            ended, _, _ = select.select([engine_process], [], [], 20)
            assert ended, "the engine process outlived its parent"
        finally:
            os.close(engine_process)


PLACES = """
import asyncio, json, os, sys
from inferplane.config import Config
from inferplane.ipc.client import ProcessClient

async def main():
    behaviour = json.dumps({"compute_cpus": json.loads(sys.argv[1])})
    config = Config(model="fake:" + behaviour)
    client = ProcessClient(config, module="inferplane.testing.fake_engine")
    await client.start(lambda text: None)
    print(json.dumps([sorted(os.sched_getaffinity(pid)) for pid in (0, client.pid)]))
    await client.close()

asyncio.run(main())
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_both_processes_keep_off_processors_that_compute() -> None:
    """The engine's own thread stays on the first of them; without another, all stay."""
    allowed = sorted(os.sched_getaffinity(0))
    environment = {**os.environ, "PYTHONPATH": str(REPO / "core")}
    for busy, api, own in (
        ([], allowed, allowed),
        (allowed[:1], allowed[1:], allowed),
        (allowed, allowed, allowed[:1]),
    ):
        command = [sys.executable, "-c", PLACES, json.dumps(busy)]
        done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
        assert json.loads(done.stdout) == [api, own], busy


def test_ctrl_c_is_for_the_parent() -> None:
    async def test() -> None:
        async with engine() as client:
            os.kill(client.pid, signal.SIGINT)
            assert len(await tokens(client, submit("a"))) == 10

    run(test)
