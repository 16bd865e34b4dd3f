"""JSON out: whole bodies and server-sent events."""

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

DONE = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()


def json_response(
    body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(
        _encoder.encode(body), status, dict(headers or {}), media_type="application/json"
    )


def event(body: Any) -> bytes:
    return b"data: " + _encoder.encode(body) + b"\n\n"


def named_event(body: Any) -> bytes:
    """An event that has its type for a name too."""
    return f"event: {body['type']}\n".encode() + event(body)


def line(body: Any) -> bytes:
    """A line of newline-delimited JSON."""
    return _encoder.encode(body) + b"\n"
