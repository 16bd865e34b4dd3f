"""A graph backend that records torch ops on a tape and replays them on the same memory.

It shows on the CPU what device graphs and compiled programs forbid: everything that the host
computed while recording is frozen, so that a host value which should change from step to step
gives wrong results on replay, and an op that must wait for the device is an error. Like a device
graph, recording has no effect: what it wrote is undone.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inferplane.hw.batch import ForwardBatch
from inferplane.hw.graphs import State


class CaptureError(Exception):
    """Recorded code did what a graph cannot hold."""


WAITING_OPS = frozenset(
    "_local_scalar_dense item is_nonzero nonzero nonzero_numpy masked_select unique _unique "
    "_unique2 unique_dim unique_consecutive equal allclose repeat_interleave bincount".split()
)
"""aten ops whose result, or its shape, the host reads"""

WAITING_CALLS = frozenset("tolist item numpy __bool__ __int__ __float__ __index__ cpu".split())
"""the same among methods of tensors that some devices serve without an op"""


@dataclass(slots=True)
class Entry:
    """One op and the tensors it met while it was recorded."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    writes: bool


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _NoWaiting(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in WAITING_CALLS:
            raise CaptureError(f"{func.__name__} waits for the device while a graph is recorded")
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    """Executes ops as they come and writes the tape."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape: list[Entry] = []
        self._made: set[int] = set()  # memory that recorded ops allocated
        self._saved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # written, but not made
        self._kept: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        if name in WAITING_OPS:
            raise CaptureError(f"{name} waits for the device while a graph is recorded")
        given = _tensors((args, kwargs))
        if name.startswith("index") and any(t.dtype == torch.bool for t in _tensors(args[1])):
            raise CaptureError(f"{name} by a mask has a shape that only the device knows")
        writes = name != "detach_" and any(
            a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments
        )
        if writes:
            for schema, value in zip(func._schema.arguments, args, strict=False):
                if schema.alias_info is not None and schema.alias_info.is_write:
                    self._save(_tensors(value))
        result = func(*args, **kwargs)
        sources = {_memory(t) for t in given if t.numel()}
        made = _tensors(result)
        if writes or any(_memory(t) not in sources for t in made):
            self.tape.append(Entry(func, args, kwargs, result, writes))
        if not writes:
            self._made |= {_memory(t) for t in made} - sources
        self._kept += made  # their memory must not be handed out again
        return result

    def _save(self, written: list[torch.Tensor]) -> None:
        for tensor in written:
            where = _memory(tensor)
            if where not in self._made and where not in self._saved:
                whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                self._saved[where] = (whole, whole.clone())

    def undo(self) -> None:
        for whole, before in self._saved.values():
            whole.copy_(before)


@dataclass(slots=True)
class Tape:
    """A recorded call; its tensors, the results included, are overwritten by each replay."""

    entries: list[Entry]
    result: Any
    state: State | None
    state_in: list[torch.Tensor]
    state_out: list[torch.Tensor]
    replays: int = 0

    def replay(self, batch: ForwardBatch) -> Any:
        self.replays += 1
        if self.state is not None:
            for slot, now in zip(self.state_in, self.state.read(), strict=True):
                slot.copy_(now)
        for entry in self.entries:
            fresh = entry.op(*entry.args, **entry.kwargs)
            if not entry.writes:
                for old, new in zip(_tensors(entry.result), _tensors(fresh), strict=True):
                    old.copy_(new)
        if self.state is not None:
            self.state.write([tensor.clone() for tensor in self.state_out])
        return self.result


@dataclass(slots=True)
class RecordingGraphs:
    """A Breakable. `tapes` holds all that was recorded, for tests to look at."""

    tapes: list[Tape] = field(default_factory=list)
    _modes: ExitStack = field(default_factory=ExitStack)
    _under_way: _Recorder | None = None

    def capture(self, fn: Callable[[], Any], state: State | None = None) -> Tape:
        recorder = _Recorder()
        before: list[Any] = []
        slots: list[torch.Tensor] = []
        if state is not None:
            before = state.read()
            slots = [tensor.clone() for tensor in before]
            state.write(slots)
        self._under_way = recorder
        with self._modes:
            self._modes.enter_context(_NoWaiting())
            self._modes.enter_context(recorder)
            result = fn()
        after: list[Any] = []
        if state is not None:
            after = state.read()
            state.write(before)
        recorder.undo()
        tape = Tape(recorder.tape, result, state, slots, after)
        self.tapes.append(tape)
        return tape

    def outside(self, call: Callable[[], None]) -> None:
        recorder = self._under_way
        assert recorder is not None
        self._modes.close()
        call()
        self._modes.enter_context(_NoWaiting())
        self._modes.enter_context(recorder)
        recorder.tape.append(Entry(call, (), {}, None, writes=True))

    def arena_bytes(self) -> int:
        sizes = {
            _memory(t): t.untyped_storage().nbytes()
            for tape in self.tapes
            for entry in tape.entries
            for t in _tensors(entry.result)
        }
        return sum(sizes.values())
