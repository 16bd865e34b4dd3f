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
ITEM_BYTES |= {"int8": 1}
"""of the types that pages can hold"""
FLOAT8_MAX = 448.0
INT8_MAX = 127.0
INT8_SMALLEST = 2.0**-100
"""int8: rows whose largest magnitude is below this are zero"""
SCALE_ITEMS = 4
"""int8: items behind the D codes of a row, which are its float32 scale"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVSpec:
    """The shape of one layer's keys and values in a page."""

    num_kv_heads: int
    head_dim: int
    dtype: str
    """float8_e4m3fn: rounded when they are written, cut off at 448; scale 1. int8: a row (one
    token, one head) is D codes and the float32 they are to be multiplied by, 4 items more"""
    page_size: int
    layout: str = "canonical"
    opaque: bool = False
    """the layout has no strided views: only ops that name it can use the pages"""

    @property
    def row(self) -> int:
        """Items of one token's keys or values of one head: D, or D + 4 in int8."""
        return self.head_dim + (SCALE_ITEMS if self.dtype == "int8" else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class KVGroup:
    """Layers with one page table: full attention (window 0) or a sliding window."""

    name: str
    window: int
    layers: tuple[int, ...]
    spec: KVSpec


class KVLayout(Protocol):
    """How a page is laid out. Equal fingerprints may exchange raw pages; all others exchange the
    canonical form [2, pages, page_size, Hkv, row] of any type (`row` as KVSpec says)."""

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
        """k and v as views [pages, page_size, Hkv, row] with any strides."""

    def export_pages(self, data: Any, pages: "Tensor") -> "Tensor":
        """pages i32[n] -> canonical [2, n, page_size, Hkv, row], in the type of the pages"""

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
    """A layout that is a permutation of [2, pages, page_size, Hkv, row].

    `order` names the memory order of the last three dimensions, outermost first: "thd" is the
    canonical one (token, head, row), "htd" keeps a head's tokens together.
    """

    id: str = "canonical"
    order: str = "thd"
    strided: bool = True

    def page_bytes(self, spec: KVSpec) -> int:
        return 2 * spec.page_size * spec.num_kv_heads * spec.row * ITEM_BYTES[spec.dtype]

    def alloc(self, num_pages: int, spec: KVSpec, device: "Device") -> "Tensor":
        import numpy as np
        import torch

        sizes = {"t": spec.page_size, "h": spec.num_kv_heads, "d": spec.row}
        shape = [2, num_pages, *(sizes[c] for c in self.order)]
        dtype, where = getattr(torch, spec.dtype), torch.device(device.info.torch_device)
        if where.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=where)
        # torch.zeros would touch every byte; numpy's come from the system as they are first used
        nbytes = num_pages * self.page_bytes(spec)
        return torch.from_numpy(np.zeros(nbytes, np.uint8)).view(dtype).view(shape)

    def split(self, data: Any) -> "tuple[Tensor, Tensor]":
        where = [2 + self.order.index(c) for c in "thd"]
        view = data.permute(0, 1, *where)  # [2, pages, page_size, Hkv, row]
        return view[0], view[1]

    def export_pages(self, data: Any, pages: "Tensor") -> "Tensor":
        import torch

        halves = self.split(data)
        found = torch.stack([as_integers(half).index_select(0, pages) for half in halves])
        return found.view(halves[0].dtype)

    def import_pages(self, data: Any, pages: "Tensor", canonical: "Tensor") -> Any:
        for half, source in zip(self.split(data), canonical, strict=True):
            stored = to_stored(source, half.dtype)
            as_integers(half).index_copy_(0, pages.long(), as_integers(stored))
        return data

    def fingerprint(self, spec: KVSpec) -> str:
        return f"{self.order}/{spec.dtype}/{spec.page_size}/{spec.num_kv_heads}/{spec.head_dim}"


def as_integers(tensor: "Tensor") -> "Tensor":
    """The same memory; bytes in place of float8, for which torch lacks indexing on some devices."""
    import torch

    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def to_stored(values: "Tensor", dtype: "torch.dtype") -> "Tensor":
    """Keys or values [..., D], or rows of pages of another type, as rows of pages of `dtype`."""
    import torch

    if values.dtype == dtype:
        return values
    values = from_stored(values)
    if dtype == torch.int8:
        return _to_int8(values)
    if dtype == torch.float8_e4m3fn:
        values = values.clamp(-FLOAT8_MAX, FLOAT8_MAX)
    return values.to(dtype)


def _to_int8(values: "Tensor") -> "Tensor":
    """code = round(x * 127 / m) and scale = m / 127 for the row's largest magnitude m, computed in
    float32; a row with a NaN or an infinity has the scale NaN."""
    import torch

    x = values.float()
    peak = x.abs().amax(-1, keepdim=True)  # a NaN is the largest
    most = torch.full_like(peak, INT8_MAX)  # a number's place may take a product with 1 / it
    scale = (peak / most).where(peak < torch.inf, torch.nan)
    usable = (peak >= INT8_SMALLEST) & (peak < torch.inf)
    codes = (x * (most / peak)).where(usable, 0.0).round().to(torch.int8)
    scale = scale.where(peak >= INT8_SMALLEST, scale * 0.0)
    return torch.cat([codes, scale.contiguous().view(torch.int8)], -1)


def from_stored(rows: "Tensor") -> "Tensor":
    """Rows of pages as values: int8 as float32 [..., D], other types as they are."""
    import torch

    if rows.dtype != torch.int8:
        return rows
    codes, scale = rows[..., :-SCALE_ITEMS], rows[..., -SCALE_ITEMS:]
    return codes.float() * scale.contiguous().view(torch.float32)


CANONICAL = StridedLayout()
