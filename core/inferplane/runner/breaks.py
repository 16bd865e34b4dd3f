"""Attention that cannot be recorded, inside of steps that are: recordings break there, and each
replay calls it between their pieces.

What it reads and what it gives lie in places that all layers and steps share, because a piece that
kept its own would hold as much memory for each layer of each recorded step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inferplane.hw.device import Device
from inferplane.hw.graphs import Breakable, GraphBackend

if TYPE_CHECKING:
    from torch import Tensor

OPS = frozenset({"attention.paged"})
"""those that may be left out: they take no weights, which would be copied, too"""

Run = Callable[..., Any]


@dataclass(slots=True)
class Breaks:
    """Of one model on one device that writes in place."""

    graphs: Breakable
    recording: bool = False
    _places: "dict[tuple[Any, ...], Tensor]" = field(default_factory=dict)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Meanwhile, wrapped calls are left out of what is being recorded."""
        self.recording = True
        try:
            yield
        finally:
            self.recording = False

    def wrap(self, run: Run) -> Run:
        """`run` -> one tensor, in recordings and out of them."""

        def either(*given: Any, **named: Any) -> Any:
            return (self._left_out if self.recording else _at_once)(run, given, named)

        return either

    def _left_out(self, run: Run, given: tuple[Any, ...], named: dict[str, Any]) -> "Tensor":
        kept = [self._kept(index, value) for index, value in enumerate(given)]
        also = {name: self._kept(name, value) for name, value in named.items()}
        made: list[Tensor] = []

        def call() -> None:
            result = run(*kept, **also)
            if not made:
                made.append(self._place("result", result))
            made[0].copy_(result)

        self.graphs.outside(call)
        return made[0].clone()  # the next layer's goes to the same place

    def _kept(self, name: int | str, value: Any) -> Any:
        import torch

        return self._place(name, value).copy_(value) if isinstance(value, torch.Tensor) else value

    def _place(self, name: int | str, like: "Tensor") -> "Tensor":
        """The first rows of one that is as large as the largest step, which is recorded first."""
        rows = like.shape[0]
        key = (name, like.dtype, *like.shape[1:])
        held = self._places.get(key)
        if held is None or len(held) < rows:
            held = self._places[key] = like.new_empty(like.shape)
        return held[:rows]


def breaks_of(graphs: GraphBackend | None, device: Device) -> Breaks | None:
    """None where recordings cannot break."""
    if isinstance(graphs, Breakable) and device.info.traits.inplace:
        return Breaks(graphs)
    return None


def _at_once(run: Run, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return run(*given, **named)
