"""The HTTP server and the application that it serves."""

import asyncio
import contextlib
import logging
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from inferplane.checkpoint.source import ModelSource
from inferplane.config import Config
from inferplane.errors import InferplaneError
from inferplane.server.app import create_app
from inferplane.server.auth import ApiKey
from inferplane.server.service import ServerClient
from inferplane.text.tokenizer import Tokenizer

DRAIN_SECONDS = 30
MAX_HEAD_BYTES = 64 * 1024


class HttpServer(uvicorn.Server):
    """uvicorn without its access log, which has what clients send, and without its signal
    handling, which ends the process with the signal."""

    def __init__(self, app: ASGIApp, drain_seconds: int = DRAIN_SECONDS) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                log_level="warning",  # we say ourselves what we do
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=drain_seconds,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            )
        )
        # access_log only takes the handlers away, and anybody may add some
        logging.getLogger("uvicorn.access").disabled = True

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


async def application(
    config: Config, source: ModelSource, client: ServerClient, key: ApiKey | None
) -> FastAPI:
    """The application for a model; its vocabulary is read in a thread."""
    loop = asyncio.get_running_loop()
    tokenizer = await loop.run_in_executor(None, source.tokenizer, config.chat_template)
    return create_app(
        client,
        tokenizer,
        config,
        generation_config=source.generation_config,
        eos_ids=_eos_ids(source.generation_config, tokenizer),
        key=key,
    )


def _eos_ids(generation_config: dict[str, Any], tokenizer: Tokenizer) -> frozenset[int]:
    """Every id that ends a sequence, from both places where models name them."""
    named = generation_config.get("eos_token_id")
    ids = named if isinstance(named, list) else [] if named is None else [named]
    if not all(type(token) is int for token in ids):
        raise InferplaneError(f"eos_token_id is {named!r}, must be an id or a list of ids")
    return tokenizer.eos_ids | frozenset(ids)
