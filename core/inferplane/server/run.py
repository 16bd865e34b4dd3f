"""`serve`: one engine process, one HTTP server, until a signal ends both.

What HTTP needs (http.py) is imported while the engine starts: that takes longer, and is what the
first token waits for.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from inferplane.checkpoint.source import open_model
from inferplane.config import Config
from inferplane.errors import ConfigError
from inferplane.ipc.client import ENGINE_MODULE, ProcessClient
from inferplane.server.auth import load_key

if TYPE_CHECKING:
    from inferplane.server.http import HttpServer

BACKLOG = 2048
SIGNALS = (signal.SIGTERM, signal.SIGINT)
FAST_EXIT_CODE = 130
DEAD_ENGINE_EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h: supervisors start a program again that ends with it"""

log = logging.getLogger(__name__)


def announce(text: str) -> None:
    """To standard output, also when that is a pipe."""
    print(text, flush=True)


def serve(
    config: Config, *, say: Callable[[str], None] = announce, module: str = ENGINE_MODULE
) -> int:
    """Serve until SIGTERM or SIGINT, which let the requests in flight finish; a second one does
    not. When the engine dies, requests get errors and the server ends. Returns the exit code.
    `module` replaces the engine process in tests.
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
            await asyncio.sleep(0)  # lets the engine process start
            try:
                from inferplane.server.http import HttpServer, application

                app = await application(config, source, client, key)
                running = Running(config, client, listener, HttpServer(app), say)
                try:
                    return await running.until_signal(starting)
                finally:
                    app.state.service.generator.close()
            finally:
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                await client.close()

        return _run_loop(run)


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
        http: "HttpServer",
        say: Callable[[str], None],
    ) -> None:
        self._config = config
        self._client = client
        self._listener = listener
        self._say = say
        self._signals = 0
        self._http = http

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
            died = asyncio.create_task(self._client.died.wait())
            await asyncio.wait((died, serving), return_when=asyncio.FIRST_COMPLETED)
            died.cancel()
            if self._client.died.is_set():
                log.error("the engine is dead: this process ends, to be started again")
                return DEAD_ENGINE_EXIT_CODE
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
