"""y = x @ W.T for one row: no matrix unit, bound by reading W [N, K] once.

bytes: N K (2 dense, 1 FP8 and INT8, 1/2 INT4 + its scales); operations: 2 N K, on H100 a tenth of
what the plain units do in the time of the bytes in bf16, a third in FP8, half in INT4. So loads
are 16 bytes a thread, ROWS of them are in flight while the tile before is summed (a register
double buffer), each thread first sums the 8 to 32 neighbours that its load brought, and lanes
meet once at the end.

INT4: a word holds 8 values of a k range of 32 (see `pack_int4` in weights.py). `word & mask | 16.0`
puts four bits into a float's mantissa: 16 + q without a conversion instruction; two of eight
values share a shift, the lower one then counts 1/16. What all the 16s add is subtracted once.
The trick for fp16: Kim et al., "Who Says Elephants Can't Run", arXiv 2211.10017.

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
    """x [K], W [N, K] of x's type, K a multiple of BLOCK, N of ROWS -> y [N]"""
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
    tl.store(y_ptr + rows, y.to(y_ptr.dtype.element_ty))


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


@triton.jit
def one_row_int4(
    x_ptr, w_ptr, scale_ptr, offset_ptr, bias_ptr, y_ptr, N, words,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, ASYMMETRIC: tl.constexpr,
    BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """x [K], W i32 [N, words], scale and offset [K / GROUP, N] -> y [N]; BLOCK in words"""
    if PDL:
        gdc_launch_dependents()
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    wide = rows.to(tl.int64)[:, None]
    word = tl.arange(0, BLOCK)
    lane = tl.arange(0, BLOCK // 4)
    w_at = w_ptr + wide * words + word[None, :]
    scale_at = rows[:, None] + (lane * 32 // GROUP)[None, :] * N
    # nibble j of word 4 t + i is the weight of k = 32 t + 4 j + i
    x_at = x_ptr + word // 4 * 32 + word % 4
    w = tl.load(w_at)
    scale = tl.load(scale_ptr + scale_at)
    if PDL:
        gdc_wait()
    acc = tl.zeros([ROWS, BLOCK // 4], tl.float32)
    for start in range(0, words, BLOCK):
        more = start + BLOCK < words
        ahead = tl.load(w_at + (start + BLOCK), mask=more)
        scale_ahead = tl.load(scale_ptr + scale_at + (start + BLOCK) * 8 // GROUP * N, mask=more)
        p = tl.zeros([ROWS, BLOCK], tl.float32)
        biased = tl.zeros([BLOCK], tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        for pair in tl.static_range(4):
            low = tl.load(x_at + start * 8 + 8 * pair).to(tl.float32)
            high = tl.load(x_at + start * 8 + 8 * pair + 4).to(tl.float32)
            total += low + high
            low *= 16.0
            biased += low + high
            # the upper of two nibbles goes to bits 19-22, the lower one to bits 15-18
            moved = w << (15 - 8 * pair) if pair < 2 else w >> (8 * pair - 15)
            a = ((moved & 0x00078000) | 0x41800000).to(tl.float32, bitcast=True)
            b = ((moved & 0x00780000) | 0x41800000).to(tl.float32, bitcast=True)
            p += a * low[None, :] + b * high[None, :]
        sums = _lanes(p, ROWS, BLOCK, 4)
        bias = tl.sum(tl.reshape(biased, [BLOCK // 4, 4]), 1) * 16.0
        inputs = tl.sum(tl.reshape(total, [BLOCK // 4, 4]), 1)
        if ASYMMETRIC:
            offset = tl.load(offset_ptr + scale_at + start * 8 // GROUP * N).to(tl.float32)
            acc += scale.to(tl.float32) * (sums - bias[None, :]) + offset * inputs[None, :]
        else:
            acc += scale.to(tl.float32) * (sums - (bias + 8.0 * inputs)[None, :])
        w, scale = ahead, scale_ahead
    y = tl.sum(acc, 1)
    if BIAS:
        y += tl.load(bias_ptr + rows).to(tl.float32)
    tl.store(y_ptr + rows, y.to(y_ptr.dtype.element_ty))
