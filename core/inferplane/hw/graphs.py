"""Recording a step once and replaying it: device graphs, compiled programs and op tapes are the
same thing to core. And compiling beforehand what recording would compile."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

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


@runtime_checkable
class Breakable(GraphBackend, Protocol):
    """A backend whose recordings can have calls between their pieces. Without one, attention that
    cannot be recorded is not used where steps are."""

    def outside(self, call: Callable[[], None]) -> None:
        """Only while `capture` runs its `fn`. Leaves `call` out of the recording: it is made now,
        and by each replay between what was recorded before it and after it."""


class Compiler(Protocol):
    """Optional, of a backend or op pack whose kernels are compiled when they are first called: one
    after the other then, while a start waits."""

    def collect(self) -> AbstractContextManager[None]:
        """Inside, a call of this thread whose kernel is not compiled yet starts to compile it,
        beside others, and does nothing else. What it would have computed is missing, so core only
        records inside and throws the recordings away. If the block raises, all is given up."""

    def finish(self, report: Callable[[int, int], None]) -> None:
        """Wait for what was collected; `report` gets (compiled, of how many), often. A kernel that
        cannot be compiled raises when it is called the next time."""
