"""y = x @ W.T for one row: no matrix unit, bound by reading W [N, K] once.

bytes: N K (2 dense, 1 FP8 and INT8); operations: 2 N K, on H100 a tenth of what the plain units
do in the time of the bytes in bf16, a third in FP8 (INT4 needs the matrix units: nibbles.py). So
loads are 16 bytes a thread, ROWS of them are in flight while the tile before is summed (a
register double buffer), each thread first sums the 8 or 16 neighbours that its load brought, and
lanes meet once at the end.

Quantized inputs: the row is quantized by every program as it reads it. That costs a pass over K
values in L2 for the largest one (none with a static scale or with groups), and saves a launch of
about 2 us, 128 times a step in Llama-3-8B. The first weights are on the way before that pass.

PDL: the launch may overlap the end of the kernel before; weights do not depend on it, so their
first loads start before the wait (CUDA programming guide, programmatic dependent launch).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from inferplane_triton.kernels.quantize import quantized


@triton.jit
def _lanes(p, ROWS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """[ROWS, BLOCK] -> sums of VECTOR neighbours [ROWS, BLOCK / VECTOR], inside a thread"""
    return tl.sum(tl.reshape(p, [ROWS, BLOCK // VECTOR, VECTOR]), 2)


@triton.jit
def one_row(
    x_ptr, w_ptr, bias_ptr, y_ptr, K,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """x [K], W [N, K] of x's type, K a multiple of BLOCK, N of ROWS -> y [N] of x's type or,
    with the same values, float32"""
    if PDL:
        gdc_launch_dependents()
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, BLOCK)
    w_at = w_ptr + rows.to(tl.int64)[:, None] * K + at[None, :]
    w = tl.load(w_at)
    if PDL:
        gdc_wait()
    acc = tl.zeros([ROWS, BLOCK // 8], tl.float32)
    for start in range(0, K, BLOCK):
        ahead = tl.load(w_at + (start + BLOCK), mask=start + BLOCK < K)
        x = tl.load(x_ptr + start + at).to(tl.float32)
        acc += _lanes(w.to(tl.float32) * x[None, :], ROWS, BLOCK, 8)
        w = ahead
    y = tl.sum(acc, 1)
    if BIAS:
        y += tl.load(bias_ptr + rows).to(tl.float32)
    tl.store(y_ptr + rows, y.to(x_ptr.dtype.element_ty).to(y_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["M"])
def several_rows(
    x_ptr, w_ptr, bias_ptr, y_ptr, M, N, K,
    ROWS: tl.constexpr, M_PAD: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """x [M, K], W [N, K] of x's type, M up to M_PAD, K a multiple of BLOCK -> y [M, N]

    For small W, where a tile's start and end cost more than its bytes."""
    if PDL:
        gdc_launch_dependents()
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None, None]
    m = tl.arange(0, M_PAD)[None, :, None]
    at = tl.arange(0, BLOCK)[None, None, :]
    w_at = w_ptr + rows.to(tl.int64) * K + at
    x_at = x_ptr + m * K + at
    w = tl.load(w_at)
    if PDL:
        gdc_wait()
    acc = tl.zeros([ROWS, M_PAD, BLOCK // 8], tl.float32)
    for start in range(0, K, BLOCK):
        ahead = tl.load(w_at + (start + BLOCK), mask=start + BLOCK < K)
        x = tl.load(x_at + start, mask=m < M, other=0.0).to(tl.float32)
        p = w.to(tl.float32) * x
        acc += tl.sum(tl.reshape(p, [ROWS, M_PAD, BLOCK // 8, 8]), 3)
        w = ahead
    y = tl.sum(acc, 2)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = tl.arange(0, M_PAD)
    if BIAS:
        y += tl.load(bias_ptr + rows).to(tl.float32)[:, None]
    at_y = y_ptr + m[None, :] * N + rows[:, None]
    rounded = y.to(x_ptr.dtype.element_ty)
    tl.store(at_y, rounded.to(y_ptr.dtype.element_ty), mask=(m < M)[None, :])


@triton.jit
def one_row_w8(
    x_ptr, input_scale_ptr, w_ptr, scale_ptr, bias_ptr, y_ptr, K,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKED: tl.constexpr, DYNAMIC: tl.constexpr,
    STATIC: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """x [K] bf16 or fp16, W [N, K] fp8 or int8 -> y [N]

    scale f32 [N]; BLOCKED: [N / 128, K / 128], and inputs in groups of 128. DYNAMIC: x becomes
    W's type with its own scale, STATIC: with input_scale [1]; neither: x stays as it is.
    """
    if PDL:
        gdc_launch_dependents()
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, BLOCK)
    Number: tl.constexpr = w_ptr.dtype.element_ty
    LIMIT: tl.constexpr = 127.0 if Number == tl.int8 else 448.0
    w_at = w_ptr + rows.to(tl.int64)[:, None] * K + at[None, :]
    w = tl.load(w_at)
    if PDL:
        gdc_wait()
    factor = 1.0
    if STATIC:
        factor = tl.load(input_scale_ptr)
    elif DYNAMIC and not BLOCKED:
        most = tl.zeros([BLOCK], tl.float32)
        for start in range(0, K, BLOCK):
            most = tl.maximum(most, tl.abs(tl.load(x_ptr + start + at).to(tl.float32)))
        largest = tl.max(most, 0)
        factor = tl.where(largest == 0.0, 1.0, largest / LIMIT)
    blocks = K // 128
    scale_at = scale_ptr + (tl.program_id(0) * ROWS) // 128 * blocks
    acc = tl.zeros([ROWS, BLOCK // 16], tl.float32)
    for start in range(0, K, BLOCK):
        ahead = tl.load(w_at + (start + BLOCK), mask=start + BLOCK < K)
        x = tl.load(x_ptr + start + at).to(tl.float32)
        if BLOCKED:
            group = tl.arange(0, BLOCK // 128)
            x = tl.reshape(x, [BLOCK // 128, 128])
            weight_scale = tl.load(scale_at + start // 128 + group)
            if DYNAMIC:
                largest = tl.max(tl.abs(x), 1)
                own = tl.where(largest == 0.0, 1.0, largest / LIMIT)
                x = quantized(x, (1.0 / own)[:, None], Number).to(tl.float32)
                weight_scale *= own
            x = tl.reshape(x * weight_scale[:, None], [BLOCK])
        elif DYNAMIC or STATIC:
            x = quantized(x, 1.0 / factor, Number).to(tl.float32)
        acc += _lanes(w.to(tl.float32) * x[None, :], ROWS, BLOCK, 16)
        w = ahead
    y = tl.sum(acc, 1) * factor
    if not BLOCKED:
        y *= tl.load(scale_ptr + rows)
    if BIAS:
        y += tl.load(bias_ptr + rows).to(tl.float32)
    tl.store(y_ptr + rows, y.to(y_ptr.dtype.element_ty))
