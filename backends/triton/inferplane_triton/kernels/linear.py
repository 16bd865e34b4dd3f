"""y = x @ W.T for few rows, bound by reading W [N, K] once: 2 N K bytes in bf16.

What it brought to whole decode steps on one H100 is in docs/performance.md. The tiles are those
that did well over Llama-3-8B's and Qwen3-0.6B's shapes in one sweep; each shape's own best is a
few percent better.

One row: no matrix unit, each program sums a few rows of W, so that every processor reads long
contiguous runs. More rows: tensor cores, W as the left operand, because its rows are the many.
"""

import triton
import triton.language as tl


@triton.jit
def one_row(
    x_ptr, w_ptr, bias_ptr, y_ptr, K,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """x [K], W [N, K], K a multiple of BLOCK, N of ROWS -> y [N]"""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, BLOCK)
    acc = tl.zeros([ROWS, BLOCK], tl.float32)
    w_at = w_ptr + rows.to(tl.int64)[:, None] * K + at[None, :]
    for start in range(0, K, BLOCK):
        w = tl.load(w_at + start).to(tl.float32)
        acc += w * tl.load(x_ptr + start + at).to(tl.float32)[None, :]
    y = tl.sum(acc, 1)
    if BIAS:
        y += tl.load(bias_ptr + rows).to(tl.float32)
    tl.store(y_ptr + rows, y.to(y_ptr.dtype.element_ty))


@triton.jit
def few_rows(
    x_ptr, w_ptr, bias_ptr, y_ptr, M, N, K, stride_x,
    M_PAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """x [M, K], W [N, K], K a multiple of BLOCK, N of ROWS -> y [M, N]"""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, BLOCK)
    m = tl.arange(0, M_PAD)
    acc = tl.zeros([ROWS, M_PAD], tl.float32)
    w_at = w_ptr + rows.to(tl.int64)[:, None] * K + at[None, :]
    x_at = x_ptr + m[None, :] * stride_x + at[:, None]
    for start in range(0, K, BLOCK):
        w = tl.load(w_at + start)
        x = tl.load(x_at + start, mask=(m < M)[None, :], other=0.0)
        acc = tl.dot(w, x, acc, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias_ptr + rows).to(tl.float32)[:, None]
    y_at = y_ptr + m[None, :].to(tl.int64) * N + rows[:, None]
    tl.store(y_at, acc.to(y_ptr.dtype.element_ty), mask=(m < M)[None, :])
