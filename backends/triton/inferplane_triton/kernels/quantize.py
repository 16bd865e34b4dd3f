"""Inputs to FP8 or INT8: each element moves once; `store` ends kernels that compute them, too.

K (2 + 1) bytes a token. Rounding is to nearest, ties to even; scales as
`inferplane.hw.quantization.quantize_input` defines them. H100: 3.0 TB/s measured copy; below
about a megabyte the launch of about 1.6 us is the cost, of which PDL hides a part.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def quantized(x, inverse, Number: tl.constexpr):
    """f32 x times an inverse scale, as fp8 e4m3 or int8"""
    if Number == tl.int8:
        x = tl.minimum(tl.maximum(x * inverse, -127.0), 127.0)
        return ((x + 12582912.0) - 12582912.0).to(tl.int8)  # 1.5 * 2^23 leaves no fraction bits
    return tl.minimum(tl.maximum(x * inverse, -448.0), 448.0).to(Number)


@triton.jit
def store(
    x, input_scale_ptr, q_ptr, scale_ptr, row, part, K,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, STATIC: tl.constexpr,
):  # fmt: skip
    """f32 x [WIDTH], values part * WIDTH and on of a row, zero from K on -> q [M, K], scale f32
    [M, K / GROUP]. GROUP is WIDTH (then it may exceed K) or divides it."""
    Number: tl.constexpr = q_ptr.dtype.element_ty
    LIMIT: tl.constexpr = 127.0 if Number == tl.int8 else 448.0
    if STATIC:
        scale = tl.load(input_scale_ptr)
        tl.store(scale_ptr + row, scale)
        q = quantized(x, 1.0 / scale, Number)
    else:
        x = tl.reshape(x, [WIDTH // GROUP, GROUP])
        largest = tl.max(tl.abs(x), 1)
        scale = tl.where(largest == 0.0, 1.0, largest / LIMIT)
        group = part * (WIDTH // GROUP) + tl.arange(0, WIDTH // GROUP)
        groups = (K + GROUP - 1) // GROUP
        tl.store(scale_ptr + row * groups + group, scale, mask=group < groups)
        q = tl.reshape(quantized(x, (1.0 / scale)[:, None], Number), [WIDTH])
    # eight values a thread, as the kernels that write x itself have them: sums over x in a caller
    # follow this store, and would have another order with the sixteen that bytes allow
    at = part * WIDTH + tl.max_contiguous(tl.arange(0, WIDTH), 8)
    tl.store(q_ptr + row * K + at, q, mask=at < K)


@triton.jit
def rows(
    x_ptr, input_scale_ptr, q_ptr, scale_ptr, stride_x, K,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, STATIC: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """x [M, K] -> q [M, K], scale f32 [M, K / GROUP]; one program a token and WIDTH values"""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    at = part * WIDTH + tl.arange(0, WIDTH)
    x = tl.load(x_ptr + row * stride_x + at, mask=at < K, other=0.0).to(tl.float32)
    store(x, input_scale_ptr, q_ptr, scale_ptr, row, part, K, GROUP, WIDTH, STATIC)
