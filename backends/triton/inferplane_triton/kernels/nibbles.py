"""INT4 weights: a product by matrix units that unpacks them in registers, and back to x's type.

A number h of 16 bits holds four weights: nibble j of number p in chunk c of a row is the weight of
k = (4 c + j) PLANE + p. So a plane (one j of a chunk) is PLANE neighbours of K, never more than
a group of scales: the scale is applied to the product's sums, and weights q - 8 are exact.
`h >> 4 j & 15 | magic` puts the four bits into the mantissa of 128 (bf16) or 1024 (fp16), for two
weights at a time, and one packed fma takes it off again: 1.4 instructions a weight. The trick:
Kim et al., "Who Says Elephants Can't Run", arXiv 2211.10017.

Limit for few rows of x: N K / 2 bytes and the scales (2 bytes for PLANE weights). H100: unpacking
is about half of what the instruction units do in the time of the bytes. x is read N / ROWS times
through L2: more bytes than W from 2 ROWS / 16 rows of x on. PDL and parts are as in tiles.py.
"""

import triton
import triton.language as tl

from inferplane_triton.kernels.tiles import begin, finish, place


@triton.constexpr_function
def _instructions(nibble, wide, zero):
    """PTX that turns a register with one nibble in each half into q - zero, bf16 or fp16"""
    kind, magic, one = ("bf16x2", 0x4300, 0x3F80) if wide else ("f16x2", 0x6400, 0x3C00)
    minus = (0x8000 | magic) + zero
    return (
        "{ .reg .b32 q, one, minus;"
        f" shr.u32 q, $1, {4 * nibble};"
        f" lop3.b32 q, q, 0x000f000f, {magic * 0x10001:#x}, 0xea;"
        f" mov.b32 one, {one * 0x10001:#x}; mov.b32 minus, {minus * 0x10001:#x};"
        f" fma.rn.{kind} $0, q, one, minus; }}"
    )


