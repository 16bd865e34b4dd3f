"""What a row of the table of endpoints says."""

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from inferplane.server.body import Schema
from inferplane.server.errors import OPENAI
from inferplane.server.service import Service

Handler = Callable[[Service, Request], Awaitable[Response]]


class Access(enum.Enum):
    """Who may call an endpoint: anybody, who has the key (if one is set), or only programs on this
    machine, of a server that has no key and listens on a loopback address."""

    OPEN = "open"
    KEY = "key"
    ADMIN = "admin"


@dataclass(frozen=True)
class Endpoint:
    """`body` is what a POST sends, `protocol` whose error format it answers in, `query` the JSON
    schemas of its query parameters."""

    path: str
    method: str
    handler: Handler
    access: Access
    body: type[Schema] | None = None
    protocol: str = OPENAI
    query: Mapping[str, dict[str, Any]] = field(default_factory=dict)
