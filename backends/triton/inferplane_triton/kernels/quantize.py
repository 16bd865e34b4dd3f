"""Inputs to FP8 or INT8, and INT4 weights back to the op's type: each element moves once.

rows: K (2 + 1) bytes a token; dequantize: N K (1/2 + 2) bytes. Rounding is to nearest, ties to
even; scales as `inferplane.hw.quantization.quantize_input` defines them. H100: 3.0 TB/s measured
copy; below about a megabyte the launch of about 2 us is the cost.
"""

import triton
import triton.language as tl


@triton.jit
def quantized(x, inverse, Number: tl.constexpr):
    """f32 x times an inverse scale, as fp8 e4m3 or int8"""
    if Number == tl.int8:
        x = tl.minimum(tl.maximum(x * inverse, -127.0), 127.0)
        return ((x + 12582912.0) - 12582912.0).to(tl.int8)  # 1.5 * 2^23 leaves no fraction bits
    return tl.minimum(tl.maximum(x * inverse, -448.0), 448.0).to(Number)


@triton.jit
def rows(
    x_ptr, input_scale_ptr, q_ptr, scale_ptr, stride_x, K,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, STATIC: tl.constexpr,
):  # fmt: skip
    """x [M, K] -> q [M, K], scale f32 [M, K / GROUP]

    One program a token and WIDTH values. GROUP is WIDTH (then it may exceed K) or divides it.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    mask = at < K
    Number: tl.constexpr = q_ptr.dtype.element_ty
    LIMIT: tl.constexpr = 127.0 if Number == tl.int8 else 448.0
    x = tl.load(x_ptr + row * stride_x + at, mask=mask, other=0.0).to(tl.float32)
    if STATIC:
        scale = tl.load(input_scale_ptr)
        tl.store(scale_ptr + row, scale)
        q = quantized(x, 1.0 / scale, Number)
    else:
        x = tl.reshape(x, [WIDTH // GROUP, GROUP])
        largest = tl.max(tl.abs(x), 1)
        scale = tl.where(largest == 0.0, 1.0, largest / LIMIT)
        group = tl.program_id(1) * (WIDTH // GROUP) + tl.arange(0, WIDTH // GROUP)
        groups = (K + GROUP - 1) // GROUP
        tl.store(scale_ptr + row * groups + group, scale, mask=group < groups)
        q = tl.reshape(quantized(x, (1.0 / scale)[:, None], Number), [WIDTH])
    tl.store(q_ptr + row * K + at, q, mask=mask)


@triton.jit
def dequantize_int4(
    w_ptr, scale_ptr, offset_ptr, out_ptr, first, N, words,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, ASYMMETRIC: tl.constexpr,
):  # fmt: skip
    """W i32 [N, words] of rows first..., scale [K / GROUP, N] -> out [rows, K]; BLOCK in words"""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (word < words)[None, :]
    w_at = w_ptr + (first + row).to(tl.int64)[:, None] * words + word[None, :]
    w = tl.load(w_at, mask=mask, other=0)
    at = (first + row)[:, None] + (word // 4 * 32 // GROUP)[None, :] * N
    scale = tl.load(scale_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if ASYMMETRIC:
        offset = tl.load(offset_ptr + at, mask=mask, other=0.0).to(tl.float32)
    else:
        offset = -8.0 * scale
    to = out_ptr + row.to(tl.int64)[:, None] * words * 8 + (word // 4 * 32 + word % 4)[None, :]
    for nibble in tl.static_range(8):
        q = ((w >> (4 * nibble)) & 15).to(tl.float32)
        value = (q * scale + offset).to(out_ptr.dtype.element_ty)
        tl.store(to + 4 * nibble, value, mask=mask)
