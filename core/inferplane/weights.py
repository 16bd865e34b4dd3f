"""Handing weights to layers: one tensor at a time, checked, converted and moved to the device.

Nothing is kept here, so a weight exists once: memory-mapped file, then its packed form.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from inferplane.checkpoint.staging import Staging
from inferplane.errors import ModelError
from inferplane.hw.quantization import (
    QuantizedWeight,
    Scheme,
    holds,
    quantize,
    weight_only,
    widen,
)

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)"""


class Weights(Protocol):
    """Where layers take their weights from."""

    def take(self, name: str, shape: Sequence[int]) -> "Tensor":
        """The weight on the device in the model's type. Raises ModelError if missing or of
        another shape."""

    def take_quantized(self, name: str, shape: Sequence[int], scheme: Scheme) -> QuantizedWeight:
        """The weight [N, K] on the device in a scheme: as it is stored where that is possible,
        else rounded here. Raises ModelError as `take` does."""

    def scheme(self, name: str) -> Scheme | None:
        """How the checkpoint stores a weight; None: dense."""

    def has(self, name: str) -> bool: ...

    def stored_name(self, name: str) -> str:
        """What the checkpoint calls a weight."""

    def skip(self, name: str) -> None:
        """Count a weight as taken that is not needed, as its packed form is at hand."""

    def unused(self) -> list[str]:
        """Stored weights that no layer took."""


class TensorSource(Protocol):
    """What a checkpoint offers; names are those of Hugging Face."""

    def names(self) -> Sequence[str]: ...
    def __getitem__(self, name: str) -> "Tensor": ...
    def __contains__(self, name: object) -> bool: ...
    def nbytes(self, name: str) -> int: ...


@runtime_checkable
class QuantizedSource(TensorSource, Protocol):
    """A checkpoint with quantized weights, which `source[name]` gives dequantized."""

    def scheme(self, name: str) -> Scheme | None:
        """How a weight is stored, found without reading it; None: dense."""

    def quantized(self, name: str) -> QuantizedWeight:
        """A weight that has a scheme."""


@runtime_checkable
class StoredSource(TensorSource, Protocol):
    """A checkpoint in files, which can be told from others."""

    def identity(self) -> str | None:
        """A digest that no other contents of the files have; None once they have changed."""

    def release(self) -> None:
        """Give back the memory of what has been read; all can still be asked for."""


@runtime_checkable
class StagedSource(TensorSource, Protocol):
    """A checkpoint whose tensors can be read straight to a device."""

    def stage(self, staging: Staging) -> None:
        """All tensors that are asked for from now on come through it, and lie on its device."""


def stored_scheme(source: TensorSource, name: str) -> Scheme | None:
    return source.scheme(name) if isinstance(source, QuantizedSource) else None


class CheckpointWeights:
    """Weights of a checkpoint. `renames` maps a model's name to the checkpoint's."""

    def __init__(
        self,
        source: TensorSource,
        dtype: str,
        torch_device: str,
        progress: Progress | None = None,
        rename: Callable[[str], str] = lambda name: name,
        staging: Staging | None = None,
    ) -> None:
        """`staging`: the way to a device with memory of its own."""
        self._source = source
        self._staging = staging
        if staging is not None and isinstance(source, StagedSource):
            source.stage(staging)
        self._dtype = dtype
        self._device = torch_device
        self._progress = progress
        self._rename = rename
        self._total = sum(source.nbytes(name) for name in source.names())
        self._done = 0
        self._taken: set[str] = set()

    def has(self, name: str) -> bool:
        return self._rename(name) in self._source

    def scheme(self, name: str) -> Scheme | None:
        return stored_scheme(self._source, self._rename(name))

    def stored_name(self, name: str) -> str:
        return self._rename(name)

    def skip(self, name: str) -> None:
        self._count(self._find(name))

    def take(self, name: str, shape: Sequence[int]) -> "Tensor":
        import torch

        stored = self._find(name)
        tensor = self._source[stored]
        self._check(stored, tensor.shape, shape)
        return self._bring(tensor).to(dtype=getattr(torch, self._dtype))

    def take_quantized(self, name: str, shape: Sequence[int], scheme: Scheme) -> QuantizedWeight:
        stored = self._find(name)
        own = stored_scheme(self._source, stored)
        if own is not None and holds(scheme, own, shape[1]):
            assert isinstance(self._source, QuantizedSource)
            kept = self._source.quantized(stored)
            self._check(stored, (kept.out_features, kept.in_features), shape)
            return widen(kept.moved(self._bring), scheme)
        tensor = self._source[stored]
        self._check(stored, tensor.shape, shape)
        return quantize(self._bring(tensor), scheme)

    def _bring(self, tensor: "Tensor") -> "Tensor":
        return tensor.to(self._device) if self._staging is None else self._staging.send(tensor)

    def _find(self, name: str) -> str:
        stored = self._rename(name)
        if stored not in self._source:
            raise ModelError(
                f"weight {stored} is not in the checkpoint: it is incomplete, or of another "
                "architecture than its configuration says"
            )
        return stored

    def _check(self, stored: str, has: Sequence[int], wanted: Sequence[int]) -> None:
        if tuple(has) != tuple(wanted):
            raise ModelError(
                f"weight {stored} has shape {list(has)}, the configuration wants {list(wanted)}"
            )
        self._count(stored)

    def _count(self, stored: str) -> None:
        if stored not in self._taken:
            self._taken.add(stored)
            self._done += self._source.nbytes(stored)
            if self._progress:
                self._progress(self._done, self._total)

    def unused(self) -> list[str]:
        return [name for name in self._source.names() if name not in self._taken]


class DummyWeights:
    """Random weights made on the device, for benchmarks: speed does not depend on values."""

    def __init__(
        self,
        dtype: str,
        torch_device: str,
        missing: Mapping[str, Any],
        scheme: Callable[[str], Scheme | None] | None = None,
    ) -> None:
        """`missing`: names that `has` denies, such as biases that the architecture lacks.
        `scheme`: how the checkpoint would store a weight."""
        import torch

        self._dtype = getattr(torch, dtype)
        self._device = torch_device
        self._missing = missing
        self._scheme = scheme

    def scheme(self, name: str) -> Scheme | None:
        return self._scheme(name) if self._scheme else None

    def take_quantized(self, name: str, shape: Sequence[int], scheme: Scheme) -> QuantizedWeight:
        made = widen(quantize(self.take(name, shape), weight_only(scheme)), scheme)
        if scheme.static:
            made.input_scale = made.scale.new_full((1,), 0.02)
        return made

    def has(self, name: str) -> bool:
        return name not in self._missing

    def stored_name(self, name: str) -> str:
        return name

    def skip(self, name: str) -> None:
        pass

    def unused(self) -> list[str]:
        return []

    def take(self, name: str, shape: Sequence[int]) -> "Tensor":
        import torch

        made = torch.empty(tuple(shape), dtype=self._dtype, device=self._device)
        if len(shape) == 1 and name.endswith("norm.weight"):
            return made.fill_(1.0)
        return made.normal_(0.0, 0.02)
