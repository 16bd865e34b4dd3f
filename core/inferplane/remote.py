"""A client of a server of language models: JSON requests and server-sent events over HTTP/1.1.

One connection per request. Knows nothing of what it sends.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from inferplane import env
from inferplane.errors import ConfigError, InferplaneError

MAX_HEADERS = 100


class Remote:
    """`url` is the server's root, or ends in /v1. `key` goes out as a bearer token."""

    def __init__(
        self, url: str, key: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ConfigError(f"URL {url}: write http://HOST:PORT")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._address = (parts.hostname, port or (443 if self._tls else 80))
        self._host = parts.netloc.rpartition("@")[2]
        self._root = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = dict(headers or {})
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    async def get(self, path: str) -> Any:
        async with self._open("GET", path, None) as body:
            return json.loads(b"".join([part async for part in body]))

    async def post(self, path: str, value: Any) -> Any:
        async with self._open("POST", path, value) as body:
            return json.loads(b"".join([part async for part in body]))

    async def tell(self, path: str) -> None:
        """POST without a body; whatever a success says is not looked at."""
        async with self._open("POST", path, None) as body:
            async for _ in body:
                pass

    async def events(self, path: str, value: Any) -> AsyncGenerator[Any, None]:
        """The JSON values of the answer's events, up to [DONE]; the caller stops before the end
        of a stream that has no such mark."""
        pending = b""
        async with self._open("POST", path, value) as body:
            async for part in body:
                *whole, pending = (pending + part).replace(b"\r\n", b"\n").split(b"\n\n")
                for event in whole:
                    lines = [line for line in event.split(b"\n") if line.startswith(b"data:")]
                    data = b"\n".join(line.removeprefix(b"data:").strip() for line in lines)
                    if data == b"[DONE]":
                        return
                    if not data:
                        continue  # a comment, such as a sign of life
                    parsed = json.loads(data)
                    if "error" in parsed:
                        raise InferplaneError(f"{self.url}: {_message(data)}")
                    yield parsed
        raise InferplaneError(f"{self.url}: the answer broke off")

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, value: Any
    ) -> AsyncGenerator[AsyncIterator[bytes], None]:
        writer = None
        try:
            reader, writer = await asyncio.open_connection(*self._address, ssl=self._tls)
            writer.write(self._request(method, path, value))
            status, headers = await _read_head(reader)
            body = _read_body(reader, headers)
            if status != 200:
                text = b"".join([part async for part in body])
                raise InferplaneError(f"{self.url}{path} answered {status}: {_message(text)}")
            yield body
        except (OSError, EOFError, ValueError) as error:
            raise InferplaneError(
                f"{self.url} cannot be reached or is no HTTP server ({error}): is it running?"
            ) from error
        finally:
            if writer is not None:
                writer.close()

    def _request(self, method: str, path: str, value: Any) -> bytes:
        body = b"" if value is None else json.dumps(value).encode()
        lines = [
            f"{method} {self._root}{path} HTTP/1.1",
            f"Host: {self._host}",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        lines += [f"{name}: {value}" for name, value in self._headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    version, _, rest = (await reader.readline()).decode("latin-1").partition(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError(f"it says {version!r:.40}")
    headers = {}
    for _ in range(MAX_HEADERS):
        name, _, value = (await reader.readline()).decode("latin-1").partition(":")
        if not name.strip():
            break
        headers[name.strip().lower()] = value.strip()
    return int(rest.split(" ")[0]), headers


async def _read_body(
    reader: asyncio.StreamReader, headers: dict[str, str]
) -> AsyncGenerator[bytes, None]:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while part := await reader.read(65536):
            yield part


def _message(body: bytes) -> str:
    """The text of an error in OpenAI's form, or what else the server said."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace")[:300]


def read_key(file: str | None) -> str | None:
    """The key to send: from a file, else from the environment."""
    if file is None:
        return env.api_key()
    try:
        return Path(file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {file} cannot be read: {error}") from error
