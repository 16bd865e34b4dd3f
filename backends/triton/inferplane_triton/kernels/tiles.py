"""y = x @ W.T by matrix units in tiles: W is the left operand, because its rows are the many.

For few rows of x the limit is reading W [N, K] once: N K (2, 1 or 1/2) bytes. N / ROWS programs
do not fill a GPU where N is small, so K is split among SPLIT programs; they leave f32 sums in
`part`, and the one that arrives last adds them in the order of K, so the bits do not depend on
who was last. `count` is zero before and after. For many rows the limit is 2 M N K operations.

wgmma needs ROWS >= 64 with 4 warps. FP8 products are promoted to f32 sums every 128 of K, because
Hopper's own FP8 sums keep about 14 bits (DeepSeek-V3, arXiv 2412.19437, section 3.3.2).

`dense` is batch-invariant as long as ROWS, SPLIT and the unit (wgmma) are the same for all M: an
element's products are summed in steps of 16 along K in one order, whatever M_PAD and BLOCK are.
With SERIAL, one program works through the SPLIT parts and adds them in the same order.
"""

import triton
import triton.language as tl

from inferplane_triton.kernels.quantize import quantized


@triton.jit
def _tile(N, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """(tile of W's rows, tile of x's rows): WIDE tiles of x share a tile of W while it is in L2"""
    if WIDE == 1:
        return tl.program_id(0), tl.program_id(1)
    columns = tl.cdiv(N, ROWS)
    linear = tl.program_id(1) * columns + tl.program_id(0)
    first = linear // (columns * WIDE) * WIDE
    width = tl.minimum(tl.num_programs(1) - first, WIDE)
    inside = linear - first * columns
    return inside // width, first + inside % width


@triton.jit
def _store(y_ptr, bias_ptr, acc, rows, m, M, N, BIAS: tl.constexpr):
    if BIAS:
        acc += tl.load(bias_ptr + rows).to(tl.float32)[:, None]
    at = y_ptr + m.to(tl.int64)[None, :] * N + rows[:, None]
    tl.store(at, acc.to(y_ptr.dtype.element_ty), mask=(m < M)[None, :])


@triton.jit
def _finish(
    acc, y_ptr, bias_ptr, part_ptr, count_ptr, rows, m, tile, M, N,
    SPLIT: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Store a finished tile, or add up the parts if this program is the last of its tile."""
    if SPLIT == 1:
        _store(y_ptr, bias_ptr, acc, rows, m, M, N, BIAS)
    else:
        mask = (m < M)[None, :]
        step = M.to(tl.int64) * N
        at = part_ptr + m.to(tl.int64)[None, :] * N + rows[:, None]
        tl.store(at + tl.program_id(2) * step, acc, mask=mask, cache_modifier=".cg")
        tl.debug_barrier()
        arrived = tl.atomic_add(count_ptr + tile, 1, sem="acq_rel", scope="gpu")
        if arrived == SPLIT - 1:
            total = tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
            for part in tl.static_range(1, SPLIT):
                total += tl.load(at + part * step, mask=mask, other=0.0, cache_modifier=".cg")
            _store(y_ptr, bias_ptr, total, rows, m, M, N, BIAS)
            tl.atomic_xchg(count_ptr + tile, 0, sem="relaxed", scope="gpu")


@triton.jit
def _dense_sum(
    x_at, w_at, valid, begin, end, ROWS: tl.constexpr, M_PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    acc = tl.zeros([ROWS, M_PAD], tl.float32)
    for start in range(begin, end, BLOCK):
        w = tl.load(w_at + start)
        x = tl.load(x_at + start, mask=valid, other=0.0)
        acc = tl.dot(w, x, acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=["M"])
def dense(
    x_ptr, w_ptr, bias_ptr, y_ptr, part_ptr, count_ptr, M, N, K, stride_x, chunk,
    ROWS: tl.constexpr, M_PAD: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
    SERIAL: tl.constexpr, WIDE: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """x [M, K], W [N, K], K and chunk multiples of BLOCK, N of ROWS -> y [M, N]

    grid (N / ROWS, M / M_PAD, SPLIT, or 1 if SERIAL); chunk of K for each of SPLIT.
    """
    column, line = _tile(N, ROWS, WIDE)
    rows = column * ROWS + tl.arange(0, ROWS)
    m = line * M_PAD + tl.arange(0, M_PAD)
    at = tl.arange(0, BLOCK)
    w_at = w_ptr + rows.to(tl.int64)[:, None] * K + at[None, :]
    x_at = x_ptr + m.to(tl.int64)[None, :] * stride_x + at[:, None]
    valid = (m < M)[None, :]
    if SERIAL:
        acc = _dense_sum(x_at, w_at, valid, 0, tl.minimum(chunk, K), ROWS, M_PAD, BLOCK)
        for begin in range(chunk, K, chunk):
            end = tl.minimum(begin + chunk, K)
            acc += _dense_sum(x_at, w_at, valid, begin, end, ROWS, M_PAD, BLOCK)
        _store(y_ptr, bias_ptr, acc, rows, m, M, N, BIAS)
    else:
        begin = tl.program_id(2) * chunk
        end = tl.minimum(begin + chunk, K)
        acc = _dense_sum(x_at, w_at, valid, begin, end, ROWS, M_PAD, BLOCK)
        tile = line * tl.cdiv(N, ROWS) + column
        _finish(acc, y_ptr, bias_ptr, part_ptr, count_ptr, rows, m, tile, M, N, SPLIT, BIAS)


@triton.jit
def _input_scale(x_at, valid, K, LIMIT: tl.constexpr, M_PAD: tl.constexpr, BLOCK: tl.constexpr):
    """[M_PAD]: largest magnitude of whole rows over LIMIT, 1 where all are zero"""
    most = tl.zeros([BLOCK, M_PAD], tl.float32)
    for start in range(0, K, BLOCK):
        most = tl.maximum(most, tl.abs(tl.load(x_at + start, mask=valid, other=0.0).to(tl.float32)))
    largest = tl.max(most, 0)
    return tl.where(largest == 0.0, 1.0, largest / LIMIT)


@triton.jit(do_not_specialize=["M"])
def w8(
    x_ptr, input_scale_ptr, w_ptr, scale_ptr, bias_ptr, y_ptr, part_ptr, count_ptr,
    M, N, K, stride_x, chunk,
    ROWS: tl.constexpr, M_PAD: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
    WIDE: tl.constexpr, BLOCKED: tl.constexpr, INPUT: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """x [M, K], W [N, K] fp8 or int8 -> y [M, N]; grid as in `dense`

    INPUT: "plain" multiplies in x's type; "dynamic" and "static" quantize x as it is read
    (input_scale [1]); "quantized" gets W's type and input_scale [M], BLOCKED [M, K / 128].
    scale [N]; BLOCKED [N / 128, K / 128] and BLOCK is 128.
    """
    column, line = _tile(N, ROWS, WIDE)
    rows = column * ROWS + tl.arange(0, ROWS)
    m = line * M_PAD + tl.arange(0, M_PAD)
    at = tl.arange(0, BLOCK)
    Number: tl.constexpr = w_ptr.dtype.element_ty
    LIMIT: tl.constexpr = 127.0 if Number == tl.int8 else 448.0
    EXACT: tl.constexpr = Number == tl.int8 and INPUT != "plain"
    SUM: tl.constexpr = tl.int32 if EXACT else tl.float32
    w_at = w_ptr + rows.to(tl.int64)[:, None] * K + at[None, :]
    x_at = x_ptr + m.to(tl.int64)[None, :] * stride_x + at[:, None]
    valid = (m < M)[None, :]
    factor = tl.full([M_PAD], 1.0, tl.float32)
    if INPUT == "static":
        factor *= tl.load(input_scale_ptr)
    elif not BLOCKED:
        if INPUT == "dynamic":
            factor = _input_scale(x_at, valid, K, LIMIT, M_PAD, BLOCK)
        elif INPUT == "quantized":
            factor = tl.load(input_scale_ptr + m, mask=m < M, other=1.0)
    inverse = (1.0 / factor)[None, :]
    blocks = K // 128
    weight_scale_at = scale_ptr + column * ROWS // 128 * blocks
    acc = tl.zeros([ROWS, M_PAD], tl.float32 if BLOCKED else SUM)
    begin = tl.program_id(2) * chunk
    for start in range(begin, tl.minimum(begin + chunk, K), BLOCK):
        w = tl.load(w_at + start)
        x = tl.load(x_at + start, mask=valid, other=0.0)
        if BLOCKED:
            own = tl.full([M_PAD], 1.0, tl.float32)
            if INPUT == "dynamic":
                largest = tl.max(tl.abs(x.to(tl.float32)), 0)
                own = tl.where(largest == 0.0, 1.0, largest / LIMIT)
                x = quantized(x.to(tl.float32), (1.0 / own)[None, :], Number)
            elif INPUT == "quantized":
                at_input = input_scale_ptr + m * blocks + start // 128
                own = tl.load(at_input, mask=m < M, other=1.0)
            else:
                w = w.to(x.dtype)
            own *= tl.load(weight_scale_at + start // 128)
            acc += tl.dot(w, x, out_dtype=SUM).to(tl.float32) * own[None, :]
        else:
            if INPUT == "dynamic" or INPUT == "static":
                x = quantized(x.to(tl.float32), inverse, Number)
            elif INPUT == "plain":
                w = w.to(x.dtype)
            if EXACT:
                acc = tl.dot(w, x, acc, out_dtype=tl.int32)
            else:
                acc = tl.dot(w, x, acc, max_num_imprecise_acc=128)
    sums = acc.to(tl.float32) * factor[None, :]
    if not BLOCKED:
        sums *= tl.load(scale_ptr + rows)[:, None]
    tile = line * tl.cdiv(N, ROWS) + column
    _finish(sums, y_ptr, bias_ptr, part_ptr, count_ptr, rows, m, tile, M, N, SPLIT, BIAS)


@triton.jit
def _scales(first, scale_at, g, end, N, GROUP: tl.constexpr):
    """Where the scales of a step's chunks are, and which of them exist."""
    at = scale_at + first * 128 // GROUP * N
    inside = tl.expand_dims(first + g < end, 1)
    if len(scale_at.shape) == 3:
        inside = tl.expand_dims(inside, 2)
    return at, inside


@triton.jit(do_not_specialize=["M"])
def int4(
    x_ptr, w_ptr, scale_ptr, offset_ptr, bias_ptr, y_ptr, part_ptr, count_ptr,
    M, N, words, stride_x, chunk,
    ROWS: tl.constexpr, M_PAD: tl.constexpr, GROUP: tl.constexpr, CHUNKS: tl.constexpr,
    SPLIT: tl.constexpr, ASYMMETRIC: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """x [M, K], W i32 [N, words] -> y [M, N]; grid as in `dense`

    Chunks of 128 in K are a batch of products, one or more of the CHUNKS a warp: each is 8
    products of depth 16, one for each nibble of 16 words. Groups of 128 and more scale the sums;
    smaller ones scale the weights, which rounds those to x's type. `chunk` counts chunks and is
    a multiple of CHUNKS.
    """
    SMALL: tl.constexpr = GROUP < 128
    column, line = tl.program_id(0), tl.program_id(1)
    rows = column * ROWS + tl.arange(0, ROWS)
    m = line * M_PAD + tl.arange(0, M_PAD)
    g = tl.arange(0, CHUNKS)
    word = tl.arange(0, 16)
    wide = rows.to(tl.int64)
    Number: tl.constexpr = x_ptr.dtype.element_ty
    w_at = w_ptr + wide[None, :, None] * words + (g[:, None, None] * 16 + word[None, None, :])
    x_word = word // 4 * 32 + word % 4
    x_at = m.to(tl.int64)[None, None, :] * stride_x + (
        g[:, None, None] * 128 + x_word[None, :, None]
    )
    valid = (m < M)[None, None, :]
    acc = tl.zeros([CHUNKS, ROWS, M_PAD], tl.float32)
    begin = tl.program_id(2) * chunk
    end = tl.minimum(begin + chunk, words // 16)
    if SMALL:
        k = g[:, None, None] * 128 + (word // 4 * 32)[None, None, :]
        scale_at = rows[None, :, None] + k // GROUP * N
    else:
        scale_at = rows[None, :] + (g * 128 // GROUP)[:, None] * N
    # scales are too narrow for the asynchronous copies of the loop's other loads
    at, mask = _scales(begin, scale_at, g, end, N, GROUP)
    scale = tl.load(scale_ptr + at, mask=mask, other=0.0)
    for first in range(begin, end, CHUNKS):
        inside = first + g < end
        w = tl.load(w_at + first * 16, mask=inside[:, None, None], other=0)
        if ASYMMETRIC:
            at, mask = _scales(first, scale_at, g, end, N, GROUP)
            offset = tl.load(offset_ptr + at, mask=mask, other=0.0).to(tl.float32)
        at, mask = _scales(first + CHUNKS, scale_at, g, end, N, GROUP)
        scale_ahead = tl.load(scale_ptr + at, mask=mask, other=0.0)
        sums = tl.zeros([CHUNKS, ROWS, M_PAD], tl.float32)
        total = tl.zeros([CHUNKS, 16, M_PAD], tl.float32)
        for nibble in tl.static_range(8):
            x = tl.load(
                x_ptr + x_at + (first * 128 + 4 * nibble),
                mask=inside[:, None, None] & valid, other=0.0,
            )  # fmt: skip
            q = (w >> (4 * nibble)) & 15
            if Number == tl.bfloat16:  # 128 + q
                value = (q | 0x4300).to(tl.int16).to(Number, bitcast=True)
                value -= 128.0 if ASYMMETRIC else 136.0
            elif Number == tl.float16:  # 1024 + q
                value = (q | 0x6400).to(tl.int16).to(Number, bitcast=True)
                value -= 1024.0 if ASYMMETRIC else 1032.0
            else:
                value = q.to(Number) - (0.0 if ASYMMETRIC else 8.0)
            if SMALL:
                scaled = value.to(tl.float32) * scale.to(tl.float32)
                if ASYMMETRIC:
                    scaled += offset
                value = scaled.to(Number)
            elif ASYMMETRIC:
                total += x.to(tl.float32)
            sums = tl.dot(value.to(Number), x, sums, input_precision="ieee")
        if SMALL:
            acc += sums
        else:
            acc += sums * scale.to(tl.float32)[:, :, None]
            if ASYMMETRIC:
                acc += offset[:, :, None] * tl.sum(total, 1)[:, None, :]
        scale = scale_ahead
    tile = line * tl.cdiv(N, ROWS) + column
    summed = tl.sum(acc, 0)
    _finish(summed, y_ptr, bias_ptr, part_ptr, count_ptr, rows, m, tile, M, N, SPLIT, BIAS)
