"""Kernels that read and write each element once: norms, gated activation, rotary embedding with
the KV write. All are bound by memory (H100: 3.0 TB/s measured copy) or, below about a megabyte,
by the launch.

rms:     2 T d elements; add_rms: 4 T d; glu: 3 T F; rope_write: 2 T (Hq + 2 Hkv) D.
rms_quantize and glu_quantize write a byte in place of an element, and nobody reads elements again.
RMS norm: Zhang and Sennrich, arXiv 1910.07467. Rotary embedding: Su et al., arXiv 2104.09864.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from inferplane_triton.kernels.quantize import store


@triton.jit
def normalize(x, weight, width, EPSILON, OFFSET, CAST_FIRST: tl.constexpr, TYPE: tl.constexpr):
    """f32 x [..., d] -> the normalized and weighted value in TYPE; reduces the last dimension"""
    scale = 1.0 / tl.sqrt(tl.sum(x * x, -1) / width + EPSILON)
    value = x * tl.expand_dims(scale, -1)
    if CAST_FIRST:
        value = value.to(TYPE).to(tl.float32)
        return (value * (weight + OFFSET)).to(TYPE)
    return (value * (weight + OFFSET)).to(TYPE)


@triton.jit
def rms(
    x_ptr, weight_ptr, out_ptr, stride_x, stride_out, width,
    EPSILON: tl.constexpr, OFFSET: tl.constexpr, CAST_FIRST: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """x [M, d] -> out [M, d]; one program a row"""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    mask = at < width
    x = tl.load(x_ptr + row * stride_x + at, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + at, mask=mask, other=0.0).to(tl.float32)
    y = normalize(x, weight, width, EPSILON, OFFSET, CAST_FIRST, out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * stride_out + at, y, mask=mask)


@triton.jit
def add_rms(
    x_ptr, residual_ptr, weight_ptr, out_ptr, sum_ptr, width,
    EPSILON: tl.constexpr, OFFSET: tl.constexpr, CAST_FIRST: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """x, residual [M, d] -> sum = x + residual rounded to its type, out = norm(sum)"""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, BLOCK)
    mask = at < width
    x = tl.load(x_ptr + row + at, mask=mask, other=0.0).to(tl.float32)
    x += tl.load(residual_ptr + row + at, mask=mask, other=0.0).to(tl.float32)
    rounded = x.to(sum_ptr.dtype.element_ty)
    tl.store(sum_ptr + row + at, rounded, mask=mask)
    weight = tl.load(weight_ptr + at, mask=mask, other=0.0).to(tl.float32)
    y = normalize(
        rounded.to(tl.float32), weight, width, EPSILON, OFFSET, CAST_FIRST,
        out_ptr.dtype.element_ty,
    )  # fmt: skip
    tl.store(out_ptr + row + at, y, mask=mask)


@triton.jit
def gated(gate, up, GELU: tl.constexpr, TYPE: tl.constexpr):
    """f32 -> act(gate) * up in TYPE"""
    if GELU:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        value = gate * tl.sigmoid(2.0 * inner)  # 0.5 (1 + tanh y) = sigmoid(2 y)
    else:
        value = gate * tl.sigmoid(gate)
    return (value.to(TYPE).to(tl.float32) * up).to(TYPE)


@triton.jit
def glu(x_ptr, out_ptr, size, GELU: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """x [T, 2F] (gate, then up) -> act(gate) * up [T, F]"""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    gate = tl.load(x_ptr + row * 2 * size + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * size + size + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * size + at, gated(gate, up, GELU, out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def rms_quantize(
    x_ptr, residual_ptr, weight_ptr, input_scale_ptr, q_ptr, scale_ptr, sum_ptr, width,
    EPSILON: tl.constexpr, OFFSET: tl.constexpr, CAST_FIRST: tl.constexpr, BLOCK: tl.constexpr,
    GROUP: tl.constexpr, STATIC: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """What add_rms (ADD) or rms gives, as kernels/quantize.py rounds it: the same bits"""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    mask = at < width
    TYPE: tl.constexpr = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + row * width + at, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(residual_ptr + row * width + at, mask=mask, other=0.0).to(tl.float32)
        rounded = x.to(TYPE)
        tl.store(sum_ptr + row * width + at, rounded, mask=mask)
        x = rounded.to(tl.float32)
    weight = tl.load(weight_ptr + at, mask=mask, other=0.0).to(tl.float32)
    y = normalize(x, weight, width, EPSILON, OFFSET, CAST_FIRST, TYPE).to(tl.float32)
    store(y, input_scale_ptr, q_ptr, scale_ptr, row, 0, width, GROUP, BLOCK, STATIC)


@triton.jit
def glu_quantize(
    x_ptr, input_scale_ptr, q_ptr, scale_ptr, size, GELU: tl.constexpr, BLOCK: tl.constexpr,
    GROUP: tl.constexpr, STATIC: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """What glu gives, as kernels/quantize.py rounds it; one program a token and BLOCK values"""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    at = part * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    gate = tl.load(x_ptr + row * 2 * size + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * size + size + at, mask=mask, other=0.0).to(tl.float32)
    y = gated(gate, up, GELU, x_ptr.dtype.element_ty).to(tl.float32)
    store(y, input_scale_ptr, q_ptr, scale_ptr, row, part, size, GROUP, BLOCK, STATIC)


@triton.jit
def _rotate_heads(
    x_ptr, table_ptr, weight_ptr, position, heads, HEADS_PAD: tl.constexpr, DIM: tl.constexpr,
    DIM_PAD: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, NORM: tl.constexpr,
    EPSILON: tl.constexpr, OFFSET: tl.constexpr, CAST_FIRST: tl.constexpr,
):  # fmt: skip
    """Heads [H, D] of one token, normalized and rotated."""
    head = tl.arange(0, HEADS_PAD)
    dim = tl.arange(0, DIM_PAD)
    HALF: tl.constexpr = ROTARY // 2
    if INTERLEAVED:
        partner = dim ^ 1
        pair = dim // 2
        sign = tl.where(dim % 2 == 0, -1.0, 1.0)
    else:
        partner = tl.where(dim < HALF, dim + HALF, dim - HALF)
        pair = dim % HALF
        sign = tl.where(dim < HALF, -1.0, 1.0)
    turned = dim < ROTARY
    partner = tl.where(turned, partner, dim)
    mask = (head < heads)[:, None] & (dim < DIM)[None, :]
    at = x_ptr + head[:, None] * DIM
    TYPE: tl.constexpr = x_ptr.dtype.element_ty
    x = tl.load(at + dim[None, :], mask=mask, other=0.0).to(tl.float32)
    other = tl.load(at + partner[None, :], mask=mask, other=0.0).to(tl.float32)
    if NORM:
        scale = 1.0 / tl.sqrt(tl.sum(x * x, 1) / DIM + EPSILON)
        w = tl.load(weight_ptr + dim, mask=dim < DIM, other=0.0).to(tl.float32) + OFFSET
        v = tl.load(weight_ptr + partner, mask=dim < DIM, other=0.0).to(tl.float32) + OFFSET
        x = x * scale[:, None]
        other = other * scale[:, None]
        if CAST_FIRST:
            x = x.to(TYPE).to(tl.float32)
            other = other.to(TYPE).to(tl.float32)
        x = (x * w[None, :]).to(TYPE).to(tl.float32)
        other = (other * v[None, :]).to(TYPE).to(tl.float32)
    row = table_ptr + position * ROTARY
    cos = tl.load(row + pair, mask=turned, other=1.0)
    sin = tl.load(row + HALF + pair, mask=turned, other=0.0)
    return x * cos[None, :] + other * (sin * sign)[None, :], mask


@triton.jit
def rope_write(
    q_ptr, k_ptr, v_ptr, q_out_ptr, keys_ptr, values_ptr, table_ptr, q_weight_ptr, k_weight_ptr,
    position_ptr, slot_ptr, q_heads, k_heads, stride_q, stride_k, stride_v,
    stride_page, stride_token, stride_head,
    PAGE: tl.constexpr, Q_PAD: tl.constexpr, K_PAD: tl.constexpr, DIM: tl.constexpr,
    DIM_PAD: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, NORM: tl.constexpr,
    EPSILON: tl.constexpr, OFFSET: tl.constexpr, CAST_FIRST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Programs of a token: the first turns the keys and stores k and v, the others turn Q_PAD query
    heads each."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(position_ptr + token).to(tl.int64)
    dim = tl.arange(0, DIM_PAD)
    if tl.program_id(1) > 0:
        first = (tl.program_id(1) - 1) * Q_PAD
        q_head = first + tl.arange(0, Q_PAD)
        q, q_mask = _rotate_heads(
            q_ptr + token * stride_q + first * DIM, table_ptr, q_weight_ptr, position,
            q_heads - first, Q_PAD, DIM, DIM_PAD, ROTARY, INTERLEAVED, NORM, EPSILON, OFFSET,
            CAST_FIRST,
        )  # fmt: skip
        target = q_out_ptr + (token * q_heads + q_head[:, None]) * DIM + dim[None, :]
        tl.store(target, q.to(q_out_ptr.dtype.element_ty), mask=q_mask)
    else:
        head = tl.arange(0, K_PAD)
        k, mask = _rotate_heads(
            k_ptr + token * stride_k, table_ptr, k_weight_ptr, position, k_heads, K_PAD, DIM,
            DIM_PAD, ROTARY, INTERLEAVED, NORM, EPSILON, OFFSET, CAST_FIRST,
        )  # fmt: skip
        slot = tl.load(slot_ptr + token).to(tl.int64)
        where = slot // PAGE * stride_page + slot % PAGE * stride_token
        inside = where + head[:, None] * stride_head + dim[None, :]
        # rounded to the activations' type first, as the separate ops do
        rounded = k.to(q_out_ptr.dtype.element_ty)
        tl.store(keys_ptr + inside, rounded.to(keys_ptr.dtype.element_ty), mask=mask)
        at = v_ptr + token * stride_v + head[:, None] * DIM + dim[None, :]
        v = tl.load(at, mask=mask, other=0.0)
        tl.store(values_ptr + inside, v.to(values_ptr.dtype.element_ty), mask=mask)
