"""y = x @ W.T by matrix units in tiles: W is the left operand, because its rows are the many.

For few rows of x the limit is reading W [N, K] once: N K (2 or 1) bytes. N / ROWS programs
do not fill a GPU where N is small, so K is split among SPLIT programs; they leave f32 sums in
`part`, and the one that arrives last adds them in the order of K, so the bits do not depend on
who was last. `count` is zero before and after. For many rows the limit is 2 M N K operations.

wgmma needs ROWS >= 64 with 4 warps. FP8 products are promoted to f32 sums every 128 of K, because
Hopper's own FP8 sums keep about 14 bits (DeepSeek-V3, arXiv 2412.19437, section 3.3.2).

`dense` is batch-invariant as long as ROWS, SPLIT and the unit (wgmma) are the same for all M: an
element's products are summed in steps of 16 along K in one order, whatever M_PAD and BLOCK are.
With SERIAL, one program works through the SPLIT parts and adds them in the same order.

PDL: programs may start while the kernel before still runs, and that may be a product with the
same `part` or `count`. The wait ends when that kernel has ended and all it wrote is visible, so
everything but W's values is touched after it; meanwhile the first AHEAD cache lines of the
program's rows of W come to L2 (CUDA programming guide, programmatic dependent launch).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def begin(w_ptr, rows, row_bytes, first, AHEAD: tl.constexpr, PDL: tl.constexpr):
    """What a tile does before it reads what other kernels wrote; `first` in bytes of a row"""
    if PDL:
        gdc_launch_dependents()
        if AHEAD:
            line = first + 128 * tl.arange(0, AHEAD)
            at = rows.to(tl.int64)[:, None] * row_bytes + tl.minimum(line, row_bytes - 1)[None, :]
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l",
                [w_ptr.to(tl.pointer_type(tl.int8), bitcast=True) + at],
                dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip
        gdc_wait()


@triton.jit
def place(N, ROWS: tl.constexpr, WIDE: tl.constexpr):
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
def _inside(rows, m, M, N, RAGGED: tl.constexpr):
    """Which values of a tile are the product's; RAGGED: N is not a multiple of the tile's rows"""
    if RAGGED:
        return (m < M)[None, :] & (rows < N)[:, None]
    else:
        return (m < M)[None, :]


@triton.jit
def _store(
    y_ptr, bias_ptr, acc, rows, m, M, N,
    BIAS: tl.constexpr, RAGGED: tl.constexpr, Number: tl.constexpr,
):  # fmt: skip
    """Number: the type that values are rounded to, if that is not y's"""
    if BIAS:
        held = tl.minimum(rows, N - 1) if RAGGED else rows
        acc += tl.load(bias_ptr + held).to(tl.float32)[:, None]
    at = y_ptr + m.to(tl.int64)[None, :] * N + rows[:, None]
    if Number is not None:
        acc = acc.to(Number)
    tl.store(at, acc.to(y_ptr.dtype.element_ty), mask=_inside(rows, m, M, N, RAGGED))


@triton.jit
def finish(
    acc, y_ptr, bias_ptr, part_ptr, count_ptr, rows, m, tile, M, N,
    SPLIT: tl.constexpr, BIAS: tl.constexpr, RAGGED: tl.constexpr = False,
    Number: tl.constexpr = None,
):  # fmt: skip
    """Store a finished tile, or add up the parts if this program is the last of its tile."""
    if SPLIT == 1:
        _store(y_ptr, bias_ptr, acc, rows, m, M, N, BIAS, RAGGED, Number)
    else:
        mask = _inside(rows, m, M, N, RAGGED)
        step = M.to(tl.int64) * N
        at = part_ptr + m.to(tl.int64)[None, :] * N + rows[:, None]
        tl.store(at + tl.program_id(2) * step, acc, mask=mask, cache_modifier=".cg")
        tl.debug_barrier()
        arrived = tl.atomic_add(count_ptr + tile, 1, sem="acq_rel", scope="gpu")
        if arrived == SPLIT - 1:
            total = tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
            for part in tl.static_range(1, SPLIT):
                total += tl.load(at + part * step, mask=mask, other=0.0, cache_modifier=".cg")
            _store(y_ptr, bias_ptr, total, rows, m, M, N, BIAS, RAGGED, Number)
            tl.atomic_xchg(count_ptr + tile, 0, sem="relaxed", scope="gpu")


