"""Recording a step once and replaying it: device graphs, compiled programs and op tapes are the
same thing to core."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from inferplane.hw.batch import ForwardBatch


class Graph(Protocol):
    """A recorded call."""

    def replay(self, batch: "ForwardBatch") -> Any:
        """Run again on what the registered buffers hold now; returns the recorded result, whose
        tensors are overwritten by the next replay. The backend refreshes host arguments from
        `batch`."""


class GraphBackend(Protocol):
    """Optional; without one every step runs eagerly."""

    def capture(self, fn: Callable[[], Any]) -> Graph:
        """Record `fn`, which reads and writes only persistent buffers and ctx.empty's arena."""

    def arena_bytes(self) -> int:
        """Memory that recorded graphs hold."""
