"""What every endpoint works with, made once per server."""

import hashlib
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.requests import Request

from inferplane.config import Config
from inferplane.errors import RequestError
from inferplane.generation import Completion, Delta, EngineClient, Generator, Sample
from inferplane.messages import Stats
from inferplane.parsers.choose import Parsers
from inferplane.server.metrics import Metrics
from inferplane.server.open_requests import OpenRequests, Owner
from inferplane.server.responses.store import ResponseStore
from inferplane.server.streaming import while_connected

MAX_ECHOED_NAME = 100


class ServerClient(EngineClient, Protocol):
    """An engine client that knows how its engine is."""

    @property
    def stats(self) -> Stats: ...
    def ready(self) -> bool: ...
    async def flush_cache(self) -> None: ...


@dataclass(frozen=True)
class Service:
    """`names` are what clients may call the model, the first is what we call it; `defaults` its
    sampling defaults."""

    client: ServerClient
    config: Config
    generator: Generator
    names: tuple[str, ...]
    defaults: Mapping[str, Any]
    metrics: Metrics
    parsers: Parsers = field(default_factory=Parsers)
    now: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    started: int = field(default_factory=lambda: int(time.time()))
    open_requests: OpenRequests = field(default_factory=OpenRequests)
    responses: ResponseStore = field(default_factory=ResponseStore)

    def check_model(self, name: str | None) -> None:
        if name is not None and name not in self.names and name != "default":
            raise RequestError(
                f"The model '{name[:MAX_ECHOED_NAME]}' does not exist: this server has "
                f"'{self.names[0]}', also called 'default'.",
                param="model",
                code="model_not_found",
                status=404,
            )

    async def stream(
        self, samples: Sequence[Sample], owners: Sequence[Owner] = ()
    ) -> AsyncGenerator[Delta, None]:
        """Timed deltas; a sequence that somebody else has aborted is a failure. `owners`, one for
        each sample, say who may abort it under which name."""
        deltas = self.metrics.timed(self.generator.stream(samples))
        with self.open_requests.during(owners, samples):
            async with aclosing(deltas):
                async for delta in deltas:
                    yield delta

    async def complete(
        self, request: Request, samples: Sequence[Sample], owners: Sequence[Owner] = ()
    ) -> list[Completion]:
        """All of `samples`, in order, for as long as the client is there to wait for them."""
        return await while_connected(request.receive, self._complete(samples, owners))

    async def _complete(
        self, samples: Sequence[Sample], owners: Sequence[Owner]
    ) -> list[Completion]:
        done = {sample.index: Completion() for sample in samples}
        async with aclosing(self.stream(samples, owners)) as deltas:
            async for delta in deltas:
                done[delta.index].add(delta)
        return [done[sample.index] for sample in samples]


def tenant(request: Request) -> str:
    """Who is asking, as the auth layer found; "" if the server has no key."""
    return str(getattr(request.state, "tenant", ""))


def namespace(request: Request, salt: str | None) -> str:
    """Which prefix cache a request may share: its tenant's, and only with equal salts."""
    owner = tenant(request)
    if not owner and not salt:
        return ""
    key = f"{owner}\0{salt or ''}".encode()
    return hashlib.sha256(key).hexdigest()


def new_id(prefix: str) -> str:
    return prefix + uuid.uuid4().hex


def openai_finish(reason: str | None) -> str | None:
    """OpenAI has no word for a sequence that its owner aborted: that is an error, and one that a
    client does not answer by trying again."""
    if reason == "abort":
        raise RequestError("The request was aborted.", code="aborted", status=400)
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
