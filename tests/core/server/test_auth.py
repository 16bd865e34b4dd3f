"""With a key set, every path but /health/live is shut, whatever the request looks like."""

import logging
import socket
from collections.abc import Iterator

import pytest
from starlette.routing import Route

from inferplane.config import Config
from inferplane.errors import ConfigError
from inferplane.server.app import create_app
from inferplane.server.auth import ApiKey, load_key
from inferplane.server.endpoint import Access
from inferplane.server.endpoints import ENDPOINTS
from inferplane.server.errors import ANTHROPIC
from inferplane.testing.fake_engine import FakeEngineCore
from inferplane.testing.inline_client import InlineClient
from tests.core.server.byte_model import byte_tokenizer
from tests.core.server.live_server import LiveServer, live_server

KEY = "canary-key-3f2a"
OPEN = {"/health/live"}


def concrete(path: str) -> str:
    return path.replace("{model:path}", "tiny").replace("{response_id}", "resp_1")


PATHS = sorted(concrete(e.path) for e in ENDPOINTS)
ANTHROPIC_PATHS = [e.path for e in ENDPOINTS if e.protocol == ANTHROPIC]
UNKNOWN = ["/", "/docs", "/redoc", "/v1", "/favicon.ico", "/admin", "/metrics/"]


@pytest.fixture(scope="module")
def shut() -> Iterator[LiveServer]:
    with live_server(key=KEY) as server:
        yield server


def header_vectors(path: str) -> list[list[str]]:
    """Extra header lines that must not open a path."""
    wrong = [
        "",
        "Bearer",
        "Bearer ",
        "Bearer  " + KEY,
        "Bearer x" + KEY,
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY.upper()}",
        f"Basic {KEY}",
        f"Token {KEY}",
        KEY,
        f"Bearer{KEY}",
        f"Bearer\t{KEY}",
        "Bearer null",
        "Bearer undefined",
        "Bearer \xe9",
        f"Bearer {KEY}, Bearer {KEY}",
    ]
    vectors = [[f"Authorization: {value}"] for value in wrong]
    vectors += [
        [],
        [f"Authorization: Bearer {KEY}", f"Authorization: Bearer {KEY}"],
        ["Authorization: Bearer bad", f"Authorization: Bearer {KEY}"],
        [f"X-Api-Key: {KEY}"] if path not in ANTHROPIC_PATHS else [f"X-Api-Key: {KEY}x"],
        [f"X-Api-Key: {KEY}", f"X-Api-Key: {KEY}"],
        [f"X-Api-Key: {KEY}", "Authorization: Bearer bad"],
        [f"Api-Key: {KEY}"],
        [f"Cookie: key={KEY}"],
        [f"Proxy-Authorization: Bearer {KEY}"],
        ["X-Forwarded-For: 127.0.0.1"],
        ["X-Forwarded-Host: localhost"],
        ["X-Forwarded-Prefix: /health/live"],
        ["X-Original-URL: /health/live"],
        ["X-Rewrite-URL: /health/live"],
        ["X-Real-IP: 127.0.0.1"],
        ["Forwarded: for=127.0.0.1"],
        ["Host: x/?"],
        ["Host: x/#"],
        ["Host: x/health/live?"],
        ["Host: localhost/health/live"],
        ["X-HTTP-Method-Override: GET"],
        ["Origin: http://localhost"],
        ["Connection: close, authorization"],
        ["Upgrade: websocket", "Connection: Upgrade"],
    ]
    return vectors


def target_vectors(path: str) -> list[str]:
    """Other ways to write a path. None of them may open it."""
    return [
        f"{path}?key={KEY}",
        f"{path}?/health/live",
        f"{path}#/health/live",
        f"{path}/",
        f"/{path}",
        f"/.{path}",
        f"/x/..{path}",
        f"/health/live/..{path}",
        f"/health/live/%2e%2e{path}",
        f"/health/live;{path}",
        f"{path};/health/live",
        f"\\{path}",
        path.upper(),
        path.replace("/", "/%2f", 1),
        f"http://localhost{path}",
        f"http://localhost/health/live{path}",
        f"{path}%00",
        f"{path}%20",
        f"/health/live{path}",
    ]


def send(live: LiveServer, raw: bytes) -> int:
    """The status of the first answer to these bytes."""
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(raw)
        with connection.makefile("rb") as reader:
            line = reader.readline()
    return int(line.split()[1])


def request(method: str, target: str, headers: list[str], version: str = "1.1") -> bytes:
    if not any(header.startswith("Host:") for header in headers):
        headers = ["Host: localhost", *headers]
    lines = [f"{method} {target} HTTP/{version}", *headers, "Content-Length: 0", "", ""]
    return "\r\n".join(lines).encode("latin-1")


def method_of(path: str) -> str:
    return next((e.method for e in ENDPOINTS if e.path == path), "GET")


@pytest.mark.parametrize("path", [p for p in [*PATHS, *UNKNOWN] if p not in OPEN])
def test_shut(shut: LiveServer, path: str) -> None:
    """401, or 400 where the HTTP parser already refuses the bytes."""
    vectors = [request(method_of(path), path, headers) for headers in header_vectors(path)]
    vectors += [request(method_of(path), target, []) for target in target_vectors(path)]
    methods = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "X")
    vectors += [request(method, path, []) for method in methods]
    vectors.append(request(method_of(path), path, [], version="1.0"))
    assert len(vectors) >= 40
    for raw in vectors:
        assert send(shut, raw) in (400, 401), raw
    assert send(shut, request(method_of(path), path, [])) == 401


