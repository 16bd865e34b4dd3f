"""Paged batches for attention tests: shuffled pages, NaN wherever a kernel must not look, and a
float64 oracle."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from inferplane.hw.kv import from_stored, to_stored
from inferplane_xeon import kernels


@dataclass(frozen=True, kw_only=True)
class Shape:
    heads: int
    kv_heads: int
    dim: int
    page_size: int = 16
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    head_major: bool = True
    dtype: torch.dtype = torch.bfloat16
    int8: bool = False
    """pages are int8"""

    @property
    def scale(self) -> float:
        return self.dim**-0.5


@dataclass
class Sequences:
    """Whole sequences: queries, keys and values of every position, and their paged cache."""

    shape: Shape
    q: list[Tensor]  # [n, Hq, D] each
    k: list[Tensor]  # [n, Hkv, D], what the pages hold of them
    v: list[Tensor]
    cache: tuple[Tensor, Tensor]  # [pages, page_size, Hkv, row]
    table: Tensor  # i32[B, P]
    sinks: Tensor | None


def make(shape: Shape, lengths: list[int], seed: int) -> Sequences:
    draw = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw).to(shape.dtype)

    size = shape.page_size
    need = [-(-n // size) for n in lengths]
    order = (torch.randperm(sum(need) + 2, generator=draw) + 1).tolist()
    pages = len(order) + 1
    stored = torch.int8 if shape.int8 else shape.dtype
    order_of_two = (shape.kv_heads, size) if shape.head_major else (size, shape.kv_heads)
    view = to_stored(torch.full((2, pages, *order_of_two, shape.dim), math.nan), stored)
    if shape.head_major:
        view = view.permute(0, 1, 3, 2, 4)
    table = torch.zeros(len(lengths), max(need) + 2, dtype=torch.int32)
    q, k, v = [], [], []
    for b, n in enumerate(lengths):
        q.append(randn(n, shape.heads, shape.dim))
        rows = [to_stored(randn(n, shape.kv_heads, shape.dim), stored) for _ in range(2)]
        k.append(from_stored(rows[0]))
        v.append(from_stored(rows[1]))
        mine = torch.tensor([order.pop() for _ in range(need[b])])
        table[b, : need[b]] = mine
        at = torch.arange(n)
        view[0, mine[at // size], at % size] = rows[0]
        view[1, mine[at // size], at % size] = rows[1]
    sinks = torch.randn(shape.heads, generator=draw) if shape.sinks else None
    return Sequences(shape, q, k, v, (view[0], view[1]), table, sinks)


def attend(
    seqs: Sequences, parts: list[tuple[int, int, int]], *, padding: int = 0, spread: int = 0
) -> list[Tensor]:
    """Outputs of queries [first, last) of sequence b for each (b, first, last), as one batch with
    `padding` poisoned tokens and empty sequences behind it. The cache is seen as it was when
    position last - 1 was the newest. Tokens of q are `spread` elements further apart."""
    shape = seqs.shape
    rows = torch.cat([seqs.q[b][first:last] for b, first, last in parts])
    tokens = rows.shape[0] + padding
    width = shape.heads * shape.dim
    memory = torch.full((tokens, width + spread), math.nan, dtype=shape.dtype)
    memory[: rows.shape[0], :width] = rows.flatten(1)
    q = memory[:, :width].unflatten(1, (shape.heads, shape.dim))
    starts, lens = [0], []
    for _, first, last in parts:
        starts.append(starts[-1] + last - first)
        lens.append(last)
    table = seqs.table[[b for b, _, _ in parts] + [0] * padding]
    out = torch.full((tokens, shape.heads, shape.dim), math.nan, dtype=shape.dtype)
    kernels.attention(
        q,
        seqs.cache,
        table,
        torch.tensor(lens + [0] * padding, dtype=torch.int32),
        torch.tensor(starts + [starts[-1]] * padding, dtype=torch.int32),
        out,
        scale=shape.scale,
        window=shape.window,
        softcap=shape.softcap,
        sinks=seqs.sinks,
    )
    assert bool((out[starts[-1] :] == 0).all()), "padding rows are zero"
    return [out[a:z] for a, z in pairwise(starts)]


def oracle(seqs: Sequences, b: int, first: int, last: int) -> Tensor:
    """The same for one part, in float64."""
    shape = seqs.shape
    group = shape.heads // shape.kv_heads
    q = seqs.q[b][first:last].double()
    k, v = (x[b][:last].double().repeat_interleave(group, 1) for x in (seqs.k, seqs.v))
    score = torch.einsum("qhd,khd->hqk", q, k) * shape.scale
    if shape.softcap:
        score = shape.softcap * (score / shape.softcap).tanh()
    query, key = torch.arange(first, last)[:, None], torch.arange(last)[None]
    seen = key <= query
    if shape.window:
        seen &= key > query - shape.window
    score = score.masked_fill(~seen, -math.inf)
    if seqs.sinks is not None:
        sink = seqs.sinks.double()[:, None, None].expand(-1, last - first, 1)
        score = torch.cat([score, sink], -1)
    weight = score.softmax(-1)[..., :last]
    return torch.einsum("hqk,khd->qhd", weight, v)