@triton.jit
def _plane(h, nibble: tl.constexpr, Number: tl.constexpr, ZERO: tl.constexpr, PTX: tl.constexpr):
    """i16 -> q - ZERO of the plane, exactly"""
    if PTX and Number == tl.bfloat16:
        return tl.inline_asm_elementwise(
            _instructions(nibble, True, ZERO), "=r,r", [h],
            dtype=tl.bfloat16, is_pure=True, pack=2,
        )  # fmt: skip
    elif PTX and Number == tl.float16:
        return tl.inline_asm_elementwise(
            _instructions(nibble, False, ZERO), "=r,r", [h],
            dtype=tl.float16, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        return (((h >> (4 * nibble)) & 15).to(tl.float32) - ZERO).to(Number)


@triton.jit
def _scales(at, chunk, rows, N):
    """Those of a chunk's planes as they are stored: i64 [rows], four of fp16; or four f32 [rows]"""
    if at.dtype.element_ty == tl.int64:
        return (tl.load(at + chunk * N + rows),)
    else:
        at += chunk * 4 * N + rows
        return tl.load(at), tl.load(at + N), tl.load(at + 2 * N), tl.load(at + 3 * N)


@triton.jit
def _scale(stored, plane: tl.constexpr):
    """f32 [rows] of one plane"""
    if stored[0].dtype.scalar == tl.int64:
        return (stored[0] >> (16 * plane)).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return stored[plane]


@triton.jit(do_not_specialize=["M", "chunks", "chunk"])
def int4(
    x_ptr, w_ptr, scale_ptr, offset_ptr, bias_ptr, y_ptr, part_ptr, count_ptr,
    M, N, K, stride_x, chunks, chunk,
    ROWS: tl.constexpr, M_PAD: tl.constexpr, PLANE: tl.constexpr, SPLIT: tl.constexpr,
    WIDE: tl.constexpr, ASYMMETRIC: tl.constexpr, BIAS: tl.constexpr, AHEAD: tl.constexpr,
    PDL: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """x [M, K], W i16 [N, chunks * PLANE], scale i64 [chunks, N] or f32 [4 chunks, N] -> y [M, N]

    `chunk` of the chunks for each of SPLIT programs; the grid is that of tiles.dense. ASYMMETRIC:
    weights are q scale + offset, and ones times x is what offsets are multiplied by.
    """
    column, line = place(N, ROWS, WIDE)
    rows = column * ROWS + tl.arange(0, ROWS)
    m = line * M_PAD + tl.arange(0, M_PAD)
    at = tl.arange(0, PLANE)
    w_at = w_ptr + rows.to(tl.int64)[:, None] * (chunks * PLANE) + at[None, :]
    x_at = x_ptr + m.to(tl.int64)[None, :] * stride_x + at[:, None]
    valid = (m < M)[None, :]
    Number: tl.constexpr = x_ptr.dtype.element_ty
    ZERO: tl.constexpr = 0 if ASYMMETRIC else 8
    acc = tl.zeros([ROWS, M_PAD], tl.float32)
    first = tl.program_id(2) * chunk
    # scales are not what dots read, so the compiler does not bring them early: a chunk ahead
    scales = _scales(scale_ptr, first, rows, N)
    offsets = _scales(offset_ptr, first, rows, N) if ASYMMETRIC else scales
    begin(w_ptr, rows, chunks * (2 * PLANE), first * (2 * PLANE), AHEAD, PDL)
    for c in range(first, tl.minimum(first + chunk, chunks)):
        h = tl.load(w_at + c * PLANE)
        ahead = tl.minimum(c + 1, chunks - 1)
        scales_ahead = _scales(scale_ptr, ahead, rows, N)
        offsets_ahead = _scales(offset_ptr, ahead, rows, N) if ASYMMETRIC else scales_ahead
        for plane in tl.static_range(4):
            k = (4 * c + plane) * PLANE
            x = tl.load(x_at + k, mask=valid & (k < K), other=0.0)
            w = _plane(h, plane, Number, ZERO, PTX)
            sums = tl.dot(w, x, input_precision="ieee")
            acc += sums * _scale(scales, plane)[:, None]
            if ASYMMETRIC:
                ones = tl.full([ROWS, PLANE], 1.0, Number)
                total = tl.dot(ones, x, input_precision="ieee")
                acc += total * _scale(offsets, plane)[:, None]
        scales, offsets = scales_ahead, offsets_ahead
    tile = line * tl.cdiv(N, ROWS) + column
    finish(acc, y_ptr, bias_ptr, part_ptr, count_ptr, rows, m, tile, M, N, SPLIT, BIAS)


@triton.jit(do_not_specialize=["first", "chunks"])
def dequantize(
    w_ptr, scale_ptr, offset_ptr, out_ptr, first, N, K, chunks,
    ROWS: tl.constexpr, PLANE: tl.constexpr, ASYMMETRIC: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """W of rows first... as in `int4` -> out [rows, K]; a program ROWS and a chunk"""
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, PLANE)
    chunk = tl.program_id(0)
    w_at = w_ptr + (first + row).to(tl.int64)[:, None] * (chunks * PLANE) + at[None, :]
    h = tl.load(w_at + chunk * PLANE)
    Number: tl.constexpr = out_ptr.dtype.element_ty
    scales = _scales(scale_ptr, chunk, first + row, N)
    offsets = _scales(offset_ptr, chunk, first + row, N) if ASYMMETRIC else scales
    for plane in tl.static_range(4):
        k = (4 * chunk + plane) * PLANE
        q = _plane(h, plane, Number, 0 if ASYMMETRIC else 8, PTX).to(tl.float32)
        value = q * _scale(scales, plane)[:, None]
        if ASYMMETRIC:
            value += _scale(offsets, plane)[:, None]
        if k < K:
            to = out_ptr + row.to(tl.int64)[:, None] * K + k + at[None, :]
            tl.store(to, value.to(Number))
