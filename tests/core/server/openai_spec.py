"""Checks every answer that a test server gives on OpenAI's endpoints against the OpenAPI
description that OpenAI publishes. Without that file, which lies beside the checkout, or without its
validator nothing is checked.
"""

import importlib.util
import json
import lzma
import threading
from functools import cache
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

SPEC = Path(__file__).parents[4] / "shared/data/openai-openapi.yml.xz"
MISSING = "; ".join(
    [f"{SPEC} is not there"] * (not SPEC.is_file())
    + ["jsonschema_rs is not installed"] * (importlib.util.find_spec("jsonschema_rs") is None)
)
"""why nothing is checked; empty if everything is"""

WHOLE = {
    ("POST", "/v1/chat/completions"): "CreateChatCompletionResponse",
    ("POST", "/v1/completions"): "CreateCompletionResponse",
    ("GET", "/v1/models"): "ListModelsResponse",
    ("GET", "/v1/models/*"): "Model",
    ("POST", "/v1/responses"): "Response",
    ("POST", "/v1/responses/input_tokens"): "TokenCountsResource",
    ("GET", "/v1/responses/*"): "Response",
    ("POST", "/v1/responses/*/cancel"): "Response",
    ("GET", "/v1/responses/*/input_items"): "ResponseItemList",
}
EVENTS = {
    "/v1/chat/completions": "CreateChatCompletionStreamResponse",
    "/v1/completions": "CreateCompletionResponse",
    "/v1/responses": "ResponseStreamEvent",
}
OURS = ("/v1/messages", "/v1/score", "/v1/rerank", "/api/")
"""endpoints that OpenAI does not have"""


@cache
def components() -> dict[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with lzma.open(SPEC) as file:
        found: dict[str, Any] = yaml.load(file, Loader=loader)["components"]  # noqa: S506
    translated: dict[str, Any] = _with_nulls(found)
    _mend(translated["schemas"])
    return translated


def _with_nulls(value: Any) -> Any:
    """`nullable`, which is OpenAPI's older word, as JSON schema says it."""
    if isinstance(value, list):
        return [_with_nulls(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {name: _with_nulls(item) for name, item in value.items() if name != "nullable"}
    return {"anyOf": [found, {"type": "null"}]} if value.get("nullable") is True else found


def _mend(schemas: dict[str, Any]) -> None:
    """Where OpenAI's own service does not do as its description says: a chunk of a text completion
    has no finish_reason before the last and a null usage, as the text beside the schema says, and
    the first token of an echoed prompt has no logprob."""
    whole = schemas["CreateCompletionResponse"]["properties"]
    choice = whole["choices"]["items"]["properties"]
    (logprobs,) = [s["properties"] for s in choice["logprobs"]["anyOf"] if "properties" in s]
    for place, name in (
        (choice, "finish_reason"),
        (whole, "usage"),
        (logprobs["token_logprobs"], "items"),
        (logprobs["top_logprobs"], "items"),
    ):
        place[name] = {"anyOf": [place[name], {"type": "null"}]}


_lock = threading.Lock()


@cache
def validator(name: str) -> Any:
    import jsonschema_rs

    schema = {"$ref": f"#/components/schemas/{name}", "components": components()}
    return jsonschema_rs.Draft202012Validator(schema)


def violations(name: str, value: Any) -> list[str]:
    with _lock:
        checker = validator(name)
    if checker.is_valid(value):
        return []
    first = next(iter(checker.iter_errors(value)))
    where = "/".join(map(str, first.instance_path))
    return [f"{name}: {where}: {first.message[:300]}"]


def pattern_of(path: str) -> str:
    parts = path.split("/")
    if len(parts) > 3 and parts[3] != "input_tokens" and parts[2] in ("models", "responses"):
        parts[3] = "*"
        if parts[2] == "models":
            parts = parts[:4]
    return "/".join(parts)


def check(method: str, path: str, status: int, kind: str, body: bytes) -> list[str]:
    """What is wrong with an answer."""
    if not path.startswith("/v1/") or path.startswith(OURS) or method not in ("GET", "POST"):
        return []
    if status >= 400:
        return violations("ErrorResponse", json.loads(body))
    if kind.startswith("text/event-stream"):
        path = "/v1/responses" if path.startswith("/v1/responses/") else path
        found = []
        for line in body.decode().split("\n"):
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            value = json.loads(line.removeprefix("data: "))
            name = "ErrorResponse" if "error" in value else EVENTS[path]
            found += violations(name, value)
        return found
    name = WHOLE.get((method, pattern_of(path)), "")
    return violations(name, json.loads(body)) if name else [f"{method} {path} has no schema"]


class SpecCheck:
    """An application around another; `found` is what was wrong with its answers, `checked` how
    many there were. An answer that a client did not wait for is left out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.found: list[str] = []
        self.checked = 0

    def verify(self) -> None:
        if self.found:
            raise AssertionError("\n".join(sorted(set(self.found))[:20]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or MISSING:
            await self._app(scope, receive, send)
            return
        start: Message = {}
        parts: list[bytes] = []
        whole = False

        async def kept(message: Message) -> None:
            nonlocal start, whole
            if message["type"] == "http.response.start":
                start = message
            else:
                parts.append(message.get("body", b""))
                whole = not message.get("more_body", False)
            await send(message)

        await self._app(scope, receive, kept)
        if whole and scope["method"] != "HEAD":
            kind = dict(start["headers"]).get(b"content-type", b"").decode()
            body = b"".join(parts)
            self.checked += 1
            self.found += check(scope["method"], scope["path"], start["status"], kind, body)
