"""The client of an engine in this process: drives it on the caller's event loop, one step a turn.

Offers the calls of ipc.client.ProcessClient that generation needs. Knows nothing of text.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator

from inferplane.engine import EngineCore
from inferplane.errors import EngineDeadError, InferplaneError, RequestError
from inferplane.messages import (
    Abort,
    FlushCache,
    FromEngine,
    ModelInfo,
    Output,
    Refused,
    Submit,
    ToEngine,
)

Event = Output | Refused | EngineDeadError

log = logging.getLogger(__name__)


class LocalClient:
    """Use from one event loop."""

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self._open: dict[str, asyncio.Queue[Event]] = {}
        self._wake = asyncio.Event()
        self._driver: asyncio.Task[None] | None = None
        self._dead: str | None = None

    @property
    def info(self) -> ModelInfo:
        return self.core.info

    async def generate(self, submit: Submit) -> AsyncGenerator[Output, None]:
        """Run one sequence. Closing or cancelling the iteration aborts it."""
        if self._dead is not None:
            raise EngineDeadError(self._dead)
        if submit.request_id in self._open:
            raise InferplaneError(f"request id {submit.request_id} is in use: make it unique")
        if self._driver is None:
            self._driver = asyncio.create_task(self._drive())
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._open[submit.request_id] = queue
        running = True
        try:
            self._handle(submit)
            while running:
                event = await queue.get()
                running = isinstance(event, Output) and event.finish_reason is None
                if isinstance(event, Output):
                    yield event
                elif isinstance(event, Refused):
                    raise RequestError(
                        event.message, param=event.param, code=event.code, status=event.status
                    )
                else:
                    raise event
        finally:
            del self._open[submit.request_id]
            if running and self._dead is None:
                self._handle(Abort(submit.request_id))

    def abort(self, request_id: str) -> None:
        """Stop a sequence; its stream ends with finish_reason "abort"."""
        self._handle(Abort(request_id))

    def flush_cache(self) -> None:
        """Drop every cached page that no running request uses."""
        self._handle(FlushCache(nonce=0))

    async def close(self) -> None:
        """Stop driving the engine and close it."""
        if self._driver is not None:
            self._driver.cancel()
            await asyncio.gather(self._driver, return_exceptions=True)
        self._fail("the engine was closed: make a new one")
        self.core.close()

    def _handle(self, message: ToEngine) -> None:
        self._dispatch(self.core.handle(message))
        self._wake.set()

    def _dispatch(self, messages: list[FromEngine]) -> None:
        for message in messages:
            if isinstance(message, Output | Refused) and message.request_id in self._open:
                self._open[message.request_id].put_nowait(message)

    async def _drive(self) -> None:
        while True:
            if not self.core.has_work:
                self._wake.clear()
                await self._wake.wait()
            try:
                self._dispatch(self.core.step())
            except Exception as error:
                log.exception("the engine failed")
                self._fail(f"the engine failed: {error}")
                return
            await asyncio.sleep(0)  # a turn for those who read outputs and send requests

    def _fail(self, reason: str) -> None:
        self._dead = self._dead or reason
        for queue in self._open.values():
            queue.put_nowait(EngineDeadError(self._dead))
