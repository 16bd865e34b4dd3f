"""Refuses requests by their size before anything is allocated for them. Pure ASGI."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inferplane.errors import RequestError
from inferplane.server.errors import error_response

MAX_BODY = 32 * 2**20
MAX_BODY_CHUNKS = 65536
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024


class Limits:
    """Number and size of headers, encodings, and the body, which is counted as it arrives."""

    def __init__(self, app: ASGIApp, max_body: int = MAX_BODY) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._check_headers(scope["headers"])
        if refusal is not None:
            await error_response(refusal, scope)(scope, receive, send)
            return
        size = chunks = 0

        async def counted() -> Message:
            nonlocal size, chunks
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                chunks += 1
                if size > self._max_body or chunks > MAX_BODY_CHUNKS:
                    raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _check_headers(self, headers: list[tuple[bytes, bytes]]) -> RequestError | None:
        if len(headers) > MAX_HEADERS:
            return _headers_too_large(f"{len(headers)} headers, at most {MAX_HEADERS}")
        size = sum(len(name) + len(value) for name, value in headers)
        if size > MAX_HEADER_BYTES:
            return _headers_too_large(f"{size} bytes of headers, at most {MAX_HEADER_BYTES}")
        for name, value in headers:
            if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                return RequestError(
                    "Content-Encoding is not supported: send the body as it is.",
                    code="unsupported_encoding",
                    status=415,
                )
            if name == b"content-length" and not self._fits(value):
                return self._too_large()
        return None

    def _fits(self, length: bytes) -> bool:
        return length.isdigit() and len(length) < 16 and int(length) <= self._max_body

    def _too_large(self) -> RequestError:
        return RequestError(
            f"The body is larger than {self._max_body} bytes.",
            code="request_too_large",
            status=413,
        )


def _headers_too_large(what: str) -> RequestError:
    return RequestError(f"The request has {what}.", code="headers_too_large", status=431)
