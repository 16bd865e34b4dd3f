"""The application: which endpoint lies where, and who may call it."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
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
from inferplane.parsers.choose import Parsers, choose
from inferplane.server.auth import ApiKey, Auth, check_admin, is_loopback
from inferplane.server.boundary import Boundary
from inferplane.server.endpoint import Access, Endpoint
from inferplane.server.endpoints import ENDPOINTS
from inferplane.server.errors import OPENAI, handle
from inferplane.server.limits import Limits
from inferplane.server.metrics import Metrics
from inferplane.server.service import ServerClient, Service
from inferplane.text.tokenizer import Tokenizer


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
        config=config,
        generator=Generator(client, tokenizer, eos_ids=eos_ids, grammars=grammars),
        names=tuple(dict.fromkeys([config.served_model_name or config.model, config.model])),
        defaults=sampling_defaults(generation_config or {}),
        metrics=Metrics(lambda: client.stats, client.ready),
        parsers=_parsers(config, tokenizer),
    )
    table = tuple(endpoints)
    open_paths = frozenset(e.path for e in table if e.access is Access.OPEN)
    paths = tuple(dict.fromkeys(e.path for e in table))
    protocols = {e.path: e.protocol for e in table if e.protocol != OPENAI}
    admin = key is None and is_loopback(config.host)
    app = FastAPI(
        title="inferplane",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        routes=[Route(e.path, _bind(service, e, admin), methods=[e.method]) for e in table],
        middleware=[
            Middleware(Boundary, metrics=service.metrics, paths=paths, protocols=protocols),
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
    app.state.endpoints = table
    return app


def _parsers(config: Config, tokenizer: Tokenizer) -> Parsers:
    template = tokenizer.chat_template
    return choose(
        config.tool_call_parser,
        config.reasoning_parser,
        template.source if template else "",
        {token: tokenizer.token_text(token) for token in tokenizer.special_ids},
    )


def _bind(
    service: Service, endpoint: Endpoint, admin: bool
) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        if endpoint.access is Access.ADMIN:
            check_admin(admin, request)
        return await endpoint.handler(service, request)

    return handle
