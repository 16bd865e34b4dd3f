"""The application: which endpoint lies where, and who may call it."""

import enum
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from inferplane.config import Config
from inferplane.errors import EngineDeadError, RequestError
from inferplane.generation import Generator, sampling_defaults
from inferplane.grammar.compile import Choices
from inferplane.server import system
from inferplane.server.auth import ApiKey, Auth
from inferplane.server.boundary import Boundary
from inferplane.server.chat import chat
from inferplane.server.completions import completions
from inferplane.server.errors import handle
from inferplane.server.limits import Limits
from inferplane.server.metrics import Metrics
from inferplane.server.native import generate
from inferplane.server.service import ServerClient, Service
from inferplane.text.tokenizer import Tokenizer

Handler = Callable[[Service, Request], Awaitable[Response]]


class Access(enum.Enum):
    """Who may call an endpoint: anybody, or who has the key (if one is set)."""

    OPEN = "open"
    KEY = "key"


@dataclass(frozen=True)
class Endpoint:
    path: str
    method: str
    handler: Handler
    access: Access


ENDPOINTS = (
    Endpoint("/health/live", "GET", system.live, Access.OPEN),
    Endpoint("/health/ready", "GET", system.ready, Access.KEY),
    Endpoint("/health", "GET", system.ready, Access.KEY),
    Endpoint("/metrics", "GET", system.metrics, Access.KEY),
    Endpoint("/v1/models", "GET", system.models, Access.KEY),
    Endpoint("/v1/models/{model:path}", "GET", system.model, Access.KEY),
    Endpoint("/v1/chat/completions", "POST", chat, Access.KEY),
    Endpoint("/v1/completions", "POST", completions, Access.KEY),
    Endpoint("/generate", "POST", generate, Access.KEY),
    Endpoint("/tokenize", "POST", system.tokenize, Access.KEY),
    Endpoint("/detokenize", "POST", system.detokenize, Access.KEY),
)


def create_app(
    client: ServerClient,
    tokenizer: Tokenizer,
    config: Config,
    *,
    generation_config: Mapping[str, Any] | None = None,
    eos_ids: Iterable[int] = (),
    key: ApiKey | None = None,
    endpoints: Iterable[Endpoint] = ENDPOINTS,
) -> FastAPI:
    """The ASGI application over an engine client and the model's tokenizer.

    `generation_config` gives the sampling defaults, `eos_ids` further ends of sequence. No CORS,
    no documentation pages, no redirects: every path is in `endpoints` or is refused.
    """
    grammars = Choices(config.grammar_backend, config.json_whitespace)
    service = Service(
        client=client,
        generator=Generator(client, tokenizer, eos_ids=eos_ids, grammars=grammars),
        names=tuple(dict.fromkeys([config.served_model_name or config.model, config.model])),
        defaults=sampling_defaults(generation_config or {}),
        metrics=Metrics(lambda: client.stats, client.ready),
    )
    table = tuple(endpoints)
    open_paths = frozenset(e.path for e in table if e.access is Access.OPEN)
    paths = frozenset(e.path for e in table)
    app = FastAPI(
        title="inferplane",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        routes=[Route(e.path, _bind(service, e.handler), methods=[e.method]) for e in table],
        middleware=[
            Middleware(Boundary, metrics=service.metrics, paths=paths),
            Middleware(Auth, key=key, open_paths=open_paths),
            Middleware(Limits),
        ],
        exception_handlers={
            RequestError: handle,
            EngineDeadError: handle,
            HTTPException: handle,
        },
    )
    app.state.service = service
    return app


def _bind(service: Service, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await handler(service, request)

    return endpoint
