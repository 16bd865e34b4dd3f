"""Sizes are refused before anything is allocated for them."""

import asyncio
import socket

import pytest
from starlette.types import Message, Receive, Scope, Send

from inferplane.errors import RequestError
from inferplane.server.limits import MAX_BODY, MAX_BODY_CHUNKS, MAX_HEADERS, Limits
from tests.core.server.live_server import LiveServer, live_server


def status_of(live: LiveServer, raw: bytes) -> int:
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(raw)
        with connection.makefile("rb") as reader:
            return int(reader.readline().split()[1])


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_a_long_body_is_refused_by_its_length(live: LiveServer) -> None:
    assert status_of(live, HEAD + b"Content-Length: %d\r\n\r\n" % (MAX_BODY + 1)) == 413


def test_a_chunked_body_is_counted_as_it_comes(live: LiveServer) -> None:
    """The answer comes before the end of the body, which here never comes."""
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    assert status_of(live, head + chunk * (MAX_BODY // 2**20 + 1)) == 413
    assert live.complete("count").status_code == 200


@pytest.mark.parametrize(("size", "taken"), [(2**20, 33), (1, MAX_BODY_CHUNKS + 1)])
def test_no_more_is_read_than_allowed(size: int, taken: int) -> None:
    received = 0
    scope: Scope = {"type": "http", "headers": []}

    async def receive() -> Message:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": b" " * size, "more_body": True}

    async def send(message: Message) -> None:
        raise AssertionError("the application answers, not the limits")

    async def read_all(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass

    with pytest.raises(RequestError) as refusal:
        asyncio.run(Limits(read_all)(scope, receive, send))
    assert refusal.value.status == 413 and received == taken


def test_just_small_enough() -> None:
    with live_server() as live:
        text = "x" * (MAX_BODY - 100)
        response = live.complete(text)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "GZIP", "identity, gzip"])
def test_encodings_are_refused(live: LiveServer, encoding: str) -> None:
    response = live.http.post(
        "/v1/completions", content=b"{}", headers={"content-encoding": encoding}
    )
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_encoding"


def test_headers(live: LiveServer) -> None:
    many = {f"x-{i}": "1" for i in range(MAX_HEADERS + 1)}
    assert live.http.get("/health/live", headers=many).status_code == 431
    large = {"x-large": "x" * 33_000}
    assert live.http.get("/health/live", headers=large).status_code == 431


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "json"])
def test_only_json(live: LiveServer, kind: str) -> None:
    """A page in a browser can send these without asking; JSON it cannot."""
    response = live.http.post("/generate", content=b'{"text": "a"}', headers={"content-type": kind})
    assert response.status_code == 415


def test_json_with_a_charset(live: LiveServer) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    response = live.http.post("/generate", content=b'{"text": "count"}', headers=headers)
    assert response.status_code == 200


def test_no_cors(live: LiveServer) -> None:
    headers = {"origin": "http://evil", "access-control-request-method": "POST"}
    response = live.http.options("/v1/chat/completions", headers=headers)
    assert response.status_code == 405
    response = live.http.get("/v1/models", headers=headers)
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("sent", "returned"),
    [
        ("abc-1._X", "abc-1._X"),
        ("x" * 64, "x" * 64),
        ("x" * 65, None),
        ("a b", None),
        ("a/b", None),
    ],
)
def test_request_id(live: LiveServer, sent: str, returned: str | None) -> None:
    response = live.http.get("/health/live", headers={"x-request-id": sent})
    assert response.headers.get("x-request-id") == returned


def test_unknown_paths_and_methods(live: LiveServer) -> None:
    for method, path, status in (("GET", "/nope", 404), ("GET", "/generate", 405)):
        response = live.http.request(method, path)
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
