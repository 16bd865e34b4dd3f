"""Drives an engine core on the event loop of its caller, one step per turn, without threads or
processes. For tests: `gate` holds the engine still, and nothing depends on time.
"""

import asyncio
from collections.abc import AsyncGenerator

from inferplane.errors import EngineDeadError, InferplaneError, RequestError
from inferplane.ipc.engine_process import Core
from inferplane.messages import (
    Abort,
    FlushCache,
    FromEngine,
    ModelInfo,
    Output,
    Ping,
    Pong,
    Stats,
    Submit,
    ToEngine,
)


class InlineClient:
    """The same calls as ipc.client.ProcessClient."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.gate = asyncio.Event()
        self.gate.set()
        self.dead = False
        self._wake = asyncio.Event()
        self._open: dict[str, asyncio.Queue[Output | Exception]] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def info(self) -> ModelInfo:
        return self.core.info

    @property
    def stats(self) -> Stats:
        answers = [m for m in self.core.handle(Ping(0)) if isinstance(m, Pong)]
        return answers[0].stats

    @property
    def open_sequences(self) -> int:
        return len(self._open)

    def ready(self) -> bool:
        return not self.dead

    async def generate(self, submit: Submit) -> AsyncGenerator[Output, None]:
        if self.dead:
            raise EngineDeadError("The engine is dead: a test killed it.")
        if submit.request_id in self._open:
            raise InferplaneError(f"request id {submit.request_id} is in use: make it unique")
        if self._task is None:
            self._task = asyncio.create_task(self._drive())
        queue: asyncio.Queue[Output | Exception] = asyncio.Queue()
        self._open[submit.request_id] = queue
        running = True
        try:
            self._handle(submit)
            while running:
                event = await queue.get()
                if isinstance(event, Exception):
                    running = False
                    raise event
                running = event.finish_reason is None
                yield event
        finally:
            del self._open[submit.request_id]
            if running:
                self._handle(Abort(submit.request_id))

    def abort(self, request_id: str) -> None:
        self._handle(Abort(request_id))

    async def flush_cache(self) -> None:
        self._handle(FlushCache(0))

    def kill(self) -> None:
        """What the death of an engine looks like from here."""
        self.dead = True
        for queue in self._open.values():
            queue.put_nowait(EngineDeadError("The engine is dead: a test killed it."))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.core.close()

    def _handle(self, message: ToEngine) -> None:
        try:
            self._dispatch(self.core.handle(message))
        except RequestError as error:
            if isinstance(message, Submit):
                self._open[message.request_id].put_nowait(error)
        self._wake.set()

    def _dispatch(self, messages: list[FromEngine]) -> None:
        for message in messages:
            if isinstance(message, Output) and message.request_id in self._open:
                self._open[message.request_id].put_nowait(message)

    async def _drive(self) -> None:
        while True:
            await self.gate.wait()
            if self.core.has_work:
                self._dispatch(self.core.step())
                await asyncio.sleep(0)
            else:
                self._wake.clear()
                await self._wake.wait()
