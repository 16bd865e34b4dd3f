"""What every endpoint works with, made once per server."""

import hashlib
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.requests import Request

from inferplane.errors import RequestError
from inferplane.generation import Completion, Delta, EngineClient, Generator, Sample
from inferplane.messages import Stats
from inferplane.parsers.choose import Parsers
from inferplane.server.metrics import Metrics
from inferplane.server.streaming import while_connected

MAX_ECHOED_NAME = 100


class ServerClient(EngineClient, Protocol):
    """An engine client that knows how its engine is."""

    @property
    def stats(self) -> Stats: ...
    def ready(self) -> bool: ...


@dataclass(frozen=True)
class Service:
    """`names` are what clients may call the model, the first is what we call it; `defaults` its
    sampling defaults."""

    client: ServerClient
    generator: Generator
    names: tuple[str, ...]
    defaults: Mapping[str, Any]
    metrics: Metrics
    parsers: Parsers = field(default_factory=Parsers)
    now: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    started: int = field(default_factory=lambda: int(time.time()))

    def check_model(self, name: str | None) -> None:
        if name is not None and name not in self.names and name != "default":
            raise RequestError(
                f"The model '{name[:MAX_ECHOED_NAME]}' does not exist: this server has "
                f"'{self.names[0]}', also called 'default'.",
                param="model",
                code="model_not_found",
                status=404,
            )

    def stream(self, samples: Sequence[Sample]) -> AsyncGenerator[Delta, None]:
        """Timed deltas; a sequence that somebody else has aborted is a failure."""
        return self.metrics.timed(self.generator.stream(samples))

    async def complete(self, request: Request, samples: Sequence[Sample]) -> list[Completion]:
        """All of `samples`, in order, for as long as the client is there to wait for them."""
        return await while_connected(request.receive, self._complete(samples))

    async def _complete(self, samples: Sequence[Sample]) -> list[Completion]:
        done = {sample.index: Completion() for sample in samples}
        async with aclosing(self.stream(samples)) as deltas:
            async for delta in deltas:
                done[delta.index].add(delta)
        return [done[sample.index] for sample in samples]


def namespace(request: Request, salt: str | None) -> str:
    """Which prefix cache a request may share: its tenant's, and only with equal salts."""
    tenant = getattr(request.state, "tenant", "")
    if not tenant and not salt:
        return ""
    key = f"{tenant}\0{salt or ''}".encode()
    return hashlib.sha256(key).hexdigest()


def new_id(prefix: str) -> str:
    return prefix + uuid.uuid4().hex


def openai_finish(reason: str | None) -> str | None:
    """OpenAI has no word for a sequence that the operator aborted: that is a failure."""
    if reason == "abort":
        raise RequestError("The sequence was aborted.", code="aborted", status=503)
    return reason


class Usage:
    """Token counts of one request; each prompt counts once, whatever n is."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        first = [sample for sample in samples if sample.submit.sample_index == 0]
        self._first = {sample.index for sample in first}
        self._cached: dict[int, int] = {}
        self.prompt = sum(len(sample.submit.prompt) for sample in first)
        self.output = 0
        self.reasoning: int | None = None
        """how many tokens of the output were reasoning; None where nobody tells them apart"""

    @property
    def cached(self) -> int:
        return sum(self._cached.values())

    def add(self, index: int, part: Delta | Completion) -> None:
        self.output += len(part.tokens)
        if index in self._first:
            self._cached[index] = part.cached_tokens

    def body(self) -> dict[str, Any]:
        """The usage object of OpenAI's chat and text completions."""
        result: dict[str, Any] = {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.output,
            "total_tokens": self.prompt + self.output,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }
        if self.reasoning is not None:
            result["completion_tokens_details"] = {"reasoning_tokens": self.reasoning}
        return result
