"""A Turn whose steps a test writes down: what the renderers of the chat APIs make of events."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from inferplane.parsers.events import Event
from inferplane.server.service import Usage
from inferplane.server.turn import Step


def step(*events: Event, tokens: int = 1, reason: str | None = None, matched: Any = None) -> Step:
    return Step(
        index=0,
        events=list(events),
        tokens=[0] * tokens,
        logprobs=[],
        prompt_logprobs=None,
        cached_tokens=0,
        finish_reason=reason,
        matched=matched,
    )


class FakeTurn:
    def __init__(self, steps: Sequence[Step | Exception]) -> None:
        self._steps = steps
        self.usage = Usage([])
        self.samples: list[Any] = []

    async def stream(self) -> AsyncGenerator[Step, None]:
        for item in self._steps:
            if isinstance(item, Exception):
                raise item
            self.usage.output += len(item.tokens)
            yield item
