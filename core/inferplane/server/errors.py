"""The one place where an exception becomes an answer: in OpenAI's error format, or in that of the
API whose endpoint was called. What a failure of ours was about stays in the log, under an id that
the client is told.
"""

import logging
import traceback
import uuid
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from inferplane.errors import EngineDeadError, RequestError
from inferplane.server.encode import json_response

SERVER_MESSAGES = {
    500: "The server failed to answer this request.",
    503: "The server is not ready to answer requests.",
}
ROUTING_MESSAGES = {
    404: "No such endpoint.",
    405: "This endpoint does not take this HTTP method.",
}
TYPES = {401: "authentication_error", 429: "rate_limit_error"}
RETRY_AFTER_SECONDS = "1"

OPENAI, ANTHROPIC, OLLAMA = "openai", "anthropic", "ollama"
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}

log = logging.getLogger(__name__)


class ClientGone(Exception):
    """The client has closed its connection: there is nobody to answer."""


def error_body(error: Exception, protocol: str = OPENAI) -> tuple[int, dict[str, Any]]:
    """(HTTP status, JSON body). Logs what the body must not say."""
    status, found = _found(error)
    match protocol:
        case "anthropic":
            kind = "api_error" if status >= 500 else "invalid_request_error"
            found = {**found, "type": ANTHROPIC_TYPES.get(status, kind)}
            return status, {"type": "error", "error": found}
        case "ollama":
            return status, {"error": found["message"], "param": found["param"]}
        case _:
            return status, {"error": found}


def _found(error: Exception) -> tuple[int, dict[str, Any]]:
    if isinstance(error, RequestError) and error.status < 500:
        return error.status, _body(
            error.message,
            TYPES.get(error.status, "invalid_request_error"),
            error.param,
            error.code,
        )
    if isinstance(error, HTTPException) and error.status_code < 500:
        message = ROUTING_MESSAGES.get(error.status_code, "The request was refused.")
        return error.status_code, _body(message, "invalid_request_error", None, None)
    status, code = 500, "internal_error"
    if isinstance(error, EngineDeadError):
        status, code = 503, "engine_dead"
    elif isinstance(error, RequestError):
        status, code = error.status, error.code or code
    identity = uuid.uuid4().hex[:16]
    message = SERVER_MESSAGES.get(status, SERVER_MESSAGES[500])
    if code == "engine_starting":
        message = "The model is still loading."
    else:
        _log_failure(identity, error)
    return status, _body(f"{message} Error id: {identity}", "server_error", None, code)


def _body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": param, "code": code}


def _log_failure(identity: str, error: Exception) -> None:
    """One line. The text of an unforeseen exception may quote a prompt: debug level only."""
    if isinstance(error, RequestError | EngineDeadError):
        log.error("error %s: %s", identity, error)
        return
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
    log.error("error %s: %s in %s", identity, type(error).__name__, where)
    log.debug("error %s: %r", identity, str(error))


def error_response(error: Exception, scope: Scope) -> Response:
    """In the format of the endpoint that `scope` is about, as the outermost layer noted it."""
    status, body = error_body(error, scope.get("state", {}).get("protocol", OPENAI))
    headers = {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    elif status in (429, 503):
        headers["retry-after"] = RETRY_AFTER_SECONDS
    elif status == 405 and isinstance(error, HTTPException) and error.headers:
        headers.update(error.headers)
    return json_response(body, status=status, headers=headers)


async def handle(request: Request, error: Exception) -> Response:
    """For Starlette's exception handlers."""
    return error_response(error, request.scope)
