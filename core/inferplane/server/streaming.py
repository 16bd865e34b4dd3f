"""Work for as long as the client listens, and server-sent events."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from inferplane.server.encode import DONE, event
from inferplane.server.errors import ClientGone, error_body

Result = TypeVar("Result")

HEADERS = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
EVENT_STREAM = "text/event-stream; charset=utf-8"


@dataclass(frozen=True)
class Framing:
    """How a stream is written: each value, a failure after the first value, and the end."""

    media_type: str
    value: Callable[[Any], bytes]
    failure: Callable[[Exception], bytes]
    end: bytes


OPENAI = Framing(EVENT_STREAM, event, lambda error: event(error_body(error)[1]), DONE)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled with ClientGone as soon as the client leaves.

    The body must have been read: the next message then can only be the disconnect.
    """
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((worker, watcher), return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return worker.result()
        raise ClientGone
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends each JSON value of `events` in some framing: OpenAI's has an event each, then [DONE].

    A failure before the first event is raised, and so gets a proper status; a later one becomes
    an error event, and the end stays out.
    """

    def __init__(
        self, request: Request, events: AsyncGenerator[Any, None], framing: Framing = OPENAI
    ) -> None:
        super().__init__()
        self._request = request
        self._events = events
        self._framing = framing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # the receive of the request, not of the call: it knows that the body has been read
        await while_connected(self._request.receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            chunks = _encoded(events, self._framing.value)
            async with aclosing(chunks):
                first = await anext(chunks)
                headers = [(b"content-type", self._framing.media_type.encode()), *HEADERS]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await _send(send, first)
                try:
                    async for chunk in chunks:
                        await _send(send, chunk)
                    if self._framing.end:
                        await _send(send, self._framing.end)
                except Exception as error:
                    await _send(send, self._framing.failure(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _encoded(
    events: AsyncGenerator[Any, None], encode: Callable[[Any], bytes]
) -> AsyncGenerator[bytes, None]:
    async for value in events:
        yield encode(value)


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
