"""The real application on a real loopback socket, over a fake engine; in a thread of its own."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import httpx

from inferplane.config import Config
from inferplane.server.app import create_app
from inferplane.server.auth import ApiKey
from inferplane.server.http import HttpServer
from inferplane.server.run import listen
from inferplane.server.service import Service
from inferplane.testing.fake_engine import Behaviour, FakeEngineCore
from inferplane.testing.inline_client import InlineClient
from inferplane.text.tokenizer import Tokenizer
from tests.core.server.byte_model import EOS, byte_tokenizer
from tests.core.server.openai_spec import SpecCheck

NAME = "tiny"
MODEL = "byte-model"
SCRIPT = {
    "count": "one two three four",
    "emoji": "I ❤️ 日本 and 🎉!",
    "stop": "alpha STOP beta",
    "almost": "alpha STO beta ST gamma",
    "quote": 'say "hi"\n\x00 ok',
}
"""prompt -> what the model says to it, and then end of sequence"""

CHAT = "<bos>user: {}\nassistant:"


def scripted(**more: Any) -> Behaviour:
    tokenizer = byte_tokenizer()
    script: list[tuple[list[int], list[int]]] = []
    for prompt, answer in SCRIPT.items():
        tokens = [*answer.encode(), EOS]
        script.append((tokenizer.encode(prompt), tokens))
        script.append((tokenizer.encode(CHAT.format(prompt)), tokens))
    return Behaviour(script=script, **more)


class LiveServer:
    """`core` and `client` are for tests to look into; change them only through `call`. `spec`
    checks the answers."""

    def __init__(self, loop: asyncio.AbstractEventLoop, core: FakeEngineCore, url: str) -> None:
        self.core = core
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=30)
        self.client: InlineClient
        self.service: Service
        self.spec: SpecCheck
        self._loop = loop

    def call(self, work: Callable[[], Any]) -> Any:
        """Run `work` on the server's event loop."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except Exception as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return done.result(timeout=30)

    def chat(self, content: str, **fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": content}], **fields}
        return self.http.post("/v1/chat/completions", json=body)

    def complete(self, prompt: Any, **fields: Any) -> httpx.Response:
        return self.http.post("/v1/completions", json={"prompt": prompt, **fields})

    def generate(self, text: Any, **fields: Any) -> httpx.Response:
        return self.http.post("/generate", json={"text": text, **fields})


@contextmanager
def live_server(
    behaviour: Behaviour | None = None,
    *,
    key: str | None = None,
    tokenizer: Tokenizer | None = None,
    **settings: Any,
) -> Iterator[LiveServer]:
    config = Config(model=MODEL, served_model_name=NAME, port=0, **settings)
    core = FakeEngineCore(config, behaviour=behaviour or scripted())
    listener = listen(config)
    host, port = listener.getsockname()
    loop = asyncio.new_event_loop()
    live = LiveServer(loop, core, f"http://{host}:{port}")
    ready: Future[HttpServer] = Future()

    async def run() -> None:
        live.client = InlineClient(core)
        app = create_app(
            live.client,
            tokenizer or byte_tokenizer(),
            config,
            generation_config={"temperature": 0.5, "top_k": 7, "eos_token_id": EOS},
            key=ApiKey(key) if key else None,
        )
        live.service = app.state.service
        live.spec = SpecCheck(app)
        server = HttpServer(live.spec, drain_seconds=1)
        ready.set_result(server)
        await server.serve([listener])
        await live.client.close()
        app.state.service.generator.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    try:
        server = ready.result(timeout=30)
        yield live
    finally:
        live.http.close()
        server.should_exit = True
        thread.join(30)
        loop.close()
        listener.close()
    live.spec.verify()


def sse(response: httpx.Response) -> list[str]:
    """The payloads of a stream."""
    lines = [line for line in response.text.split("\n") if line]
    for line in lines:
        assert line.startswith("data: "), line
    return [line.removeprefix("data: ") for line in lines]


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The values of a stream that came to its proper end."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *payloads, last = sse(response)
    assert last == "[DONE]"
    return [json.loads(payload) for payload in payloads]
