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
        `batch`, whose host fields are those of this step."""


class State(Protocol):
    """On devices that write nothing in place: the persistent data (device tables, KV pages) that
    a recorded call reads and replaces. A graph takes it from `read` and hands it to `write`."""

    def read(self) -> list[Any]: ...
    def write(self, data: list[Any]) -> None: ...


class GraphBackend(Protocol):
    """Optional; without one every step runs eagerly."""

    def capture(self, fn: Callable[[], Any], state: State | None = None) -> Graph:
        """Record `fn`, which reads and writes only persistent buffers, `state` (None on devices
        that write in place) and ctx.empty's arena. Recording has no effect on any of them: the
        step is computed by the first replay."""

    def arena_bytes(self) -> int:
        """Memory that recorded graphs hold."""
