"""Launches of the product kernels, each with its tile; ops choose tiles by shape.

Shapes that a tile does not divide are a programming error here: `supports` of the ops holds them
off, and the tables in tuning.py only name tiles that divide. Dense tiles alone take any N.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferplane.hw.ops.norm import RMSNormSpec
from inferplane_triton.attention import next_power
from inferplane_triton.kernels import gemv, nibbles, quantize, tiles
from inferplane_triton.packed import Bytes, Nibbles

if TYPE_CHECKING:
    from torch import Tensor


SEVERAL = 2
"""rows of x that dense_rows takes at most"""


@dataclass(frozen=True, slots=True)
class Line:
    """How a dense product with few rows is cut, of which each program holds all."""

    rows: int
    """of W that a program takes at a time"""
    programs: int
    """at most"""
    warps: int = 8
    pdl: bool = False
    """starts while the kernel before it ends, where the device can"""


def line(rows: int, one: Line | None, several: Line | None) -> Line | None:
    """The one for so many rows of x, if there is one."""
    return one if rows == 1 else several if 0 < rows <= SEVERAL else None


@dataclass(frozen=True, slots=True)
class Row:
    """How another product with one row is cut: `rows` of W and `block` values a step."""

    rows: int
    block: int
    warps: int = 4
    pdl: bool = False


@dataclass(frozen=True, slots=True)
class Norm:
    """What makes the input of a dense product with few rows: norm(x + residual)"""

    spec: RMSNormSpec
    weight: "Tensor"
    residual: "Tensor | None" = None
    total: "Tensor | None" = None
    """gets x + residual"""


@dataclass(frozen=True, slots=True)
class Tile:
    """How a product by matrix units is cut. int4: `block` is a chunk's, four planes of K."""

    rows: int
    block: int
    split: int = 1
    warps: int = 4
    stages: int = 4
    most: int = 64
    """rows of x in a tile at most"""
    wide: int = 1
    serial: bool = False
    ahead: int = 0
    """cache lines of each row that come to L2 before the wait, with pdl"""
    pdl: bool = False

    def m_pad(self, rows: int) -> int:
        return min(self.most, max(16, next_power(rows)))

    def chunk(self, width: int) -> int:
        """of K for each part, a multiple of block, and the same for all blocks up to 128"""
        step = max(self.block, 128)
        return -(-width // (step * self.split)) * step

    def part_bytes(self, rows: int, columns: int) -> int:
        return 0 if self.split == 1 or self.serial else 4 * self.split * rows * columns


@dataclass(frozen=True, slots=True)
class Scratch:
    """Memory that the parts of a split product meet in."""

    part: "Tensor | None" = None
    """f32, at least Tile.part_bytes"""
    count: "Tensor | None" = None
    """i32 zeros, one for each tile"""


def dense_rows(
    x: "Tensor", w: "Tensor", bias: "Tensor | None", y: "Tensor", cut: Line,
    norm: Norm | None = None, activation: str = "",
) -> None:  # fmt: skip
    """x [M, K] @ W [N, K].T for M up to SEVERAL; with an activation W [2 N, K] has the rows of
    gate, then of up"""
    (rows, count), width = y.shape, w.shape[1]
    spec = norm.spec if norm else RMSNormSpec(dim=width, dtype="", epsilon=0.0)
    gemv.few_rows[(min(-(-count // cut.rows), cut.programs),)](
        x, norm and norm.residual, norm and norm.weight, w, bias, y, norm and norm.total,
        rows, count, WIDTH=width, BLOCK=next_power(width), ROWS=cut.rows, M_PAD=next_power(rows),
        NORM=norm is not None, EPSILON=spec.epsilon, OFFSET=spec.offset,
        CAST_FIRST=spec.cast_first, ADD=norm is not None and norm.residual is not None,
        GATED=bool(activation), GELU=activation == "gelu_tanh", BIAS=bias is not None,
        PDL=cut.pdl, num_warps=cut.warps, **_pdl(cut.pdl),
    )  # fmt: skip


def w8_row(x: "Tensor", w: Bytes, bias: "Tensor | None", y: "Tensor", cut: Row) -> None:
    static = w.input_scale is not None
    gemv.one_row_w8[(w.values.shape[0] // cut.rows,)](
        x, w.input_scale, w.values, w.scale, bias, y, w.values.shape[1],
        ROWS=cut.rows, BLOCK=cut.block, BLOCKED=w.blocked, DYNAMIC=w.activation and not static,
        STATIC=static, BIAS=bias is not None, PDL=cut.pdl, num_warps=cut.warps, **_pdl(cut.pdl),
    )  # fmt: skip


def _pdl(pdl: bool) -> dict[str, Any]:
    """Only compilers for NVIDIA know the option."""
    return {"launch_pdl": True} if pdl else {}


def _grid(rows: int, columns: int, cut: Tile) -> tuple[int, int, int]:
    lines = -(-rows // cut.m_pad(rows))
    return -(-columns // cut.rows), lines, 1 if cut.serial else cut.split


def dense_tiles(
    x: "Tensor", w: "Tensor", bias: "Tensor | None", y: "Tensor", cut: Tile, scratch: Scratch
) -> None:
    """x [M, K] @ W [N, K].T"""
    rows, (columns, width) = x.shape[0], w.shape
    tiles.dense[_grid(rows, columns, cut)](
        x, w, bias, y, scratch.part, scratch.count, rows, columns, width, x.stride(0),
        cut.chunk(width), ROWS=cut.rows, M_PAD=cut.m_pad(rows), BLOCK=cut.block, SPLIT=cut.split,
        SERIAL=cut.serial, WIDE=cut.wide, BIAS=bias is not None, RAGGED=columns % cut.rows != 0,
        AHEAD=cut.ahead, PDL=cut.pdl, num_warps=cut.warps, num_stages=cut.stages,
        **_pdl(cut.pdl),
    )  # fmt: skip


def w8_tiles(
    x: "Tensor", scale: "Tensor | None", w: Bytes, bias: "Tensor | None", y: "Tensor",
    cut: Tile, scratch: Scratch,
) -> None:  # fmt: skip
    """x of W's type with its scale, or of y's type without"""
    rows, (columns, width) = x.shape[0], w.values.shape
    tiles.w8[_grid(rows, columns, cut)](
        x, scale, w.values, w.scale, bias, y,
        scratch.part, scratch.count, rows, columns, width, x.stride(0), cut.chunk(width),
        ROWS=cut.rows, M_PAD=cut.m_pad(rows), BLOCK=cut.block, SPLIT=cut.split, WIDE=cut.wide,
        BLOCKED=w.blocked, INPUT=scale is not None, BIAS=bias is not None, AHEAD=cut.ahead,
        PDL=cut.pdl, num_warps=cut.warps, num_stages=cut.stages, **_pdl(cut.pdl),
    )  # fmt: skip


def _ptx(x: "Tensor") -> bool:
    """Whether the kernels may contain instructions of NVIDIA's GPUs"""
    import torch

    return x.device.type != "cpu" and torch.version.cuda is not None


def int4_tiles(
    x: "Tensor", w: Nibbles, bias: "Tensor | None", y: "Tensor", cut: Tile, scratch: Scratch
) -> None:
    rows, columns, split = x.shape[0], w.numbers.shape[0], cut.split
    nibbles.int4[_grid(rows, columns, cut)](
        x, w.numbers, w.scale, w.offset, bias, y, scratch.part, scratch.count,
        rows, columns, w.width, x.stride(0), w.chunks, -(-w.chunks // split),
        ROWS=cut.rows, M_PAD=cut.m_pad(rows), PLANE=w.plane, SPLIT=split, WIDE=cut.wide,
        ASYMMETRIC=w.offset is not None, BIAS=bias is not None, AHEAD=cut.ahead, PDL=cut.pdl,
        PTX=_ptx(x), num_warps=cut.warps, num_stages=cut.stages, **_pdl(cut.pdl),
    )  # fmt: skip


def quantize_rows(
    x: "Tensor", q: "Tensor", scale: "Tensor", input_scale: "Tensor | None", group: int, pdl: bool
) -> None:
    """x [M, K] -> q [M, K] and scale [M, K / group], or [M, 1] with group 0"""
    rows, width = x.shape
    wide = 1024 if group or input_scale is not None else next_power(width)
    quantize.rows[rows, -(-width // wide)](
        x, input_scale, q, scale, x.stride(0), width,
        GROUP=group or wide, WIDTH=wide, STATIC=input_scale is not None, PDL=pdl,
        num_warps=4 if wide <= 4096 else 8, **_pdl(pdl),
    )  # fmt: skip


def dequantize_rows(w: Nibbles, first: int, out: "Tensor") -> None:
    """Rows first... of W -> out [rows, K]; their number is a multiple of 64"""
    nibbles.dequantize[w.chunks, out.shape[0] // 64](
        w.numbers, w.scale, w.offset, out, first, w.numbers.shape[0], w.width, w.chunks,
        ROWS=64, PLANE=w.plane, ASYMMETRIC=w.offset is not None, PTX=_ptx(out), num_warps=4,
    )  # fmt: skip
