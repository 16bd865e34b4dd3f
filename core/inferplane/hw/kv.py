"""KV memory: groups of layers that share page tables, and layouts of the bytes in a page.

Core owns page ids; a backend owns what is inside a page.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from inferplane.hw.device import Device


ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}
"""of the types that pages can hold"""
FLOAT8_MAX = 448.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KVSpec:
    """The shape of one layer's keys and values in a page."""

    num_kv_heads: int
    head_dim: int
    dtype: str
    """float8_e4m3fn: rounded when they are written, cut off at 448; scale 1"""
    page_size: int
    layout: str = "canonical"
    opaque: bool = False
    """the layout has no strided views: only ops that name it can use the pages"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVGroup:
    """Layers with one page table: full attention (window 0) or a sliding window."""

    name: str
    window: int
    layers: tuple[int, ...]
    spec: KVSpec


class KVLayout(Protocol):
    """How a page is laid out. Equal fingerprints may exchange raw pages; all others exchange the
    canonical form [2, pages, page_size, Hkv, D]."""

    @property
    def id(self) -> str:
        """The name in KVSpec.layout and Support.layouts."""

    @property
    def strided(self) -> bool:
        """`split` works, so that reference ops can be used beside native ones."""

    def page_bytes(self, spec: KVSpec) -> int: ...

    def alloc(self, num_pages: int, spec: KVSpec, device: "Device") -> Any:
        """Zeroed memory of one layer; opaque to core."""

    def split(self, data: Any) -> "tuple[Tensor, Tensor]":
        """k and v as views [pages, page_size, Hkv, D] with any strides."""

    def export_pages(self, data: Any, pages: "Tensor") -> "Tensor":
        """pages i32[n] -> canonical [2, n, page_size, Hkv, D]"""

    def import_pages(self, data: Any, pages: "Tensor", canonical: "Tensor") -> Any:
        """The reverse of export_pages; returns the new data (the same object if in place)."""

    def fingerprint(self, spec: KVSpec) -> str: ...


@dataclass(slots=True)
class LayerKV:
    """One layer's KV memory. Ops keep this handle; on functional devices they replace `data`."""

    layout: KVLayout
    spec: KVSpec
    data: Any = None


@dataclass(frozen=True, slots=True)
class StridedLayout:
    """A layout that is a permutation of [2, pages, page_size, Hkv, D].

    `order` names the memory order of the last three dimensions, outermost first: "thd" is the
    canonical one (token, head, dim), "htd" keeps a head's tokens together.
    """

    id: str = "canonical"
    order: str = "thd"
    strided: bool = True

    def page_bytes(self, spec: KVSpec) -> int:
        return 2 * spec.page_size * spec.num_kv_heads * spec.head_dim * ITEM_BYTES[spec.dtype]

    def alloc(self, num_pages: int, spec: KVSpec, device: "Device") -> "Tensor":
        import numpy as np
        import torch

        sizes = {"t": spec.page_size, "h": spec.num_kv_heads, "d": spec.head_dim}
        shape = [2, num_pages, *(sizes[c] for c in self.order)]
        dtype, where = getattr(torch, spec.dtype), torch.device(device.info.torch_device)
        if where.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=where)
        # torch.zeros would touch every byte; numpy's come from the system as they are first used
        nbytes = num_pages * self.page_bytes(spec)
        return torch.from_numpy(np.zeros(nbytes, np.uint8)).view(dtype).view(shape)

    def split(self, data: Any) -> "tuple[Tensor, Tensor]":
        where = [2 + self.order.index(c) for c in "thd"]
        view = data.permute(0, 1, *where)  # [2, pages, page_size, Hkv, D]
        return view[0], view[1]

    def export_pages(self, data: Any, pages: "Tensor") -> "Tensor":
        import torch

        halves = self.split(data)
        found = torch.stack([as_integers(half).index_select(0, pages) for half in halves])
        return found.view(halves[0].dtype)

    def import_pages(self, data: Any, pages: "Tensor", canonical: "Tensor") -> Any:
        for half, source in zip(self.split(data), canonical, strict=True):
            as_integers(half).index_copy_(0, pages.long(), as_integers(source.to(half.dtype)))
        return data

    def fingerprint(self, spec: KVSpec) -> str:
        return f"{self.order}/{spec.dtype}/{spec.page_size}/{spec.num_kv_heads}/{spec.head_dim}"


def as_integers(tensor: "Tensor") -> "Tensor":
    """The same memory; bytes in place of float8, for which torch lacks indexing on some devices."""
    import torch

    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def to_stored(values: "Tensor", dtype: "torch.dtype") -> "Tensor":
    """Keys or values in the type of their pages."""
    import torch

    if dtype == torch.float8_e4m3fn:
        values = values.clamp(-FLOAT8_MAX, FLOAT8_MAX)
    return values.to(dtype)


CANONICAL = StridedLayout()
