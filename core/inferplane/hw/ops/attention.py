"""Attention over paged keys and values: decode and (chunked) prefill in one batch.

This step's keys and values are already in the pages. Query i of a sequence with q_len queries has
position seq_len - q_len + i and sees the keys at positions <= its own, and > position - window if
there is a window. The batch-invariant reference is FlashAttention's online softmax (Dao et al.,
arXiv 2205.14135) over fixed tiles: 64 query positions by 256 key positions, both counted from
position 0 of the sequence, so that a query meets the same products in the same order always.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferplane.hw.kv import KVSpec, LayerKV, from_stored
from inferplane.hw.op import Bound, BuildContext, Determinism, Op, Reference, Tolerance, rounding
from inferplane.hw.ops.attention_inputs import attention_inputs
from inferplane.hw.ops.attention_tree import Tree, tree_of
from inferplane.hw.ops.kv import needs_strides

if TYPE_CHECKING:
    from torch import Tensor

    from inferplane.hw.batch import ForwardBatch

QUERY_TILE = 64
KEY_BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """`group` picks slot and page table in the batch. `sinks`: one learned logit per head joins
    the softmax denominator (gpt-oss). `softcap` c: scores become c * tanh(scores / c). `tree`:
    batches may bring a tree mask (attention_tree.py); without, it is not looked at."""

    layer: int
    group: int
    num_heads: int
    kv: KVSpec
    dtype: str
    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    tree: bool = False
    determinism: Determinism = "run"


def attention(spec: AttentionSpec, ctx: BuildContext) -> Bound:
    """run(q[T, Hq, D], batch, sinks f32[Hq] | None) -> o[T, Hq, D]; padding rows are zero"""
    handle = ctx.kv(spec.layer)

    def run(q: "Tensor", batch: "ForwardBatch", sinks: "Tensor | None" = None) -> "Tensor":
        if batch.max_q == 1 and spec.determinism != "batch":
            return _decode(spec, handle, q, batch, sinks)
        exact = not batch.padded  # what may be recorded uses no number of the host but the shapes
        out = q.new_zeros(q.shape[0] + 1, *q.shape[1:])  # the last row takes what padding makes
        for index in range(batch.num_seqs if exact else batch.row.shape[0]):
            out = _sequence(spec, handle, q, batch, index, sinks, out, exact)
        return out[:-1]

    return Bound(run=run)


def _decode(
    spec: AttentionSpec,
    handle: LayerKV,
    q: "Tensor",
    batch: "ForwardBatch",
    sinks: "Tensor | None",
) -> "Tensor":
    """Every sequence has at most one query: all at once, padded to the longest page table."""
    import torch

    table = batch.page_table[spec.group]
    keys, values = _pages(handle, table.flatten(), q)
    keys, values = (x.view(len(table), -1, *x.shape[-2:]) for x in (keys, values))  # [B, S, H, D]
    rows = batch.q_start[:-1].clamp(max=q.shape[0] - 1)
    query = q.index_select(0, rows).unsqueeze(1)  # [B, 1, Hq, D]
    position = (batch.seq_len - 1).unsqueeze(1)  # [B, 1]
    result = attend(spec, query, keys, values, position, sinks)[:, 0]
    live = (batch.q_start[1:] > batch.q_start[:-1]) & (batch.seq_len > 0)
    where = torch.where(live, rows, q.shape[0]).long()
    out = q.new_zeros(q.shape[0] + 1, *q.shape[1:])
    return out.index_put((where,), result)[:-1]


def _sequence(
    spec: AttentionSpec,
    handle: LayerKV,
    q: "Tensor",
    batch: "ForwardBatch",
    index: int,
    sinks: "Tensor | None",
    out: "Tensor",
    exact: bool,
) -> "Tensor":
    """`out` with the rows of one sequence. `exact`: sizes come from the host, else the batch."""
    import torch

    pages = batch.page_table[spec.group][index]
    begin, length = batch.q_start[index], batch.q_start[index + 1] - batch.q_start[index]
    count, need = min(batch.max_q, q.shape[0]), pages.shape[0]
    if exact:
        count = batch.host_q_start[index + 1] - batch.host_q_start[index]
        need = -(-batch.host_seq_len[index] // spec.kv.page_size)
        if not count or not need:
            return out
    offset = torch.arange(count, device=q.device, dtype=torch.int32)
    keys, values = _pages(handle, pages[:need], q).flatten(1, 2)
    rows = (begin + offset).clamp(max=q.shape[0] - 1)
    position = batch.seq_len[index] - length + offset
    position = torch.where(offset < length, position, -1)
    query = q.index_select(0, rows)
    tree = None
    if spec.tree and batch.tree_mask is not None:
        tree = tree_of(batch.tree_mask, batch.position, rows, batch.seq_len[index] - length)
    if spec.determinism == "batch":
        result = attend_tiled(spec, query, keys, values, position, sinks, tree)
    else:
        given = (query[None], keys[None], values[None], position[None])
        result = attend(spec, *given, sinks, tree)[0]
    where = torch.where(offset < length, begin + offset, q.shape[0]).long()
    return out.index_put((where,), result)


def _pages(handle: LayerKV, pages: "Tensor", q: "Tensor") -> "Tensor":
    """Values of pages in canonical form; float8 in the type of the queries, which holds it
    exactly, int8 as float32."""
    found = from_stored(handle.layout.export_pages(handle.data, pages))
    return found.to(q.dtype) if found.element_size() == 1 else found


def visible(
    spec: AttentionSpec, query: "Tensor", key: "Tensor", tree: Tree | None = None
) -> "Tensor":
    """bool[..., queries, keys] from the positions of both; position -1 sees nothing"""
    seen = key <= query.unsqueeze(-1)
    if tree is not None:
        seen = seen & tree.sees(key)
    if spec.window:
        near = key > query.unsqueeze(-1) - spec.window
        seen = seen & (near if tree is None else tree.near(key, spec.window, near))
    return seen


def attend(
    spec: AttentionSpec,
    q: "Tensor",
    k: "Tensor",
    v: "Tensor",
    position: "Tensor",
    sinks: "Tensor | None",
    tree: Tree | None = None,
) -> "Tensor":
    """q[B, n, Hq, D], k and v[B, S, Hkv, D], position[B, n] -> [B, n, Hq, D]; tree: with B = 1"""
    import torch

    B, n, heads, dim = q.shape
    shared = heads // spec.kv.num_kv_heads
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    key = torch.arange(k.shape[1], device=q.device, dtype=torch.int32)
    seen = visible(spec, position, key, tree)  # [B, n, S]
    held = seen.any(1)[:, :, None, None]  # keys that no query sees may hold anything, even NaN
    k, v = (x.to(wide).where(held, 0.0).permute(0, 2, 1, 3) for x in (k, v))  # [B, Hkv, S, D]
    grouped = q.to(wide).view(B, n, -1, shared, dim).permute(0, 2, 3, 1, 4)  # [B, Hkv, G, n, D]
    score = grouped.flatten(2, 3) @ k.transpose(-1, -2) * spec.scale
    score = score.view(B, -1, shared, n, k.shape[2])  # [B, Hkv, G, n, S]
    if spec.softcap:
        score = spec.softcap * (score / spec.softcap).tanh()
    score = score.masked_fill(~seen[:, None, None], -torch.inf)
    peak = score.amax(-1, keepdim=True)
    if sinks is not None:
        sink = sinks.to(wide).view(1, -1, shared, 1, 1)
        peak = torch.maximum(peak, sink)
    peak = peak.clamp(min=torch.finfo(wide).min)
    weight = (score - peak).exp()
    total = weight.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + (sink - peak).exp()
    result = weight.flatten(2, 3) @ v / total.flatten(2, 3).clamp(min=1e-30)  # [B, Hkv, G * n, D]
    result = result.view(B, -1, shared, n, dim).permute(0, 3, 1, 2, 4)
    return result.reshape(B, n, heads, dim).to(q.dtype)


def attend_tiled(
    spec: AttentionSpec,
    q: "Tensor",
    k: "Tensor",
    v: "Tensor",
    position: "Tensor",
    sinks: "Tensor | None",
    tree: Tree | None,
) -> "Tensor":
    """The same for one sequence with bits that depend on nothing but the query's own past.

    q[n, Hq, D], k and v[S, Hkv, D], position[n] rising by one (-1 for padding) -> [n, Hq, D]
    """
    import torch
    from torch.nn.functional import pad

    blocks = -(-k.shape[0] // KEY_BLOCK)
    spare = blocks * KEY_BLOCK - k.shape[0]
    k, v = (pad(x, (0, 0, 0, 0, 0, spare)) for x in (k, v))
    first = position[:1].clamp(min=0)
    lead = first.remainder(QUERY_TILE)  # rows of the first tile that an earlier chunk computed
    tiles = (q.shape[0] + 2 * QUERY_TILE - 2) // QUERY_TILE
    row = lead + torch.arange(q.shape[0], device=q.device, dtype=torch.int32)
    padded = q.new_zeros(tiles * QUERY_TILE, *q.shape[1:]).index_copy(0, row.long(), q)
    where = position.new_full((tiles * QUERY_TILE,), -1).index_copy(0, row.long(), position)
    which = torch.zeros_like(where).index_copy(0, row.long(), row - lead)
    parts = (x.split(QUERY_TILE) for x in (padded, where, which))
    done = [
        _tile(spec, query, k, v, at, sinks, tree and tree.of(queries))
        for query, at, queries in zip(*parts, strict=True)
    ]
    return torch.cat(done).index_select(0, row)


def _tile(
    spec: AttentionSpec,
    q: "Tensor",
    k: "Tensor",
    v: "Tensor",
    position: "Tensor",
    sinks: "Tensor | None",
    tree: Tree | None,
) -> "Tensor":
    """One tile of queries over all key blocks in order. A block that a query does not see changes
    neither its sum nor its maximum, so it may be computed or left out."""
    import torch

    n, heads, dim = q.shape
    shared = heads // spec.kv.num_kv_heads
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    grouped = q.to(wide).view(n, -1, shared, dim).permute(1, 2, 0, 3).flatten(1, 2)
    peak = grouped.new_full((*grouped.shape[:2], 1), torch.finfo(wide).min)
    total, acc = torch.zeros_like(peak), torch.zeros_like(grouped)  # [Hkv, G * n, D]
    for block in range(k.shape[0] // KEY_BLOCK):
        span = slice(block * KEY_BLOCK, (block + 1) * KEY_BLOCK)
        key = torch.arange(span.start, span.stop, device=q.device, dtype=torch.int32)
        seen = visible(spec, position, key, tree)  # [n, S]
        held = seen.any(0)[:, None, None]
        kb, vb = (x[span].to(wide).where(held, 0.0).transpose(0, 1) for x in (k, v))
        score = grouped @ kb.transpose(-1, -2).contiguous() * spec.scale  # [Hkv, G * n, S]
        if spec.softcap:
            score = spec.softcap * (score / spec.softcap).tanh()
        score = score.masked_fill(~seen.repeat(shared, 1), -torch.inf)
        higher = torch.maximum(peak, score.amax(-1, keepdim=True))
        weight, shrink = (score - higher).exp(), (peak - higher).exp()
        total = total * shrink + weight.sum(-1, keepdim=True)
        acc = acc * shrink + weight @ vb.contiguous()
        peak = higher
    if sinks is not None:
        sink = sinks.to(wide).view(-1, shared, 1).expand(-1, -1, n).reshape(peak.shape)
        higher = torch.maximum(peak, sink)
        acc, total = acc * (peak - higher).exp(), total * (peak - higher).exp()
        total = total + (sink - higher).exp()
    result = (acc / total.clamp(min=1e-30)).view(-1, shared, n, dim)
    return result.permute(2, 0, 1, 3).reshape(n, heads, dim).to(q.dtype)


def _rejects(spec: AttentionSpec, device: Any) -> Any:
    return needs_strides(spec, device)


def _tolerance(spec: AttentionSpec) -> Tolerance:
    """With int8 pages an implementation may compute with queries and probabilities of 16 bits."""
    coarse = spec.kv.dtype == "int8" and spec.dtype == "float32"
    return rounding("float16" if coarse else spec.dtype, spec.kv.head_dim)


OPS = (
    Op(
        name="attention.paged",
        spec=AttentionSpec,
        reference=Reference(attention, _rejects, wasteful=True),
        tolerance=_tolerance,
        inputs=attention_inputs,
    ),
)
