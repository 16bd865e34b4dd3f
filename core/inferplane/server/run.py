"""`serve`: one engine process, one HTTP server, until a signal ends both."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from inferplane.checkpoint.source import ModelSource, open_model
from inferplane.config import Config
from inferplane.errors import ConfigError, InferplaneError
from inferplane.ipc.client import ENGINE_MODULE, ProcessClient
from inferplane.server.app import create_app
from inferplane.server.auth import ApiKey, load_key
from inferplane.text.tokenizer import Tokenizer

DRAIN_SECONDS = 30
BACKLOG = 2048
MAX_HEAD_BYTES = 64 * 1024
SIGNALS = (signal.SIGTERM, signal.SIGINT)
FAST_EXIT_CODE = 130

log = logging.getLogger(__name__)


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


def announce(text: str) -> None:
    """To standard output, also when that is a pipe."""
    print(text, flush=True)


def serve(
    config: Config, *, say: Callable[[str], None] = announce, module: str = ENGINE_MODULE
) -> int:
    """Serve until SIGTERM or SIGINT, which let the requests in flight finish; a second one does
    not. Returns the exit code. `module` replaces the engine process in tests.
    """
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    key = load_key(config)
    listener = listen(config)
    with listener:
        source = open_model(config.model, config.revision)
        client = ProcessClient(config, module=module)

        async def run() -> int:
            starting = asyncio.create_task(client.start(say))
            await asyncio.sleep(0)  # lets the engine process start before we read the vocabulary
            try:
                app = await application(config, source, client, key)
                try:
                    return await Running(config, client, listener, app, say).until_signal(starting)
                finally:
                    app.state.service.generator.close()
            finally:
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                await client.close()

        return _run_loop(run)


async def application(
    config: Config, source: ModelSource, client: ProcessClient, key: ApiKey | None
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


def _run_loop(run: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """On uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(run())


class Running:
    """The server from its first request to its last."""

    def __init__(
        self,
        config: Config,
        client: ProcessClient,
        listener: socket.socket,
        app: FastAPI,
        say: Callable[[str], None],
    ) -> None:
        self._config = config
        self._client = client
        self._listener = listener
        self._say = say
        self._signals = 0
        self._http = HttpServer(app)

    async def until_signal(self, starting: "asyncio.Task[None]") -> int:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        serving = asyncio.create_task(self._http.serve([self._listener]))
        try:
            await asyncio.wait((starting, serving), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()  # raises why the engine did not start
                gc.collect()
                gc.freeze()  # what start-up made stays: never scan it again
                self._announce()
            await serving
        finally:
            self._http.should_exit = True
            await asyncio.gather(serving, return_exceptions=True)
        return 0

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals > 1:
            self._client.kill()
            os._exit(FAST_EXIT_CODE)
        self._say("stopping: requests in flight may finish; once more to stop at once")
        self._http.should_exit = True

    def _announce(self) -> None:
        host, port = self._listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        name = self._config.served_model_name or self._config.model
        self._say(f"serving {name} on {url}")
        self._say(
            f"try: curl {url}/v1/chat/completions -H 'Content-Type: application/json'"
            """ -d '{"messages": [{"role": "user", "content": "Say hello."}]}'"""
        )


def listen(config: Config) -> socket.socket:
    """A bound socket, so that a taken port is known before anything is loaded."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # Naming the protocol matters: asyncio sends small writes at once only on such sockets.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port} ({error.strerror}): "
            "choose another --host or --port"
        ) from None
    return listener


def _eos_ids(generation_config: dict[str, Any], tokenizer: Tokenizer) -> frozenset[int]:
    """Every id that ends a sequence, from both places where models name them."""
    named = generation_config.get("eos_token_id")
    ids = named if isinstance(named, list) else [] if named is None else [named]
    if not all(type(token) is int for token in ids):
        raise InferplaneError(f"eos_token_id is {named!r}, must be an id or a list of ids")
    return tokenizer.eos_ids | frozenset(ids)
