"""Who may call what. Deny by default: a path is open only if its route was registered as open.

The decision rests on the ASGI path, which the router uses too, and on nothing that a client can
set elsewhere.
"""

import hashlib
import hmac
import ipaddress
from pathlib import Path

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from inferplane import env
from inferplane.config import Config
from inferplane.errors import ConfigError, RequestError
from inferplane.server.errors import ANTHROPIC, error_response


class ApiKey:
    """Keeps a digest of the key, never the key."""

    def __init__(self, key: str) -> None:
        self._digest = hashlib.sha256(key.encode()).digest()

    def matches(self, candidate: bytes) -> bool:
        return hmac.compare_digest(hashlib.sha256(candidate).digest(), self._digest)

    @property
    def tenant(self) -> str:
        """A name for the holder of the key, from which the key cannot be found."""
        return hashlib.sha256(b"tenant" + self._digest).hexdigest()[:32]

    def __repr__(self) -> str:
        return "ApiKey(hidden)"


def load_key(config: Config) -> ApiKey | None:
    """From --api-key-file, else from the environment; None if neither is set."""
    if config.api_key_file is None:
        key = env.api_key()
    else:
        try:
            key = Path(config.api_key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--api-key-file {config.api_key_file} cannot be read ({type(error).__name__}): "
                "name a readable text file"
            ) from None
        if not key:
            raise ConfigError(f"--api-key-file {config.api_key_file} is empty: put the key in it")
    return None if key is None else ApiKey(key)


def is_loopback(host: str) -> bool:
    """True for an address that only programs on this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_admin(local: bool, request: Request) -> None:
    """Refuses operators' endpoints unless the server is `local`: loopback only, and no key, which
    would mean that it has users. A page in a browser on this machine is no operator either: its
    requests have an Origin."""
    if not local or "origin" in request.headers:
        raise RequestError(
            "This endpoint is for the operator: it answers programs on the same machine, if the "
            "server listens on a loopback address (--host 127.0.0.1) and has no API key.",
            code="operator_only",
            status=403,
        )


class Auth:
    """Answers 401 to whatever lacks the key. Without a key everything is let through. Anthropic's
    endpoints take the key in x-api-key too, as its clients send it."""

    def __init__(self, app: ASGIApp, key: ApiKey | None, open_paths: frozenset[str]) -> None:
        self._app = app
        self._key = key
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "lifespan"
            or self._key is None
            or (scope["type"] == "http" and scope["path"] in self._open_paths)
        ):
            await self._app(scope, receive, send)
        elif self._authorized(self._key, scope):
            scope.setdefault("state", {})["tenant"] = self._key.tenant
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            refusal = RequestError(
                "Missing or wrong API key: send it in the header 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                status=401,
            )
            await error_response(refusal, scope)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    @staticmethod
    def _authorized(key: ApiKey, scope: Scope) -> bool:
        headers = scope["headers"]
        values = [value for name, value in headers if name.lower() == b"authorization"]
        if not values and scope.get("state", {}).get("protocol") == ANTHROPIC:
            keys = [value for name, value in headers if name.lower() == b"x-api-key"]
            return len(keys) == 1 and key.matches(keys[0])
        scheme, _, token = values[0].partition(b" ") if values else (b"", b"", b"")
        matches = key.matches(token)
        return matches and scheme.lower() == b"bearer" and len(values) == 1
