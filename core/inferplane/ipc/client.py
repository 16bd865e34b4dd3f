"""The API process's end of the engine process: starts it, watches it, and gives each open
sequence its own stream of outputs. Knows nothing of text or HTTP.
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import zmq
import zmq.asyncio

from inferplane import env
from inferplane.config import Config
from inferplane.errors import EngineDeadError, InferplaneError, RequestError
from inferplane.hw.host import keep_off, own_threads
from inferplane.ipc.channel import (
    Outbox,
    Start,
    api_address,
    configure,
    engine_address,
    from_engine_decoder,
)
from inferplane.messages import (
    Abort,
    Fatal,
    FlushCache,
    FromEngine,
    ModelInfo,
    Output,
    Ping,
    Pong,
    Progress,
    Ready,
    Refused,
    Stats,
    Submit,
    ToEngine,
)

ENGINE_MODULE = "inferplane.ipc.engine_process"
PING_SECONDS = 1.0
PATIENCE_SECONDS = 5.0
"""without an answer for so long, the engine counts as not ready"""
LAST_WORDS_SECONDS = 1.0
STOP_SECONDS = 10.0

log = logging.getLogger(__name__)

Event = Output | Refused | EngineDeadError


class ProcessClient:
    """An engine in its own process. Use from one event loop."""

    def __init__(
        self,
        config: Config,
        *,
        module: str = ENGINE_MODULE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stats = Stats()
        self._config = config
        self._module = module
        self._clock = clock
        self._frames = from_engine_decoder()
        self._open: dict[str, asyncio.Queue[Event]] = {}
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._nonce = 0
        self._last_pong: float | None = None
        self._info: ModelInfo | None = None
        self._dead: str | None = None
        self._fatal: str | None = None
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []
        self._progress: Callable[[str], None] = log.info
        self.died = asyncio.Event()
        """set once the engine is dead, whoever ended it"""

    @property
    def info(self) -> ModelInfo:
        if self._dead is not None:
            raise EngineDeadError(self._dead)
        if self._info is None:
            raise RequestError("The model is still loading.", code="engine_starting", status=503)
        return self._info

    @property
    def malformed(self) -> int:
        """Frames from the engine that could not be decoded."""
        return self._frames.malformed

    @property
    def open_sequences(self) -> int:
        return len(self._open)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> bool:
        """True if the engine has loaded its model and answered within the last seconds."""
        return (
            self._dead is None
            and self._last_pong is not None
            and self._clock() - self._last_pong <= PATIENCE_SECONDS
        )

    async def start(self, progress: Callable[[str], None]) -> None:
        """Start the process and wait until the model is loaded; `progress` gets each report."""
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._said_why = asyncio.Event()
        self._directory = Path(tempfile.mkdtemp(prefix="inferplane-"))
        self._context = zmq.asyncio.Context()
        try:
            self._inbox = self._context.socket(zmq.PULL)
            configure(self._inbox)  # type: ignore[arg-type]
            self._inbox.bind(api_address(self._directory))
            self._outbox = Outbox(self._context, engine_address(self._directory))
            self._process = self._spawn()
        except BaseException:
            self._remove_sockets()
            raise
        self._outbox.send([Start(dataclasses.asdict(self._config))])
        threading.Thread(target=self._wait, name="engine-watch", daemon=True).start()
        self._tasks = [
            asyncio.create_task(self._read()),
            asyncio.create_task(self._watch()),
        ]
        try:
            await self._started
        except BaseException:
            await self.close()
            raise
        self._tasks.append(asyncio.create_task(self._ping()))

    def _spawn(self) -> "subprocess.Popen[bytes]":
        variables = env.snapshot()
        variables.pop("INFERPLANE_API_KEY", None)  # the engine has no use for it
        # -P keeps the working directory out of the import path; the child sees our packages.
        variables["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        return subprocess.Popen(
            [sys.executable, "-P", "-m", self._module, str(self._directory)],
            stdin=subprocess.PIPE,  # its end tells the child that we are gone
            env=variables,
            process_group=0,  # Ctrl-C in the terminal is for us, who then stop the engine
        )

    async def generate(self, submit: Submit) -> AsyncGenerator[Output, None]:
        """Run one sequence. Closing or cancelling the iteration aborts it at once. Outputs that
        came while nobody asked are one, so that whoever falls behind catches up."""
        if self._dead is not None:
            raise EngineDeadError(self._dead)
        if submit.request_id in self._open:
            raise InferplaneError(f"request id {submit.request_id} is in use: make it unique")
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._open[submit.request_id] = queue
        running = True
        next_event: Event | None = None
        try:
            self._send(submit)
            while running:
                event, next_event = next_event or await queue.get(), None
                if isinstance(event, Output):
                    while event.finish_reason is None and not queue.empty():
                        next_event = queue.get_nowait()
                        if not isinstance(next_event, Output) or next_event.error is not None:
                            break
                        event.join(next_event)
                        next_event = None
                    running = event.finish_reason is None
                    yield event
                    continue
                running = False
                if isinstance(event, Refused):
                    raise RequestError(
                        event.message, param=event.param, code=event.code, status=event.status
                    )
                raise event
        finally:
            del self._open[submit.request_id]
            if running:
                self._send(Abort(submit.request_id))

    def abort(self, request_id: str) -> None:
        """Stop a sequence; its stream ends with finish_reason "abort"."""
        self._send(Abort(request_id))

    async def flush_cache(self) -> None:
        """Drop the cached prefixes that nobody uses; returns when it is done."""
        await self._ask(FlushCache(self._next_nonce()))

    async def close(self) -> None:
        """Stop the process: politely, then by force. May be called twice."""
        if self._closing:
            return
        self._closing = True
        if not self._ended.done():
            self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._ended), STOP_SECONDS)
        if not self._ended.done():
            self._process.kill()
            await self._ended
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail("the engine was stopped")
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._outbox.close()
        self._inbox.close(0)
        self._remove_sockets()

    def kill(self) -> None:
        """End the process at once; for an impatient second signal."""
        self._process.kill()

    def _remove_sockets(self) -> None:
        self._context.destroy(0)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _send(self, message: ToEngine) -> None:
        if self._dead is None and not self._closing:
            self._outbox.send([message])

    def _next_nonce(self) -> int:
        self._nonce += 1
        return self._nonce

    async def _ask(self, message: Ping | FlushCache) -> None:
        answer: asyncio.Future[None] = self._loop.create_future()
        self._pings[message.nonce] = answer
        try:
            self._send(message)
            await answer
        finally:
            del self._pings[message.nonce]

    async def _ping(self) -> None:
        while True:
            self._send(Ping(self._next_nonce()))
            await asyncio.sleep(PING_SECONDS)

    async def _read(self) -> None:
        while True:
            frame = await self._inbox.recv()
            for message in self._frames.decode(frame):
                self._dispatch(message)

    def _dispatch(self, message: FromEngine) -> None:
        match message:
            case Output() | Refused():
                queue = self._open.get(message.request_id)
                if queue is not None:  # None: we have aborted it meanwhile
                    queue.put_nowait(message)
            case Pong():
                self._last_pong = self._clock()
                self.stats = message.stats
                answer = self._pings.get(message.nonce)
                if answer is not None and not answer.done():
                    answer.set_result(None)
            case Ready():
                self._info = message.info
                keep_off(message.info.compute_cpus, own_threads())
                self._last_pong = self._clock()
                if not self._started.done():
                    self._started.set_result(None)
            case Progress():
                self._progress(message.text)
            case Fatal():
                self._fatal = message.message
                self._fail(message.message)
                self._said_why.set()

    def _wait(self) -> None:
        code = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop may have ended before the process
            self._loop.call_soon_threadsafe(self._ended.set_result, code)

    async def _watch(self) -> None:
        code = await self._ended
        if code > 0 and self._fatal is None:  # its last words may still be on their way
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._said_why.wait(), LAST_WORDS_SECONDS)
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        self._fail(f"{self._fatal or 'no message'} (the engine process ended {how})")

    def _fail(self, why: str) -> None:
        """Every open sequence and every later call fails with EngineDeadError."""
        self.died.set()
        if self._dead is None:
            self._dead = f"The engine is dead: {why}. Restart the server."
            if self._info is not None and not self._closing:
                log.error("%s", self._dead)
        for queue in self._open.values():
            queue.put_nowait(EngineDeadError(self._dead))
        for answer in self._pings.values():
            if not answer.done():
                answer.set_exception(EngineDeadError(self._dead))
        if not self._started.done() and self._ended.done():
            self._started.set_exception(InferplaneError(f"The engine did not start: {why}"))
