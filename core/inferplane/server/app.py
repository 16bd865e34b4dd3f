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
from inferplane.parsers.choose import Parsers, choose
from inferplane.server import control, scoring, system
from inferplane.server.anthropic import endpoints as anthropic
from inferplane.server.auth import ApiKey, Auth, check_admin, is_loopback
from inferplane.server.boundary import Boundary
from inferplane.server.chat import chat
from inferplane.server.completions import completions
from inferplane.server.errors import ANTHROPIC, OLLAMA, OPENAI, handle
from inferplane.server.limits import Limits
from inferplane.server.metrics import Metrics
from inferplane.server.native import generate
from inferplane.server.ollama import endpoints as ollama
from inferplane.server.responses import endpoints as responses
from inferplane.server.service import ServerClient, Service
from inferplane.text.tokenizer import Tokenizer

Handler = Callable[[Service, Request], Awaitable[Response]]


class Access(enum.Enum):
    """Who may call an endpoint: anybody, who has the key (if one is set), or only programs on this
    machine, of a server that has no key and listens on a loopback address."""

    OPEN = "open"
    KEY = "key"
    ADMIN = "admin"


@dataclass(frozen=True)
class Endpoint:
    path: str
    method: str
    handler: Handler
    access: Access
    protocol: str = OPENAI
    """whose error format it answers in"""


ENDPOINTS = (
    Endpoint("/health/live", "GET", system.live, Access.OPEN),
    Endpoint("/health/ready", "GET", system.ready, Access.KEY),
    Endpoint("/health", "GET", system.ready, Access.KEY),
    Endpoint("/metrics", "GET", system.metrics, Access.KEY),
    Endpoint("/v1/models", "GET", system.models, Access.KEY),
    Endpoint("/v1/models/{model:path}", "GET", system.model, Access.KEY),
    Endpoint("/v1/chat/completions", "POST", chat, Access.KEY),
    Endpoint("/v1/completions", "POST", completions, Access.KEY),
    Endpoint("/v1/responses", "POST", responses.create, Access.KEY),
    Endpoint("/v1/responses/{response_id}", "GET", responses.retrieve, Access.KEY),
    Endpoint("/v1/responses/{response_id}", "DELETE", responses.delete, Access.KEY),
    Endpoint("/v1/responses/{response_id}/cancel", "POST", responses.cancel, Access.KEY),
    Endpoint("/v1/responses/{response_id}/input_items", "GET", responses.input_items, Access.KEY),
    Endpoint("/v1/embeddings", "POST", scoring.embeddings, Access.KEY),
    Endpoint("/v1/rerank", "POST", scoring.rerank, Access.KEY),
    Endpoint("/v1/score", "POST", scoring.score, Access.KEY),
    Endpoint("/v1/messages", "POST", anthropic.messages, Access.KEY, ANTHROPIC),
    Endpoint("/v1/messages/count_tokens", "POST", anthropic.count_tokens, Access.KEY, ANTHROPIC),
    Endpoint("/api/chat", "POST", ollama.chat, Access.KEY, OLLAMA),
    Endpoint("/api/generate", "POST", ollama.generate, Access.KEY, OLLAMA),
    Endpoint("/api/tags", "GET", ollama.tags, Access.KEY, OLLAMA),
    Endpoint("/api/show", "POST", ollama.show, Access.KEY, OLLAMA),
    Endpoint("/api/version", "GET", ollama.version, Access.KEY, OLLAMA),
    Endpoint("/generate", "POST", generate, Access.KEY),
    Endpoint("/abort_request", "POST", control.abort_request, Access.KEY),
    Endpoint("/flush_cache", "POST", control.flush_cache, Access.ADMIN),
    Endpoint("/model_info", "GET", control.model_info, Access.KEY),
    Endpoint("/get_model_info", "GET", control.model_info, Access.KEY),
    Endpoint("/server_info", "GET", control.server_info, Access.KEY),
    Endpoint("/get_server_info", "GET", control.server_info, Access.KEY),
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
    service = Service(
        client=client,
        config=config,
        generator=Generator(client, tokenizer, eos_ids=eos_ids),
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
