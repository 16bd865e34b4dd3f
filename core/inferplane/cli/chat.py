"""`inferplane chat MODEL`: a conversation in the terminal, or line by line from a pipe."""

import argparse
import contextlib
import signal
import sys
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing
from typing import Any

from inferplane.background import Background
from inferplane.cli.conversation import Conversation, Message, Talker
from inferplane.cli.engine import open_from
from inferplane.cli.options import add_model, add_sampling, add_settings, given_sampling
from inferplane.errors import InferplaneError
from inferplane.offline import Engine, params_from
from inferplane.remote import Remote, read_key

PROMPT = "> "


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser, optional=True)
    parser.add_argument("--url", default=None, help="talk to this server instead of MODEL")
    parser.add_argument("--system", default="", metavar="TEXT", help="system prompt")
    add_sampling(parser)
    add_settings(parser)


class LocalTalker:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def answer(self, messages: list[Message], params: dict[str, Any]) -> Generator[str, None, None]:
        with contextlib.closing(self._engine.chat(messages, params, stream=True)) as deltas:
            for delta in deltas:
                yield delta.text


class RemoteTalker:
    """`n` and other parameters go to the server as they are."""

    def __init__(self, remote: Remote, background: Background) -> None:
        self._remote = remote
        self._background = background

    def answer(self, messages: list[Message], params: dict[str, Any]) -> Generator[str, None, None]:
        yield from self._background.iterate(self._pieces({**params, "messages": messages}))

    async def _pieces(self, body: dict[str, Any]) -> AsyncGenerator[str, None]:
        events = self._remote.events("/v1/chat/completions", {**body, "stream": True})
        async with aclosing(events):
            async for event in events:
                for choice in event.get("choices", ()):
                    yield choice["delta"].get("content") or ""


def run(arguments: argparse.Namespace) -> int:
    params = given_sampling(arguments)
    params_from(params)  # before the model is loaded
    with contextlib.ExitStack() as stack:
        if arguments.url is not None:
            remote = Remote(arguments.url, read_key(getattr(arguments, "api_key_file", None)))
            background = Background("inferplane-chat")
            stack.callback(background.close)
            name = background.run(remote.get("/v1/models"))["data"][0]["id"]
            talker: Talker = RemoteTalker(remote, background)
        else:
            engine = stack.enter_context(open_from(arguments))
            name = engine.info.model
            talker = LocalTalker(engine)
        signal.signal(signal.SIGTERM, _leave)
        talk(Conversation(talker, params, arguments.system), name)
    return 0


def talk(conversation: Conversation, name: str) -> None:
    """Until the input ends, /exit, or Ctrl-C at the prompt."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() a history and line editing)
        print(f"{name}: say something, or /help", flush=True)
    for line in _lines(terminal):
        try:
            with contextlib.closing(conversation.say(line)) as pieces:
                for piece in pieces:
                    print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", flush=True)
        except InferplaneError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
        if conversation.ended:
            break


def _lines(terminal: bool) -> Iterator[str]:
    while True:
        try:
            yield input(PROMPT) if terminal else input()
        except EOFError:
            return
        except KeyboardInterrupt:
            print()
            return


def _leave(signum: int, frame: object) -> None:
    sys.exit(0)
