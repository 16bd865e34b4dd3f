"""Launches of the product kernels, each with its tile; ops choose tiles by shape.

Shapes that a tile does not divide are a programming error here: `supports` of the ops holds them
off, and the tables in tuning.py only name tiles that divide.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferplane_triton.attention import next_power
from inferplane_triton.kernels import gemv, quantize, tiles
from inferplane_triton.packed import Bytes, Nibbles

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """How a product with one row is cut: `rows` of W and `block` stored values a step."""

    rows: int
    block: int
    warps: int = 4
    pdl: bool = False


@dataclass(frozen=True, slots=True)
class Tile:
    """How a product by matrix units is cut. int4: `block` is 128 times a step's chunks."""

    rows: int
    block: int
    split: int = 1
    warps: int = 4
    stages: int = 4
    most: int = 64
    """rows of x in a tile at most"""
    wide: int = 1
    serial: bool = False

    def m_pad(self, rows: int) -> int:
        return min(self.most, max(16, next_power(rows)))

    def chunk(self, width: int) -> int:
        """of K for each part, a multiple of block"""
        return -(-width // (self.block * self.split)) * self.block

    def part_bytes(self, rows: int, columns: int) -> int:
        return 0 if self.split == 1 or self.serial else 4 * self.split * rows * columns


@dataclass(frozen=True, slots=True)
class Scratch:
    """Memory that the parts of a split product meet in."""

    part: "Tensor | None" = None
    """f32, at least Tile.part_bytes"""
    count: "Tensor | None" = None
    """i32 zeros, one for each tile"""


def dense_row(x: "Tensor", w: "Tensor", bias: "Tensor | None", y: "Tensor", cut: Row) -> None:
    """x [1, K] @ W [N, K].T"""
    gemv.one_row[(w.shape[0] // cut.rows,)](
        x, w, bias, y, w.shape[1], ROWS=cut.rows, BLOCK=cut.block, BIAS=bias is not None,
        PDL=cut.pdl, num_warps=cut.warps, **_pdl(cut),
    )  # fmt: skip


def w8_row(x: "Tensor", w: Bytes, bias: "Tensor | None", y: "Tensor", cut: Row) -> None:
    static = w.input_scale is not None
    gemv.one_row_w8[(w.values.shape[0] // cut.rows,)](
        x, w.input_scale, w.values, w.scale, bias, y, w.values.shape[1],
        ROWS=cut.rows, BLOCK=cut.block, BLOCKED=w.blocked, DYNAMIC=w.activation and not static,
        STATIC=static, BIAS=bias is not None, PDL=cut.pdl, num_warps=cut.warps, **_pdl(cut),
    )  # fmt: skip


def int4_row(x: "Tensor", w: Nibbles, bias: "Tensor | None", y: "Tensor", cut: Row) -> None:
    gemv.one_row_int4[(w.words.shape[0] // cut.rows,)](
        x, w.words, w.scale, w.offset, bias, y, *w.words.shape,
        ROWS=cut.rows, BLOCK=cut.block, GROUP=w.group, ASYMMETRIC=w.offset is not None,
        BIAS=bias is not None, PDL=cut.pdl, num_warps=cut.warps, **_pdl(cut),
    )  # fmt: skip


def _pdl(cut: Row) -> dict[str, Any]:
    """Only compilers for NVIDIA know the option."""
    return {"launch_pdl": True} if cut.pdl else {}


def _grid(rows: int, columns: int, cut: Tile) -> tuple[int, int, int]:
    lines = -(-rows // cut.m_pad(rows))
    return columns // cut.rows, lines, 1 if cut.serial else cut.split


def dense_tiles(
    x: "Tensor", w: "Tensor", bias: "Tensor | None", y: "Tensor", cut: Tile, scratch: Scratch
) -> None:
    """x [M, K] @ W [N, K].T"""
    rows, (columns, width) = x.shape[0], w.shape
    tiles.dense[_grid(rows, columns, cut)](
        x, w, bias, y, scratch.part, scratch.count, rows, columns, width, x.stride(0),
        cut.chunk(width), ROWS=cut.rows, M_PAD=cut.m_pad(rows), BLOCK=cut.block, SPLIT=cut.split,
        SERIAL=cut.serial, WIDE=cut.wide, BIAS=bias is not None,
        num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip


def w8_tiles(
    x: "Tensor", scale: "Tensor | None", w: Bytes, bias: "Tensor | None", y: "Tensor",
    cut: Tile, scratch: Scratch,
) -> None:  # fmt: skip
    """x of W's type with its scale, or of y's type without: then the kernel quantizes it."""
    rows, (columns, width) = x.shape[0], w.values.shape
    if scale is not None:
        source = "quantized"
    elif w.activation:
        source = "dynamic" if w.input_scale is None else "static"
    else:
        source = "plain"
    tiles.w8[_grid(rows, columns, cut)](
        x, w.input_scale if scale is None else scale, w.values, w.scale, bias, y,
        scratch.part, scratch.count, rows, columns, width, x.stride(0), cut.chunk(width),
        ROWS=cut.rows, M_PAD=cut.m_pad(rows), BLOCK=cut.block, SPLIT=cut.split, WIDE=cut.wide,
        BLOCKED=w.blocked, INPUT=source, BIAS=bias is not None,
        num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip


def int4_tiles(
    x: "Tensor", w: Nibbles, bias: "Tensor | None", y: "Tensor", cut: Tile, scratch: Scratch
) -> None:
    rows, (columns, words) = x.shape[0], w.words.shape
    tiles.int4[_grid(rows, columns, cut)](
        x, w.words, w.scale, w.offset, bias, y, scratch.part, scratch.count,
        rows, columns, words, x.stride(0), cut.chunk(8 * words) // 128,
        ROWS=cut.rows, M_PAD=cut.m_pad(rows), GROUP=w.group, CHUNKS=cut.block // 128,
        SPLIT=cut.split, ASYMMETRIC=w.offset is not None, BIAS=bias is not None,
        num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip


def quantize_rows(
    x: "Tensor", q: "Tensor", scale: "Tensor", input_scale: "Tensor | None", group: int
) -> None:
    """x [M, K] -> q [M, K] and scale [M, K / group], or [M, 1] with group 0"""
    rows, width = x.shape
    wide = 1024 if group or input_scale is not None else next_power(width)
    quantize.rows[rows, -(-width // wide)](
        x, input_scale, q, scale, x.stride(0), width,
        GROUP=group or wide, WIDTH=wide, STATIC=input_scale is not None,
        num_warps=4 if wide <= 4096 else 8,
    )  # fmt: skip


def dequantize_rows(w: Nibbles, first: int, out: "Tensor") -> None:
    """Rows first... of W -> out [rows, K]; their number is a multiple of 16"""
    columns, words = w.words.shape
    block = min(64, next_power(words))
    quantize.dequantize_int4[out.shape[0] // 16, -(-words // block)](
        w.words, w.scale, w.offset, out, first, columns, words,
        ROWS=16, BLOCK=block, GROUP=w.group, ASYMMETRIC=w.offset is not None, num_warps=4,
    )  # fmt: skip
