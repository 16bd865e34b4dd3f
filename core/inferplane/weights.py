"""Handing weights to layers: one tensor at a time, checked, converted and moved to the device.

Nothing is kept here, so a weight exists once: memory-mapped file, then its packed form.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from inferplane.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)"""


class Weights(Protocol):
    """Where layers take their weights from."""

    def take(self, name: str, shape: Sequence[int]) -> "Tensor":
        """The weight on the device in the model's type. Raises ModelError if missing or of
        another shape."""

    def has(self, name: str) -> bool: ...

    def unused(self) -> list[str]:
        """Stored weights that no layer took."""


class TensorSource(Protocol):
    """What a checkpoint offers; names are those of Hugging Face."""

    def names(self) -> Sequence[str]: ...
    def __getitem__(self, name: str) -> "Tensor": ...
    def __contains__(self, name: object) -> bool: ...
    def nbytes(self, name: str) -> int: ...


class CheckpointWeights:
    """Weights of a checkpoint. `renames` maps a model's name to the checkpoint's."""

    def __init__(
        self,
        source: TensorSource,
        dtype: str,
        torch_device: str,
        progress: Progress | None = None,
        rename: Callable[[str], str] = lambda name: name,
    ) -> None:
        self._source = source
        self._dtype = dtype
        self._device = torch_device
        self._progress = progress
        self._rename = rename
        self._total = sum(source.nbytes(name) for name in source.names())
        self._done = 0
        self._taken: set[str] = set()

    def has(self, name: str) -> bool:
        return self._rename(name) in self._source

    def take(self, name: str, shape: Sequence[int]) -> "Tensor":
        import torch

        stored = self._rename(name)
        if stored not in self._source:
            raise ModelError(
                f"weight {stored} is not in the checkpoint: it is incomplete, or of another "
                "architecture than its configuration says"
            )
        tensor = self._source[stored]
        if tuple(tensor.shape) != tuple(shape):
            raise ModelError(
                f"weight {stored} has shape {list(tensor.shape)}, the configuration wants "
                f"{list(shape)}"
            )
        if stored not in self._taken:
            self._taken.add(stored)
            self._done += self._source.nbytes(stored)
            if self._progress:
                self._progress(self._done, self._total)
        return tensor.to(device=self._device, dtype=getattr(torch, self._dtype))

    def unused(self) -> list[str]:
        return [name for name in self._source.names() if name not in self._taken]


class DummyWeights:
    """Random weights made on the device, for benchmarks: speed does not depend on values."""

    def __init__(self, dtype: str, torch_device: str, missing: Mapping[str, Any]) -> None:
        """`missing`: names that `has` denies, such as biases that the architecture lacks."""
        import torch

        self._dtype = getattr(torch, dtype)
        self._device = torch_device
        self._missing = missing

    def has(self, name: str) -> bool:
        return name not in self._missing

    def unused(self) -> list[str]:
        return []

    def take(self, name: str, shape: Sequence[int]) -> "Tensor":
        import torch

        made = torch.empty(tuple(shape), dtype=self._dtype, device=self._device)
        if len(shape) == 1 and name.endswith("norm.weight"):
            return made.fill_(1.0)
        return made.normal_(0.0, 0.02)
