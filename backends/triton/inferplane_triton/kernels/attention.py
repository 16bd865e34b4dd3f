"""Attention over paged keys and values, in Triton: a tiled kernel and a split one for decode.

Computes o[t, h] = softmax(scale * q[t, h] . k[s]) v[s] over the visible keys s of the token's
sequence (hw/ops/attention.py). Shapes: q, o [T, Hq, D]; keys and values [pages, page, Hkv, D].

Moves, per step and layer, at least the visible keys and values once: 2 * seq_len * Hkv * D * width
bytes a sequence; decode is bound by that (H100: 3.0 TB/s measured copy). Prefill computes
4 * D * Hq operations per visible pair and is bound by the matrix units.

Techniques: FlashAttention's online softmax (Dao, arXiv 2307.08691), split-KV decode
(Flash-Decoding, Dao et al. 2023), queries that share a key head packed into one tile
(grouped-query attention, Ainslie et al., arXiv 2305.13245). PDL: the launch overlaps the end of
the kernel before (CUDA programming guide, programmatic dependent launch).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LOG2E = tl.constexpr(1.4426950408889634)
ANY = ["seqs", "least", "splits", "stride_table"]
"""arguments that differ from step to step: a kernel for each kind of value would be compiled while
requests wait"""


@triton.jit
def _tanh(x, EXACT: tl.constexpr):
    """f32. A sigmoid's last bits are all that small x would have left: EXACT takes a polynomial of
    x^2 there, fitted to 8e-8 of the value at Chebyshev nodes of [0, 0.36]."""
    if not EXACT:
        return 2.0 * tl.sigmoid(2.0 * x) - 1.0
    square = x * x
    series = -0.05387514 + square * (0.02111621 - 0.00627638 * square)
    series = -0.3333333 + square * (0.13332924 + square * series)
    far = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(square < 0.36, x + x * square * series, tl.where(x < 0.0, -far, far))


@triton.jit
def _draft(position_ptr, mask_ptr, stride_mask, q_begin, begin, token):
    """What the rows of a tile need to see a draft tree (hw/ops/attention_tree.py): `begin` keys
    are from earlier steps, row i is query token[i] of the sequence. The last four have a value
    for each row: where its mask is, whether it is of a draft, its place in its branch and in the
    pages."""
    at = mask_ptr + (q_begin + token).to(tl.int64) * stride_mask
    named = token < 8 * stride_mask
    own = tl.load(at + token // 8, mask=named, other=0)
    drafted = ((own >> (token % 8)) & 1) != 0
    root = tl.load(position_ptr + q_begin)
    place = begin + tl.load(position_ptr + q_begin + token, mask=drafted, other=0) - root
    return position_ptr + q_begin, stride_mask, begin, at, drafted, place


@triton.jit
def _in_branch(draft, seen, near, key, held, WINDOW: tl.constexpr):
    """[M, BLOCK]: `seen` of the rows by their masks, and `near` by the places in the branch"""
    position_ptr, stride_mask, begin, at, drafted, place = draft
    token = key - begin
    ours = held & (token >= 0)
    named = (ours & (token < 8 * stride_mask))[None, :] & drafted[:, None]
    some = tl.load(at[:, None] + (token // 8)[None, :], mask=named, other=0)
    bit = ((some >> (token % 8)[None, :]) & 1) != 0
    seen = seen & (bit | (token < 0)[None, :] | (~drafted)[:, None])
    if WINDOW > 0:
        root = tl.load(position_ptr)
        where = begin + tl.load(position_ptr + token, mask=ours, other=0) - root
        where = tl.where(ours, where, key)
        branch = where[None, :] > place[:, None] - WINDOW
        near = (drafted[:, None] & branch) | ((~drafted)[:, None] & near)
        seen = seen & near
    return seen


@triton.jit
def _block(
    q, acc, peak, total, start, position, live, floor, k_ptr, v_ptr, table_ptr, seq_len,
    stride_page, stride_token, scale, draft,
    PAGE: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, TREE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One block of keys. Without MASKED every row sees all of them. Scores, `peak` and sums are in
    powers of two."""
    dims = tl.arange(0, DIM_PAD)
    inside = dims < DIM
    key = start + tl.arange(0, BLOCK)
    if MASKED:
        held = (key < seq_len) & (key >= floor)
        page = tl.load(table_ptr + key // PAGE, mask=held, other=0).to(tl.int64)
    else:
        page = tl.load(table_ptr + key // PAGE).to(tl.int64)
    where = page * stride_page + (key % PAGE) * stride_token
    k_at = k_ptr + where[None, :] + dims[:, None]
    v_at = v_ptr + where[:, None] + dims[None, :]
    if MASKED:
        k = tl.load(k_at, mask=held[None, :] & inside[:, None], other=0.0)
    elif DIM == DIM_PAD:
        k = tl.load(k_at)
    else:
        k = tl.load(k_at, mask=inside[:, None], other=0.0)
    score = tl.dot(q, k.to(q.dtype), input_precision="ieee")
    if SOFTCAP > 0.0:
        score = SOFTCAP * LOG2E * _tanh(scale / SOFTCAP * score, EXACT=q.dtype == tl.float32)
    else:
        score = score * (scale * LOG2E)
    if MASKED:
        seen = (key[None, :] <= position[:, None]) & live[:, None]
        near = key[None, :] > position[:, None] - WINDOW
        if TREE:
            seen = _in_branch(draft, seen, near, key, held, WINDOW)
        elif WINDOW > 0:
            seen = seen & near
        score = tl.where(seen, score, float("-inf"))
    higher = tl.maximum(peak, tl.max(score, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher) if MASKED else higher
    weight = tl.exp2(score - base[:, None])
    shrink = tl.exp2(peak - base)
    if MASKED:
        v = tl.load(v_at, mask=held[:, None] & inside[None, :], other=0.0)
    elif DIM == DIM_PAD:
        v = tl.load(v_at)
    else:
        v = tl.load(v_at, mask=inside[None, :], other=0.0)
    total = total * shrink + tl.sum(weight, 1)
    acc = acc * shrink[:, None]
    acc = tl.dot(weight.to(q.dtype), v.to(q.dtype), acc, input_precision="ieee")
    return acc, higher, total


@triton.jit
def _attend(
    q, acc, peak, total, position, live, floor, full, last, k_ptr, v_ptr, table_ptr, seq_len,
    stride_page, stride_token, scale, draft,
    PAGE: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, TREE: tl.constexpr,
):  # fmt: skip
    """Keys floor..last for q [M, D] at `position` [M], in blocks that start at multiples of BLOCK.
    Every row sees all keys below `full`, a multiple of BLOCK that is 0 where that cannot be said.

    Keys below `floor` and from seq_len on are never loaded: their pages may be gone."""
    first = floor // BLOCK * BLOCK
    for start in range(first, full, BLOCK):
        acc, peak, total = _block(
            q, acc, peak, total, start, position, live, floor, k_ptr, v_ptr, table_ptr, seq_len,
            stride_page, stride_token, scale, draft,
            PAGE, DIM, DIM_PAD, BLOCK, WINDOW, SOFTCAP, TREE, False,
        )  # fmt: skip
    for start in range(tl.maximum(first, full), last, BLOCK):
        acc, peak, total = _block(
            q, acc, peak, total, start, position, live, floor, k_ptr, v_ptr, table_ptr, seq_len,
            stride_page, stride_token, scale, draft,
            PAGE, DIM, DIM_PAD, BLOCK, WINDOW, SOFTCAP, TREE, True,
        )  # fmt: skip
    return acc, peak, total


@triton.jit
def _begin(
    sink_ptr, heads, with_sink,
    ROWS: tl.constexpr, DIM_PAD: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Empty sums of a softmax; a sink counts as one key whose value is zero."""
    acc = tl.zeros([ROWS, DIM_PAD], tl.float32)
    if SINKS:
        peak = tl.load(sink_ptr + heads, mask=with_sink, other=float("-inf")).to(tl.float32)
        peak = peak * LOG2E
        total = tl.where(with_sink, 1.0, 0.0)
    else:
        peak = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
    return acc, peak, total


@triton.jit
def _owner(tile, seqs, q_start_ptr, TOKENS: tl.constexpr):
    """Sequence i owns the tiles from q_start[i] // TOKENS + i: enough for all its queries, so that
    a program finds its sequence by bisection without a table from the host."""
    low, high = 0, seqs
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(q_start_ptr + middle) // TOKENS + middle <= tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit(do_not_specialize=ANY, do_not_specialize_on_alignment=["q_start_ptr"])
def tiled(
    q_ptr, k_ptr, v_ptr, out_ptr, sink_ptr, table_ptr, seq_len_ptr, q_start_ptr,
    position_ptr, mask_ptr, stride_mask, seqs, least, stride_q, stride_out,
    stride_page, stride_token, stride_head, stride_table, scale,
    HEADS: tl.constexpr, SHARED: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    PAGE: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr, TREE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One program per tile of TOKENS queries (times SHARED heads = ROWS rows) and key head.
    Sequences with fewer than `least` queries belong to `split`. Late tiles take longest: first.
    Which blocks are masked depends on the other rows of the tile. That changes a row's bits only
    where a product and a sum are contracted on one of the two ways, which deterministic mode
    forbids (option enable_fp_fusion), and with TREE in float32 (one H200): there all are masked.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    tile, head = tl.num_programs(1) - 1 - tl.program_id(1), tl.program_id(0)
    seq = _owner(tile, seqs, q_start_ptr, TOKENS)
    q_begin = tl.load(q_start_ptr + seq)
    q_len = tl.load(q_start_ptr + seq + 1) - q_begin
    number = tile - (q_begin // TOKENS + seq)
    if (q_len < least) | (number * TOKENS >= q_len):
        return
    seq_len = tl.load(seq_len_ptr + seq)
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, DIM_PAD)
    token = number * TOKENS + rows // SHARED
    live = (token < q_len) & (rows < TOKENS * SHARED)
    heads = head * SHARED + rows % SHARED
    where = (q_begin + token).to(tl.int64)
    q_mask = live[:, None] & (dims < DIM)[None, :]
    q = tl.load(
        q_ptr + where[:, None] * stride_q + heads[:, None] * DIM + dims[None, :],
        mask=q_mask, other=0.0,
    )  # fmt: skip
    acc, peak, total = _begin(sink_ptr, heads, live, ROWS, DIM_PAD, SINKS)
    before = seq_len - q_len
    lowest = before + number * TOKENS
    last = tl.minimum(lowest + TOKENS, seq_len)
    floor, full, draft = 0, 0, 0
    if TREE:
        draft = _draft(position_ptr, mask_ptr, stride_mask, q_begin, before, token)
        lowest = before  # the least place of a branch
    if WINDOW > 0:
        floor = tl.maximum(lowest - WINDOW + 1, 0)
    elif not TREE:
        full = (lowest + 1) // BLOCK * BLOCK
    acc, peak, total = _attend(
        q, acc, peak, total, before + token, live, floor, full, last,
        k_ptr + head * stride_head, v_ptr + head * stride_head, table_ptr + seq * stride_table,
        seq_len, stride_page, stride_token, scale, draft,
        PAGE, DIM, DIM_PAD, BLOCK, WINDOW, SOFTCAP, TREE,
    )  # fmt: skip
    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(
        out_ptr + where[:, None] * stride_out + heads[:, None] * DIM + dims[None, :],
        result.to(out_ptr.dtype.element_ty), mask=q_mask,
    )  # fmt: skip


@triton.jit(do_not_specialize=ANY, do_not_specialize_on_alignment=["q_start_ptr"])
def split(
    q_ptr, k_ptr, v_ptr, out_ptr, part_ptr, lse_ptr, sink_ptr, table_ptr, seq_len_ptr, q_start_ptr,
    splits, stride_q, stride_out, stride_page, stride_token, stride_head, stride_table, scale,
    HEADS: tl.constexpr, SHARED: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    PAGE: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr,
    MIXED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Decode: one program per sequence, key head and part of the visible keys. Without PARTS the
    result is final, otherwise `merge` puts the parts together. (The last program to finish could do
    that, but one after the other the parts take longer to read than the launch of `merge` takes.)

    In a batch that only decodes, token and sequence have the same index and empty sequences give
    zeros; in a mixed one the sequences that do not compute exactly one token are left to `tiled`.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    seq, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    seq_len = tl.load(seq_len_ptr + seq)
    token = seq.to(tl.int64)
    if MIXED:
        token = tl.load(q_start_ptr + seq).to(tl.int64)
        if tl.load(q_start_ptr + seq + 1) - token != 1:
            return
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, DIM_PAD)
    live = rows < SHARED
    heads = head * SHARED + rows
    floor = 0
    if WINDOW > 0:
        floor = tl.maximum(seq_len - WINDOW, 0)
    begin = floor // BLOCK * BLOCK
    each = tl.cdiv(tl.cdiv(seq_len - begin, BLOCK), splits) * BLOCK
    first = begin + part * each
    last = tl.minimum(first + each, seq_len)
    mask = live[:, None] & (dims < DIM)[None, :]
    acc, peak, total = _begin(sink_ptr, heads, live & (part == 0), ROWS, DIM_PAD, SINKS)
    if first < last:
        q = tl.load(
            q_ptr + token * stride_q + heads[:, None] * DIM + dims[None, :], mask=mask, other=0.0
        )
        position = tl.zeros([ROWS], tl.int32) + seq_len - 1
        full = last // BLOCK * BLOCK if WINDOW == 0 else 0
        acc, peak, total = _attend(
            q, acc, peak, total, position, live, tl.maximum(first, floor), full, last,
            k_ptr + head * stride_head, v_ptr + head * stride_head,
            table_ptr + seq * stride_table, seq_len, stride_page, stride_token, scale, 0,
            PAGE, DIM, DIM_PAD, BLOCK, WINDOW, SOFTCAP, False,
        )  # fmt: skip
    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    if not PARTS:
        at = out_ptr + token * stride_out + heads[:, None] * DIM + dims[None, :]
        tl.store(at, result.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        at = (seq * HEADS + heads).to(tl.int64) * splits + part
        tl.store(part_ptr + at[:, None] * DIM + dims[None, :], result, mask=mask)
        lse = tl.where(total == 0.0, float("-inf"), peak + tl.log2(total))
        tl.store(lse_ptr + at, lse, mask=live)


@triton.jit(do_not_specialize=ANY, do_not_specialize_on_alignment=["q_start_ptr"])
def merge(
    part_ptr, lse_ptr, out_ptr, seq_len_ptr, q_start_ptr, splits, stride_out,
    HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, SPLITS_PAD: tl.constexpr,
    MIXED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """o = sum over parts of 2^(lse - max) part / sum of 2^(lse - max)"""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    seq, head = tl.program_id(0), tl.program_id(1)
    token = seq.to(tl.int64)
    if MIXED:
        token = tl.load(q_start_ptr + seq).to(tl.int64)
        if tl.load(q_start_ptr + seq + 1) - token != 1:
            return
    parts = tl.arange(0, SPLITS_PAD)
    dims = tl.arange(0, DIM_PAD)
    slot = (seq * HEADS + head).to(tl.int64) * splits + parts
    lse = tl.load(lse_ptr + slot, mask=parts < splits, other=float("-inf"))
    empty = tl.load(seq_len_ptr + seq) == 0
    weight = tl.where(empty, 0.0, tl.exp2(lse - tl.max(lse, 0)))
    mask = (parts < splits)[:, None] & (dims < DIM)[None, :]
    value = tl.load(part_ptr + slot[:, None] * DIM + dims[None, :], mask=mask, other=0.0)
    result = tl.sum(value * weight[:, None], 0) / tl.where(empty, 1.0, tl.sum(weight, 0))
    tl.store(
        out_ptr + token * stride_out + head * DIM + dims,
        result.to(out_ptr.dtype.element_ty), mask=dims < DIM,
    )  # fmt: skip
