"""Responses that clients may come back to, in memory, each for its own tenant alone."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from inferplane.errors import RequestError
from inferplane.server.refusals import MAX_NAME

MAX_RESPONSES = 4096
MAX_BYTES = 64 * 2**20


@dataclass
class Stored:
    """`items` are the request's input, `messages` the conversation with the answer at its end,
    empty as long as there is none. `task` works on it in the background."""

    resource: dict[str, Any]
    items: Sequence[dict[str, Any]] = ()
    messages: Sequence[dict[str, Any]] = ()
    task: "asyncio.Task[None] | None" = None
    size: int = field(default=0)


class ResponseStore:
    """Forgets the responses that were not asked for the longest time when there are too many, or
    too many bytes of them."""

    def __init__(self, most: int = MAX_RESPONSES, most_bytes: int = MAX_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._stored: OrderedDict[tuple[str, str], Stored] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stored)

    def put(self, tenant: str, stored: Stored) -> None:
        """Under its id, in the place of an earlier state of it."""
        key = (tenant, stored.resource["id"])
        self._drop(key)
        parts = (stored.resource, stored.items, stored.messages)
        stored.size = len(msgspec.json.encode(parts))
        self._stored[key] = stored
        self._bytes += stored.size
        while len(self._stored) > self._most or self._bytes > self._most_bytes:
            self._drop(next(iter(self._stored)))

    def has(self, tenant: str, identity: str) -> bool:
        return (tenant, identity) in self._stored

    def get(self, tenant: str, identity: str, param: str) -> Stored:
        """RequestError 404 if there is none, or it is somebody else's."""
        key = (tenant, identity)
        if key not in self._stored:
            raise RequestError(
                f"There is no response '{identity[:MAX_NAME]}': it was never stored, was deleted, "
                "or is too old.",
                param=param,
                code="response_not_found",
                status=404,
            )
        self._stored.move_to_end(key)
        return self._stored[key]

    def delete(self, tenant: str, identity: str, param: str) -> None:
        stored = self.get(tenant, identity, param)
        if stored.task is not None:
            stored.task.cancel()
        self._drop((tenant, identity))

    def _drop(self, key: tuple[str, str]) -> None:
        stored = self._stored.pop(key, None)
        if stored is not None:
            self._bytes -= stored.size
