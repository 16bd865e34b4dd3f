"""Recorded steps on the CPU: native calls with the addresses that they had, replayed by one call.

A recording is to Python's overhead here what a device graph is to launches there. While a function
is recorded nothing is computed: the kernels' calls go onto a tape, and torch's own operations pass
through a dispatch mode. Views are taken as they are, new tensors come from an arena, copies,
gathers and integer arithmetic become native calls (tensor_ops.py), and whatever is left is called
through torch again between two pieces of tape.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from inferplane.hw import ForwardBatch, Graph
from inferplane_xeon import tensor_ops
from inferplane_xeon.kernels import library

if TYPE_CHECKING:
    from torch import Tensor

ALIGNMENT = 64
EMPTY = (torch.ops.aten.empty.memory_format, torch.ops.aten.new_empty.default)
VIEWS = (torch.ops.aten._unsafe_view.default, torch.ops.aten._reshape_alias.default)


class Arena:
    """Memory of recordings. A block whose tensors are gone serves the next one: calls are replayed
    in their order, so what was dead when it was recorded is dead when it is replayed. All
    recordings share it, as each step is over before the next begins."""

    def __init__(self) -> None:
        self._free: dict[int, list[Any]] = {}
        self.bytes = 0

    def empty(self, shape: Sequence[int], dtype: "torch.dtype") -> "Tensor":
        import numpy as np

        size = prod(shape) * dtype.itemsize
        if not size:
            return torch.empty(tuple(shape), dtype=dtype)
        capacity = ALIGNMENT * max(1, _next_class(-(-size // ALIGNMENT)))
        free = self._free.setdefault(capacity, [])
        if free:
            whole = free.pop()
        else:
            whole = np.empty(capacity + ALIGNMENT, dtype=np.uint8)
            self.bytes += whole.nbytes
        start = -whole.ctypes.data % ALIGNMENT
        block = whole[start : start + size]
        weakref.finalize(block, free.append, whole).atexit = False
        return torch.frombuffer(block, dtype=dtype).view(tuple(shape))


def _next_class(units: int) -> int:
    """The next of four sizes per power of two."""
    step = 1 << max(0, units.bit_length() - 3)
    return -(-units // step) * step


@dataclass(slots=True)
class TapeGraph:
    """A recorded call: pieces of tape and calls of torch, in order."""

    parts: list[Callable[[], Any]]
    result: Any
    constants: "list[Tensor]"  # made while it was recorded
    arena: Arena  # whose free blocks the calls use

    def replay(self, batch: ForwardBatch) -> Any:
        for part in self.parts:
            part()
        return self.result


@dataclass(slots=True)
class Tapes:
    """Implements hw.graphs.GraphBackend."""

    arena: Arena = field(default_factory=Arena)

    def capture(self, fn: Callable[[], Any], state: Any = None) -> Graph:
        recorder = Recorder(self.arena)
        try:
            with recorder:
                result = fn()
        finally:
            recorder.cut()
        return TapeGraph(recorder.parts, result, recorder.constants, self.arena)

    def arena_bytes(self) -> int:
        return self.arena.bytes


class Recorder(TorchDispatchMode):
    """Takes this thread's kernel calls from its creation until the last `cut`."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.empty = arena.empty
        self.parts: list[Callable[[], Any]] = []
        self.constants: list[Tensor] = []
        library().record()

    def cut(self) -> None:
        """End a piece of tape."""
        tape = library().recorded()
        if library().calls(tape):
            self.parts.append(partial(library().replay, tape))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch would import its compiler to keep it away from us: over a second at start."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in EMPTY:
            return self._empty(func, args, kwargs)
        if func is torch.ops.aten.lift_fresh.default:
            self.constants.append(args[0])
        with self:  # inference mode gives us operations that consist of others
            made = func.decompose(*args, **kwargs)
        if made is not NotImplemented:
            return made
        if func.is_view or func in VIEWS:
            return func(*args, **kwargs)
        native = tensor_ops.NATIVE.get(func)
        made = native(self.empty, *args, **kwargs) if native else NotImplemented
        return self._by_torch(func, args, kwargs) if made is NotImplemented else made

    def _empty(self, func: Any, args: Any, kwargs: dict[str, Any]) -> "Tensor":
        own = args[0] if func is EMPTY[1] else None
        size = args[1] if func is EMPTY[1] else args[0]
        default = torch.get_default_dtype() if own is None else own.dtype
        return self.empty(size, kwargs.get("dtype") or default)

    def _by_torch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Call torch at each replay, with results in memory that stays."""
        expected = func._schema.arguments
        given = {s.name: a for s, a in zip(expected, args, strict=False)} | kwargs
        written = [given[s.name] for s in expected if _writes(s) and s.name in given]
        if written:
            self._between(partial(func, *args, **kwargs))
            return written[0] if len(written) == 1 else tuple(written)
        shapes = _on_meta(func, args, kwargs)
        results = tree_map_only(torch.Tensor, self._like, shapes)
        flat = [results] if isinstance(results, torch.Tensor) else list(results)
        if not all(isinstance(item, torch.Tensor) for item in flat):
            raise RuntimeError(f"{func} reads a value on the host: it cannot be recorded")

        def call() -> None:
            made = func(*args, **kwargs)
            for target, value in zip(flat, [made] if len(flat) == 1 else made, strict=True):
                target.copy_(value)

        self._between(call)
        return results

    def _between(self, call: Callable[[], Any]) -> None:
        self.cut()
        self.parts.append(call)
        library().record()

    def _like(self, shape: "Tensor") -> "Tensor":
        return self.empty(shape.shape, shape.dtype)


def _writes(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _on_meta(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What the results look like, without computing them."""

    def meta(tensor: "Tensor") -> "Tensor":
        return torch.empty_strided(
            tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta"
        )

    if "device" in kwargs:
        kwargs = kwargs | {"device": torch.device("meta")}
    return func(
        *tree_map_only(torch.Tensor, meta, args), **tree_map_only(torch.Tensor, meta, kwargs)
    )
