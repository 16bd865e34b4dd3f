"""Running one op outside a model: moves inputs to a device, fills pages, builds, calls, and
brings everything back. The oracle is the reference run on the same values in float64."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferplane.checkpoint.packed_file import read_packed, write_packed
from inferplane.hw import (
    CANONICAL,
    Bound,
    Device,
    DeviceInfo,
    ForwardBatch,
    KVLayout,
    LayerKV,
    OpImpl,
    TorchDevice,
)
from inferplane.hw.kv import from_stored, to_stored
from inferplane.hw.ops import TABLE
from inferplane.hw.quantization import QuantizedWeight

if TYPE_CHECKING:
    from torch import Tensor

Inputs = dict[str, Any]

WRITE_PAGES = 8
"""pages that the inputs of ops without `kv` of their own use"""

KEYWORDS = frozenset(
    "rows counts in_prompt repetition frequency presence bias banned bitmask greedy "
    "unfiltered".split()
)
"""arguments that are passed by name"""


@dataclass(slots=True)
class OneOp:
    """A BuildContext for one op; its parts run by reference."""

    device: Device
    handles: dict[int, LayerKV] = field(default_factory=dict)

    def empty(self, shape: Sequence[int], dtype: str) -> "Tensor":
        import torch

        where = self.device.info.torch_device
        return torch.empty(tuple(shape), dtype=getattr(torch, dtype), device=where)

    def kv(self, layer: int) -> LayerKV:
        return self.handles[layer]

    def bind(self, op: str, spec: Any) -> Bound:
        return TABLE[op].reference.build(spec, self)


@dataclass(slots=True)
class Outcome:
    """What a call gave, on the CPU. `kv`: the pages afterwards, canonical; `given`: its inputs."""

    results: "list[Tensor]"
    kv: "Tensor | None"
    given: Inputs


class Built:
    """An implementation built once and called as often as one likes, always on fresh pages."""

    def __init__(
        self, op: str, impl: OpImpl, spec: Any, device: Device, layout: KVLayout = CANONICAL
    ) -> None:
        self._op = op
        self._device = device
        self._layer = getattr(spec, "layer", None)
        self.context = OneOp(device)
        if self._layer is not None:
            self.context.handles[self._layer] = LayerKV(layout, spec.kv)
        self.bound = impl.build(spec, self.context)

    def keep(self, inputs: Inputs) -> "dict[str, Tensor]":
        """The packed weights after a way through a file, as the next start finds them."""
        import torch

        assert self.bound.prepack is not None and self.bound.packing is not None
        moved = {n: to_device(v, self._device.info.torch_device) for n, v in inputs.items()}
        with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
            saved = self.bound.packing.save(self.bound.prepack(*_weights(moved)))
            path = Path(folder) / "weights"
            write_packed(path, {"weights": saved})
            return read_packed(path)["weights"]

    def __call__(
        self,
        inputs: Inputs,
        kept: "dict[str, Tensor] | None" = None,
        into: "Tensor | None" = None,
    ) -> Outcome:
        """`kept`: what `keep` gave, to be loaded in place of packing. `into`: a tensor like the
        result, to which it is to be written."""
        import torch

        device = self._device.info.torch_device
        moved = {name: to_device(value, device) for name, value in inputs.items()}
        pages = moved.pop("kv", None)
        given = dict(moved)
        handle = self.context.handles.get(self._layer) if self._layer is not None else None
        with torch.inference_mode():
            if handle is not None:
                fill(handle, pages, self._device)
            if self.bound.prepack is not None:
                weights = _weights(moved)
                if kept is not None and self.bound.packing is not None:
                    packed = self.bound.packing.load(kept)
                else:
                    packed = self.bound.prepack(*weights)
                first, *rest = moved
                moved = {first: moved[first], "packed": packed} | {n: moved[n] for n in rest}
            if self.bound.plan is not None:
                self.bound.plan(moved["batch"])
            named = {name: moved.pop(name) for name in KEYWORDS & set(moved)}
            if into is None:
                result = self.bound.run(*moved.values(), **named)
            else:
                assert self.bound.into is not None
                result = to_device(into, device)
                self.bound.into(*moved.values(), result)
            results = [] if result is None else list(result) if _many(result) else [result]
            self._device.synchronize()
            after = None if handle is None else export(handle)
        back = {name: to_device(value, "cpu") for name, value in given.items()}
        return Outcome([r.cpu() for r in results], after, back)


def _many(result: Any) -> bool:
    return isinstance(result, tuple | list)


def _weights(inputs: Inputs) -> list[Any]:
    return [inputs.pop(name) for name in ("weight", "bias", "down") if name in inputs]


def fill(handle: LayerKV, pages: "Tensor | None", device: Device) -> None:
    """Give a handle fresh memory with canonical `pages`, or with its default contents."""
    import torch

    if pages is None:
        spec = handle.spec
        shape = (2, WRITE_PAGES, spec.page_size, spec.num_kv_heads, spec.head_dim)
        generator = torch.Generator().manual_seed(7)
        made = torch.randn(shape, generator=generator)
        pages = to_stored(made, getattr(torch, spec.dtype)).to(device.info.torch_device)
    count = pages.shape[1]
    handle.data = handle.layout.alloc(count, handle.spec, device)
    index = torch.arange(count, dtype=torch.int32, device=pages.device)
    handle.data = handle.layout.import_pages(handle.data, index, pages)


def export(handle: LayerKV) -> "Tensor":
    """The values of all pages, canonical, on the CPU."""
    import torch

    k, _ = handle.layout.split(handle.data)
    index = torch.arange(k.shape[0], dtype=torch.int32, device=k.device)
    return from_stored(handle.layout.export_pages(handle.data, index).cpu())


def to_device(value: Any, device: str) -> Any:
    """A copy of every tensor in an input there, strides included."""
    import torch

    def copy(t: "Tensor") -> "Tensor":
        if t.is_contiguous():
            return torch.empty_like(t, device=device).copy_(t)
        span = 1 + sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True))
        memory = torch.full((span,), 0, dtype=t.dtype, device=device)
        return memory.as_strided(t.shape, t.stride()).copy_(t)

    return _map(value, copy)


def _map(value: Any, fn: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return fn(value)
    if isinstance(value, tuple):
        return tuple(_map(item, fn) for item in value)
    if isinstance(value, ForwardBatch | QuantizedWeight):
        changed = {f.name: _map(getattr(value, f.name), fn) for f in fields(value)}
        return replace(value, **changed)
    return value


def widen(value: Any) -> Any:
    """Inputs in float64; quantized weights stay, they are exact."""
    if isinstance(value, QuantizedWeight):
        return value

    def wide(t: "Tensor") -> "Tensor":
        t = from_stored(t)
        return t.double() if t.is_floating_point() else t

    return _map(value, wide)


def wide_spec(spec: Any) -> Any:
    """The spec with every type float64 and no demand on bits."""
    changed: dict[str, Any] = {}
    for item in fields(spec):
        value = getattr(spec, item.name)
        if item.name == "dtype":
            changed[item.name] = "float64"
        elif item.name == "determinism":
            changed[item.name] = "run"
        elif is_dataclass(value):
            changed[item.name] = wide_spec(value)
    return replace(spec, **changed)


def cpu() -> TorchDevice:
    return TorchDevice(DeviceInfo(backend="oracle", torch_device="cpu", name="oracle"))


def oracle(op: str, spec: Any, inputs: Inputs) -> Outcome:
    """The reference in float64 on the CPU, on the values that the op is given in its own type."""
    wide = {name: widen(value) for name, value in inputs.items()}
    if "kv" not in wide and hasattr(spec, "kv"):
        narrow = LayerKV(CANONICAL, spec.kv)
        fill(narrow, None, cpu())
        wide["kv"] = export(narrow).double()
    return Built(op, TABLE[op].reference, wide_spec(spec), cpu())(wide)