@triton.jit
def _dense_sum(
    x_at, w_at, valid, first, end, ROWS: tl.constexpr, M_PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    acc = tl.zeros([ROWS, M_PAD], tl.float32)
    for start in range(first, end, BLOCK):
        w = tl.load(w_at + start)
        x = tl.load(x_at + start, mask=valid, other=0.0)
        acc = tl.dot(w, x, acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=["M"])
def dense(
    x_ptr, w_ptr, bias_ptr, y_ptr, part_ptr, count_ptr, M, N, K, stride_x, chunk,
    ROWS: tl.constexpr, M_PAD: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
    SERIAL: tl.constexpr, WIDE: tl.constexpr, BIAS: tl.constexpr, RAGGED: tl.constexpr,
    AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """x [M, K], W [N, K], K and chunk multiples of BLOCK, N of ROWS unless RAGGED -> y [M, N] of
    x's type or, with the same values, float32.

    grid (N / ROWS, M / M_PAD, SPLIT, or 1 if SERIAL); chunk of K for each of SPLIT.
    """
    column, line = place(N, ROWS, WIDE)
    rows = column * ROWS + tl.arange(0, ROWS)
    m = line * M_PAD + tl.arange(0, M_PAD)
    at = tl.arange(0, BLOCK)
    held = tl.minimum(rows, N - 1) if RAGGED else rows
    w_at = w_ptr + held.to(tl.int64)[:, None] * K + at[None, :]
    x_at = x_ptr + m.to(tl.int64)[None, :] * stride_x + at[:, None]
    valid = (m < M)[None, :]
    Number: tl.constexpr = w_ptr.dtype.element_ty
    bits: tl.constexpr = w_ptr.dtype.element_ty.primitive_bitwidth
    size: tl.constexpr = bits // 8
    begin(w_ptr, held, K * size, tl.program_id(2) * chunk * size, AHEAD, PDL)
    if SERIAL:
        acc = _dense_sum(x_at, w_at, valid, 0, tl.minimum(chunk, K), ROWS, M_PAD, BLOCK)
        for start in range(chunk, K, chunk):
            end = tl.minimum(start + chunk, K)
            acc += _dense_sum(x_at, w_at, valid, start, end, ROWS, M_PAD, BLOCK)
        _store(y_ptr, bias_ptr, acc, rows, m, M, N, BIAS, RAGGED, Number)
    else:
        start = tl.program_id(2) * chunk
        end = tl.minimum(start + chunk, K)
        acc = _dense_sum(x_at, w_at, valid, start, end, ROWS, M_PAD, BLOCK)
        tile = line * tl.cdiv(N, ROWS) + column
        finish(
            acc, y_ptr, bias_ptr, part_ptr, count_ptr, rows, m, tile, M, N,
            SPLIT, BIAS, RAGGED, Number,
        )  # fmt: skip


@triton.jit
def _factor(input_scale_ptr, m, M, M_PAD: tl.constexpr, BLOCKED: tl.constexpr, INPUT: tl.constexpr):
    """[M_PAD]: the input scales that hold for all of K"""
    if INPUT and not BLOCKED:
        return tl.load(input_scale_ptr + m, mask=m < M, other=1.0)
    return tl.full([M_PAD], 1.0, tl.float32)


@triton.jit(do_not_specialize=["M"])
def w8(
    x_ptr, input_scale_ptr, w_ptr, scale_ptr, bias_ptr, y_ptr, part_ptr, count_ptr,
    M, N, K, stride_x, chunk,
    ROWS: tl.constexpr, M_PAD: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
    WIDE: tl.constexpr, BLOCKED: tl.constexpr, INPUT: tl.constexpr, BIAS: tl.constexpr,
    AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """x [M, K], W [N, K] fp8 or int8 -> y [M, N]; grid as in `dense`

    INPUT: x has W's type and input_scale [M], BLOCKED [M, K / 128]; else W becomes x's type.
    scale [N]; BLOCKED [N / 128, K / 128] and BLOCK is 128.
    """
    column, line = place(N, ROWS, WIDE)
    rows = column * ROWS + tl.arange(0, ROWS)
    m = line * M_PAD + tl.arange(0, M_PAD)
    at = tl.arange(0, BLOCK)
    EXACT: tl.constexpr = INPUT and w_ptr.dtype.element_ty == tl.int8
    SUM: tl.constexpr = tl.int32 if EXACT else tl.float32
    w_at = w_ptr + rows.to(tl.int64)[:, None] * K + at[None, :]
    x_at = x_ptr + m.to(tl.int64)[None, :] * stride_x + at[:, None]
    valid = (m < M)[None, :]
    first = tl.program_id(2) * chunk
    begin(w_ptr, rows, K, first, AHEAD, PDL)
    blocks = K // 128
    weight_scale_at = scale_ptr + column * ROWS // 128 * blocks
    acc = tl.zeros([ROWS, M_PAD], tl.float32 if BLOCKED else SUM)
    for start in range(first, tl.minimum(first + chunk, K), BLOCK):
        w = tl.load(w_at + start)
        x = tl.load(x_at + start, mask=valid, other=0.0)
        if not INPUT:
            w = w.to(x.dtype)
        if BLOCKED:
            own = tl.full([M_PAD], 1.0, tl.float32)
            if INPUT:
                at_input = input_scale_ptr + m * blocks + start // 128
                own = tl.load(at_input, mask=m < M, other=1.0)
            own *= tl.load(weight_scale_at + start // 128)
            acc += tl.dot(w, x, out_dtype=SUM).to(tl.float32) * own[None, :]
        elif EXACT:
            acc = tl.dot(w, x, acc, out_dtype=tl.int32)
        else:
            acc = tl.dot(w, x, acc, max_num_imprecise_acc=128)
    sums = acc.to(tl.float32) * _factor(input_scale_ptr, m, M, M_PAD, BLOCKED, INPUT)[None, :]
    if not BLOCKED:
        sums *= tl.load(scale_ptr + rows)[:, None]
    tile = line * tl.cdiv(N, ROWS) + column
    finish(sums, y_ptr, bias_ptr, part_ptr, count_ptr, rows, m, tile, M, N, SPLIT, BIAS)
