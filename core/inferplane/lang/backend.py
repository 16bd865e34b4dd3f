"""What runs the calls of programs: the contract, and what all backends share."""

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from inferplane.errors import InferplaneError, ProgramError
from inferplane.lang.choices import ChoicesMethod
from inferplane.lang.sampling import DEFAULTS, Sampling
from inferplane.lang.transcript import Message, Transcript


@dataclass(frozen=True, slots=True)
class Answer:
    """A text, or a piece of one, and SGLang's meta_info of it (of all so far, in a stream).
    `reasoning`: what the backend itself has told apart from the text."""

    text: str
    meta: dict[str, Any]
    reasoning: str = ""


@dataclass
class TokenUsage:
    """What a backend has computed since it was made, or since `reset`."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, prompt: int, cached: int, completion: int) -> None:
        with self._lock:
            self.prompt_tokens += prompt
            self.cached_tokens += cached
            self.completion_tokens += completion

    def reset(self) -> None:
        with self._lock:
            self.prompt_tokens = self.cached_tokens = self.completion_tokens = 0


class Backend(Protocol):
    """Called from many threads at once."""

    token_usage: TokenUsage

    @property
    def keeps_tokens(self) -> bool:
        """Whether `skip_special_tokens` can keep them in its answers: they may mark reasoning."""
        ...

    def text(self, transcript: Transcript) -> str:
        """The prompt that the model reads."""
        ...

    def generate(self, transcript: Transcript, sampling: Sampling) -> list[Answer]:
        """`sampling.n` continuations."""
        ...

    def stream(self, transcript: Transcript, sampling: Sampling) -> Generator[Answer, None, None]:
        """One continuation, piece by piece; at least one piece. Closing it aborts."""
        ...

    def select(
        self, transcript: Transcript, choices: Sequence[str], method: ChoicesMethod
    ) -> Answer: ...

    def prefill(self, transcript: Transcript) -> None:
        """Compute the prompt, so that others that begin with it find it in the prefix cache."""
        ...

    def flush_cache(self) -> None:
        """Empty the prefix cache."""
        ...

    def get_server_info(self) -> dict[str, Any]: ...


def warm(backend: Backend, transcript: Transcript) -> None:
    """Prefill what others will begin with. If that fails, the calls that follow say why; a chat
    template may also refuse a conversation that is not complete yet."""
    if transcript.items:
        with suppress(InferplaneError):
            backend.prefill(transcript)


def asked_for(who: str, sampling: Sampling, supported: Sequence[str]) -> dict[str, Any]:
    """What a call asks for, without what is so by default; ProgramError for what an API cannot
    do."""
    asked: dict[str, Any] = {"max_new_tokens": sampling.max_new_tokens or DEFAULTS.max_new_tokens}
    for name, value in sampling.said().items():
        if value != getattr(DEFAULTS, name) and value not in (False, ()):
            asked[name] = list(value) if isinstance(value, tuple) else value
    for name, value in asked.items():
        if name not in supported:
            raise ProgramError(f"{name} is {value!r:.60}, which {who} does not support")
    return asked


def conversation(
    transcript: Transcript, body: Callable[[Message], dict[str, Any]] = Message.body
) -> tuple[list[dict[str, Any]], str]:
    """The messages for a chat API, and the text with which the answer begins. ProgramError for
    what is no conversation that the assistant is to continue."""
    shape = transcript.shape()
    outside = shape.head.parts + shape.tail.parts
    if outside or shape.open is None or shape.open.role != "assistant":
        role = "outside of a role" if shape.open is None else f"inside of {shape.open.role}"
        said = f"{outside[0]!r:.60} is outside of a role" if outside else f"gen is {role}"
        raise ProgramError(
            f"{said}, which a chat API has no place for: use system(), user() and"
            " assistant(gen(...))"
        )
    return [body(message) for message in shape.messages], shape.open.text


def chat_text(transcript: Transcript) -> str:
    """For people to read: what the model reads is the server's affair."""
    shape = transcript.shape()
    lines = [f"{message.role}: {message.text}\n" for message in shape.messages]
    if shape.open is not None:
        lines.append(f"{shape.open.role}: {shape.open.text}")
    return "".join([shape.head.text, *lines, shape.tail.text])


def common_length(sequences: Sequence[Sequence[Any]]) -> int:
    """How many items all begin with."""
    shortest = min(map(len, sequences))
    for index in range(shortest):
        if any(other[index] != sequences[0][index] for other in sequences):
            return index
    return shortest
