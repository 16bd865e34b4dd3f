"""y = x @ W.T for one row, and of small dense W for two: no matrix unit, bound by reading W [N, K]
once.

bytes: N K (2 dense, 1 FP8 and INT8); operations: 2 N K a row, on H100 a tenth of what the plain
units do in the time of the bytes in bf16, a third in FP8 (INT4 needs the matrix units: nibbles.py).
So loads are 16 bytes a thread, and ROWS of them are in flight while the tile before is summed (a
register double buffer).

Dense: a program holds all of x, so it can make x first, x + residual and its norm, and there are a
few programs for each processor, which take every so many rows of W. One H200 (4.12 TB/s copy), us
of the four products of a layer: Qwen3-0.6B 13.4 (limit 7.6), 16.6 with norms and activation as
kernels of their own; Llama-3-8B 102 (106), 109.

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
from inferplane_triton.kernels.rowwise import gated, normalize


@triton.jit
def _lanes(p, ROWS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """[ROWS, BLOCK] -> sums of VECTOR neighbours [ROWS, BLOCK / VECTOR], inside a thread"""
    return tl.sum(tl.reshape(p, [ROWS, BLOCK // VECTOR, VECTOR]), 2)


@triton.jit
def _rows(w_ptr, first, end, at, ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """[ROWS, BLOCK] of W [.., WIDTH] from row `first` on, as far as they are before `end`"""
    row = first + tl.arange(0, ROWS)
    live = (row < end)[:, None]
    if WIDTH != BLOCK:
        live = live & (at < WIDTH)[None, :]
    return tl.load(w_ptr + row.to(tl.int64)[:, None] * WIDTH + at[None, :], mask=live, other=0.0)


@triton.jit
def _input(
    x_ptr, residual_ptr, sum_ptr, weight, at, m, M, WIDTH: tl.constexpr, NORM: tl.constexpr,
    EPSILON: tl.constexpr, OFFSET: tl.constexpr, CAST_FIRST: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Row m as the product takes it, f32 [1, BLOCK]; zeros from M on"""
    TYPE: tl.constexpr = x_ptr.dtype.element_ty
    inside = (at < WIDTH) & (m < M)
    at += m * WIDTH
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(TYPE)
        if tl.program_id(0) == 0:
            tl.store(sum_ptr + at, rounded, mask=inside)
        x = rounded.to(tl.float32)
    if NORM:
        x = normalize(x, weight, WIDTH, EPSILON, OFFSET, CAST_FIRST, TYPE).to(tl.float32)
    return x[None, :]


@triton.jit
def _output(
    w, up, x, bias, to, live, BIAS: tl.constexpr, GATED: tl.constexpr, GELU: tl.constexpr,
    TYPE: tl.constexpr,
):  # fmt: skip
    y = tl.sum(w.to(tl.float32) * x, 1)
    if BIAS:
        y += bias
    y = y.to(TYPE)
    if GATED:
        factor = tl.sum(up.to(tl.float32) * x, 1).to(TYPE)
        y = gated(y.to(tl.float32), factor.to(tl.float32), GELU, TYPE)
    tl.store(to, y.to(to.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["M", "N"])
def few_rows(
    x_ptr, residual_ptr, norm_ptr, w_ptr, bias_ptr, y_ptr, sum_ptr, M, N,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, M_PAD: tl.constexpr,
    NORM: tl.constexpr, EPSILON: tl.constexpr, OFFSET: tl.constexpr, CAST_FIRST: tl.constexpr,
    ADD: tl.constexpr, GATED: tl.constexpr, GELU: tl.constexpr, BIAS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """x [M, WIDTH], W [N, WIDTH] of x's type, M up to M_PAD (1 or 2) -> y [M, N] of x's type or,
    with the same values, float32

    NORM: x is normalized, with ADD x + residual, which goes to sum [M, WIDTH]. GATED: W has 2 N
    rows, gate's then up's, and y is act(gate) * up. Any number of programs. Rounds where rowwise.py
    does. A row's bits do not depend on the other.
    """
    if PDL:
        gdc_launch_dependents()
    at = tl.arange(0, BLOCK)
    rows = tl.arange(0, ROWS)
    first, step = tl.program_id(0) * ROWS, tl.num_programs(0) * ROWS
    w = _rows(w_ptr, first, N, at, ROWS, WIDTH, BLOCK)
    up, weight = None, None
    if GATED:
        up_ptr = w_ptr + N.to(tl.int64) * WIDTH
        up = _rows(up_ptr, first, N, at, ROWS, WIDTH, BLOCK)
    if NORM:
        weight = tl.load(norm_ptr + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    x = _input(
        x_ptr, residual_ptr, sum_ptr, weight, at, 0, M, WIDTH, NORM, EPSILON, OFFSET,
        CAST_FIRST, ADD,
    )  # fmt: skip
    if M_PAD > 1:
        other = _input(
            x_ptr, residual_ptr, sum_ptr, weight, at, 1, M, WIDTH, NORM, EPSILON, OFFSET,
            CAST_FIRST, ADD,
        )  # fmt: skip
    for start in range(first, N, step):
        ahead = _rows(w_ptr, start + step, N, at, ROWS, WIDTH, BLOCK)
        if GATED:
            up_ahead = _rows(up_ptr, start + step, N, at, ROWS, WIDTH, BLOCK)
        live, bias = start + rows < N, None
        if BIAS:
            bias = tl.load(bias_ptr + start + rows, mask=live).to(tl.float32)
        to = y_ptr + start + rows
        _output(w, up, x, bias, to, live, BIAS, GATED, GELU, x_ptr.dtype.element_ty)
        if M_PAD > 1:
            live &= M > 1
            _output(w, up, other, bias, to + N, live, BIAS, GATED, GELU, x_ptr.dtype.element_ty)
        w = ahead
        if GATED:
            up = up_ahead


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
