"""The outermost layer of the application: whatever happens below, the client gets an answer, the
server lives on, and the request is counted. Pure ASGI.
"""

import logging
import re
from collections.abc import Mapping, Sequence

from starlette.requests import ClientDisconnect
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inferplane.server.errors import ClientGone, error_response
from inferplane.server.metrics import Metrics

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
GONE_STATUS = 499

log = logging.getLogger(__name__)


class Boundary:
    """`paths` are the registered ones; any other is "other" in the metrics and the log.
    `protocols` has those whose errors are not in OpenAI's format."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, paths: Sequence[str], protocols: Mapping[str, str]
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._protocols = protocols
        self._paths = frozenset(path for path in paths if "{" not in path)
        self._patterns = [compile_path(path)[:2] for path in paths if "{" in path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] in self._protocols:
            scope.setdefault("state", {})["protocol"] = self._protocols[scope["path"]]
        status = 0
        extra = _request_id(scope["headers"])

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except (ClientGone, ClientDisconnect):
            status = GONE_STATUS
        except Exception as error:
            response = error_response(error, scope)
            if not status:
                await response(scope, receive, counted)
        finally:
            route = self._route(scope["path"])
            self._metrics.requests.labels(route, str(status)).inc()
            log.debug("%s %d", route, status)

    def _route(self, path: str) -> str:
        if path in self._paths:
            return path
        return next((name for regex, name in self._patterns if regex.match(path)), "other")


def _request_id(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The client's own name for its request, sent back if it is harmless, and used for nothing."""
    values = [value for name, value in headers if name == b"x-request-id"]
    if len(values) == 1 and REQUEST_ID.fullmatch(values[0]):
        return [(b"x-request-id", values[0])]
    return []