@pytest.mark.parametrize("target", [t for t in target_vectors("/health/live") if "?" not in t])
def test_only_the_exact_live_path_is_open(shut: LiveServer, target: str) -> None:
    expected = (200,) if target == "/health/live#/health/live" else (400, 401)
    assert send(shut, request("GET", target, [])) in (*expected, 401)


def test_pipelined_requests_are_judged_each(shut: LiveServer) -> None:
    host, port = shut.url.removeprefix("http://").split(":")
    raw = request("GET", "/health/live", []) + request("GET", "/v1/models", ["Connection: close"])
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(raw)
        with connection.makefile("rb") as reader:
            answer = reader.read()
    assert answer.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 401" in answer


def test_two_lengths_do_not_smuggle(shut: LiveServer) -> None:
    hidden = request("GET", "/v1/models", [f"Authorization: Bearer {KEY}"])
    raw = (
        b"POST /health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden
    )
    assert send(shut, raw) in (400, 405)


def test_live_is_open_and_the_key_opens_the_rest(shut: LiveServer) -> None:
    assert shut.http.get("/health/live").status_code == 200
    headers = {"authorization": f"Bearer {KEY}"}
    for endpoint in ENDPOINTS:
        path = concrete(endpoint.path)
        response = shut.http.request(endpoint.method, path, headers=headers)
        assert response.status_code != 401, path
    lower = {"authorization": f"bearer {KEY}"}
    assert shut.http.get("/v1/models", headers=lower).status_code == 200


def test_refusal_is_in_openai_format(shut: LiveServer) -> None:
    response = shut.http.get("/v1/models")
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert error["code"] == "invalid_api_key" and error["type"] == "authentication_error"
    assert KEY not in response.text


def test_anthropics_endpoints_take_its_header(shut: LiveServer) -> None:
    assert len(ANTHROPIC_PATHS) == 2
    for path in ANTHROPIC_PATHS:
        response = shut.http.post(path, headers={"x-api-key": KEY}, json={})
        assert response.status_code == 400
        refused = shut.http.post(path, json={}).json()
        assert refused["type"] == "error"
        assert refused["error"]["type"] == "authentication_error"


def test_a_refused_body_is_not_read(shut: LiveServer) -> None:
    """401 comes although only the headers have been sent."""
    raw = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    assert send(shut, raw) == 401


def test_every_route_of_the_application_has_an_access_class() -> None:
    config = Config(model="m")
    client = InlineClient(FakeEngineCore(config))
    app = create_app(client, byte_tokenizer(), config)
    routes = {(route.path, *sorted(route.methods - {"HEAD"})) for route in app.routes}
    assert all(isinstance(route, Route) for route in app.routes)
    assert routes == {(e.path, e.method) for e in ENDPOINTS}
    assert {e.path for e in ENDPOINTS if e.access is Access.OPEN} == OPEN


def test_the_key_and_prompts_stay_out_of_the_log(
    shut: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    headers = {"authorization": f"Bearer {KEY}"}
    body = {"messages": [{"role": "user", "content": "canary-prompt"}], "stop": ["canary-stop"]}
    assert shut.http.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
    shut.http.post("/v1/chat/completions", json={**body, "canary": 1}, headers=headers)
    shut.http.get("/canary-path", headers={"authorization": "Bearer canary-other"})
    written = [r for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))]
    assert any("/v1/chat/completions" in r.getMessage() for r in written)
    assert not [r.getMessage() for r in written if "canary" in r.getMessage()]
    assert KEY not in repr(ApiKey(KEY)) and KEY not in str(vars(ApiKey(KEY)))


def test_tenants_and_salts_do_not_share_a_cache(shut: LiveServer) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    for salt in ("a", "b", None):
        body = {"prompt": "the same", "max_tokens": 1, "cache_salt": salt}
        response = shut.http.post("/v1/completions", json=body, headers=headers)
        assert response.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    namespaces = [submit.namespace for submit in shut.core.submitted[-3:]]
    assert len({*namespaces, ""}) == 4


class TestLoadKey:
    def test_file_before_environment(
        self, tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("INFERPLANE_API_KEY", "from-env")
        from_env = load_key(Config(model="m"))
        assert from_env is not None and from_env.matches(b"from-env")
        file = tmp_path / "key"  # type: ignore[operator]
        file.write_text("from-file\n")
        from_file = load_key(Config(model="m", api_key_file=str(file)))
        assert from_file is not None and from_file.matches(b"from-file")
        assert not from_file.matches(b"from-env")

    def test_no_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("INFERPLANE_API_KEY", raising=False)
        assert load_key(Config(model="m")) is None

    def test_unusable_files(self, tmp_path: pytest.TempPathFactory) -> None:
        with pytest.raises(ConfigError, match=r"--api-key-file .*cannot be read"):
            load_key(Config(model="m", api_key_file=str(tmp_path / "none")))
        empty = tmp_path / "empty"  # type: ignore[operator]
        empty.write_text("\n")
        with pytest.raises(ConfigError, match="is empty"):
            load_key(Config(model="m", api_key_file=str(empty)))
