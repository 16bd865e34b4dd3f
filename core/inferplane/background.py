"""An asyncio event loop in a thread of its own, used from ordinary and from asynchronous code.

An interrupt of the caller, such as Ctrl-C, cancels what it waits for.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from inferplane.errors import EngineDeadError

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class _Next(Generic[Item]):
    item: Item


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None


class _Work(Generic[Value]):
    """A coroutine that can be given up at any moment, also while it is being handed over: an
    interrupt may come before the caller holds a future."""

    def __init__(self, coroutine: Coroutine[Any, Any, Value]) -> None:
        self._coroutine = coroutine
        self._task: asyncio.Task[Any] | None = None
        self._abandoned = False

    async def run(self) -> Value:
        self._task = asyncio.current_task()
        if self._abandoned:  # set before `abandon` looks for the task, which it then did not find
            self._coroutine.close()
            raise asyncio.CancelledError
        return await self._coroutine

    def abandon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel it if it has not ended."""
        self._abandoned = True
        if self._task is not None and not self._task.done():
            loop.call_soon_threadsafe(self._task.cancel)


class Background:
    """Runs coroutines until it is closed."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        """Wait for a coroutine's result."""
        work = _Work(coroutine)
        try:
            return self._submit(work.run(), coroutine).result()
        finally:
            work.abandon(self._loop)

    async def arun(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        """The same, for a caller with an event loop of its own."""
        return await asyncio.wrap_future(self._submit(coroutine))

    def iterate(self, items: AsyncGenerator[Item, None]) -> Generator[Item, None, None]:
        """The items as they come. Closing the generator closes `items`."""
        received: queue.SimpleQueue[_Next[Item] | _End] = queue.SimpleQueue()
        pump = _pump(items, received.put)
        work = _Work(pump)
        try:
            self._submit(work.run(), pump)
            while isinstance(event := received.get(), _Next):
                yield event.item
            if event.error is not None:
                raise event.error
        finally:
            work.abandon(self._loop)

    async def aiterate(self, items: AsyncGenerator[Item, None]) -> AsyncGenerator[Item, None]:
        """The same, for a caller with an event loop of its own."""
        loop = asyncio.get_running_loop()
        received: asyncio.Queue[_Next[Item] | _End] = asyncio.Queue()

        def put(event: _Next[Item] | _End) -> None:
            loop.call_soon_threadsafe(received.put_nowait, event)

        future = self._submit(_pump(items, put))
        try:
            while isinstance(event := await received.get(), _Next):
                yield event.item
            if event.error is not None:
                raise event.error
        finally:
            future.cancel()

    @property
    def is_current(self) -> bool:
        """Whether the caller is in the thread, and so must not wait for it."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Cancel what still runs and end the thread. May be called twice."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _submit(
        self, coroutine: Coroutine[Any, Any, Value], *within: Coroutine[Any, Any, Any]
    ) -> "Future[Value]":
        """`within`: coroutines that this one would have run."""
        if self._loop.is_closed():
            for unused in (coroutine, *within):
                unused.close()
            raise EngineDeadError("the engine was closed: make a new one")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


async def _pump(
    items: AsyncGenerator[Item, None], put: Callable[[_Next[Item] | _End], None]
) -> None:
    try:
        async with aclosing(items):
            async for item in items:
                put(_Next(item))
    except asyncio.CancelledError:
        put(_End(EngineDeadError("the engine was closed while it answered")))
        raise
    except Exception as error:  # for whoever reads
        put(_End(error))
    else:
        put(_End(None))


async def _cancel_all() -> None:
    current = asyncio.current_task()
    others = [task for task in asyncio.all_tasks() if task is not current]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
