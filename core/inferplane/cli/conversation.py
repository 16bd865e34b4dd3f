"""A conversation with a model and the commands that steer it. Knows neither terminals nor engines.

Whoever answers is a `Talker`.
"""

import json
from collections.abc import Generator
from contextlib import closing
from typing import Any, Protocol

import msgspec

from inferplane.cli.options import suggestion
from inferplane.errors import InferplaneError, RequestError
from inferplane.offline import params_from
from inferplane.sampling_params import SamplingParams

HELP = """\
/help                 this text
/reset                forget the conversation
/system TEXT          set the system prompt; without TEXT remove it
/set                  show the sampling parameters that you set
/set NAME VALUE       set one, e.g. /set temperature 0.2; without VALUE unset it
/exit                 leave
Ctrl-C stops the answer; at the prompt it leaves."""

COMMANDS = ("/help", "/reset", "/system", "/set", "/exit")

Message = dict[str, Any]


class Talker(Protocol):
    """Answers a conversation piece by piece; closing the generator stops the answer."""

    def answer(
        self, messages: list[Message], params: dict[str, Any]
    ) -> Generator[str, None, None]: ...


class Conversation:
    """Messages so far, the system prompt and the sampling parameters. `ended` after /exit."""

    def __init__(self, talker: Talker, params: dict[str, Any], system: str = "") -> None:
        self.ended = False
        self.messages: list[Message] = []
        self.params = dict(params)
        self.system = system
        self._talker = talker

    def say(self, line: str) -> Generator[str, None, None]:
        """The pieces of the answer to what the user typed, be it a command or a message."""
        line = line.strip()
        if line.startswith("/"):
            yield self._command(line) + "\n"
        elif line:
            yield from self._answer(line)
            yield "\n"

    def _answer(self, text: str) -> Generator[str, None, None]:
        """What came of an answer that was stopped stays in the conversation."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            with closing(self._talker.answer(head + self.messages, self.params)) as answer:
                for piece in answer:
                    pieces.append(piece)
                    yield piece
        except InferplaneError:
            self.messages.pop()
            raise
        finally:
            if self.messages and self.messages[-1]["role"] == "user":
                self.messages.append({"role": "assistant", "content": "".join(pieces)})

    def _command(self, line: str) -> str:
        name, _, rest = line.partition(" ")
        match name:
            case "/help":
                return HELP
            case "/exit" | "/quit":
                self.ended = True
                return "bye"
            case "/reset":
                self.messages.clear()
                return "the conversation is forgotten"
            case "/system":
                self.system = rest.strip()
                return "system prompt set" if self.system else "system prompt removed"
            case "/set":
                return self._set(rest.split(None, 1))
        return f"there is no command {name}{suggestion(name, COMMANDS)} (/help lists all)"

    def _set(self, words: list[str]) -> str:
        if not words:
            shown = [f"{name} {json.dumps(value)}" for name, value in self.params.items()]
            return "\n".join(shown) or "nothing is set: the model's defaults hold"
        name = words[0].replace("-", "_")
        if len(words) == 1:
            self.params.pop(name, None)
            return f"{name} is no longer set"
        changed = {**self.params, name: _value(name, words[1])}
        try:
            params_from(changed).verify(vocab_size=2**31)
        except RequestError as error:
            return str(error)
        self.params = changed
        return f"{name} is {json.dumps(changed[name])}"


def _value(name: str, text: str) -> Any:
    """What the text means for the parameter: JSON where it is JSON, `stop` texts as they are."""
    kinds = {item.name: item.type for item in msgspec.structs.fields(SamplingParams)}
    if kinds.get(name) == list[str] and not text.startswith("["):
        return [text]
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text
