"""Calling a function on one row at a time, for references in batch mode.

Vector code computes the elements that fill no vector with other instructions, and a thread team
splits a tensor by its size: so even exp and tanh of an element can depend on how many rows there
are. With one row per call each element always has the same place.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def rowwise(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Call `fn` on one row of its tensors at a time and put the results together."""

    def call(*tensors: "Tensor", **options: Any) -> Any:
        import torch

        if tensors[0].shape[0] == 0:
            return fn(*tensors, **options)
        rows = [fn(*(t[i : i + 1] for t in tensors), **options) for i in range(len(tensors[0]))]
        if isinstance(rows[0], tuple):
            return tuple(torch.cat(column) for column in zip(*rows, strict=True))
        return torch.cat(rows)

    return call
