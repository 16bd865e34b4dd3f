"""Random paged batches for attention: shuffled pages, poison wherever a kernel must not look."""

from typing import TYPE_CHECKING, Any

from inferplane.hw.batch import ForwardBatch
from inferplane.hw.kv import to_stored

if TYPE_CHECKING:
    import random

    from torch import Tensor


def random_lengths(choose: "random.Random", longest: int = 300) -> list[tuple[int, int]]:
    """(q_len, seq_len) of decodes, then of prefills (from position 0 or continued)"""
    decodes = [(1, choose.randint(1, longest)) for _ in range(choose.randint(0, 4))]
    prefills = []
    for _ in range(choose.randint(0 if decodes else 1, 3)):
        total = choose.randint(2, longest)
        prefills.append((choose.randint(2, total), total))
    return decodes + prefills


def random_drafts(choose: "random.Random") -> list[tuple[int, int]]:
    """(q_len, seq_len) of sequences that verify a draft, the longest with two bytes of mask"""
    sizes = [choose.randint(2, 16) for _ in range(choose.randint(1, 3))]
    return [(size, size + choose.randint(0, 200)) for size in sizes]


def plant(batch: ForwardBatch, drafts: int, choose: "random.Random") -> None:
    """Random trees for the sequences after the decodes: masks, and positions of all tokens."""
    import torch

    T = batch.token_ids.shape[0]
    mask = torch.zeros(T, 2, dtype=torch.uint8)
    position = torch.zeros(T, dtype=torch.int32)
    batch.num_verify = drafts
    for index in range(batch.num_seqs):
        begin, end = batch.host_q_start[index : index + 2]
        before = batch.host_seq_len[index] - (end - begin)
        if not 0 <= index - batch.num_decode < drafts:
            position[begin:end] = torch.arange(before, before + end - begin)
            continue
        branches = [1]
        for token in range(1, end - begin):
            branches.append(choose.choice(branches) | 1 << token)
        for token, seen in enumerate(branches, begin):
            mask[token] = torch.tensor([seen & 255, seen >> 8], dtype=torch.uint8)
            position[token] = before + seen.bit_count() - 1
    batch.tree_mask, batch.position = mask, position


def attention_inputs(spec: Any, seed: int) -> dict[str, Any]:
    """q, batch and sinks for `run`, and `kv` [2, pages, page_size, Hkv, row] to import first."""
    import random

    import torch

    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    lengths = random_lengths(choose)
    drafts = random_drafts(choose) if spec.tree else []
    at = sum(q == 1 for q, _ in lengths)
    lengths[at:at] = drafts
    batch, kv = paged_batch(lengths, spec, generator, padding=choose.randint(0, 2))
    if spec.tree:
        plant(batch, len(drafts), choose)
    T = batch.token_ids.shape[0]
    dtype = getattr(torch, spec.dtype)
    q = torch.randn(T, spec.num_heads, spec.kv.head_dim, generator=generator).to(dtype)
    sinks = torch.randn(spec.num_heads, generator=generator) if spec.sinks else None
    return {"q": q, "batch": batch, "sinks": sinks, "kv": kv}


def paged_batch(
    lengths: list[tuple[int, int]], spec: Any, generator: Any, padding: int = 0
) -> "tuple[ForwardBatch, Tensor]":
    """A batch of the given (q_len, seq_len), `padding` empty sequences and tokens at the end, and
    a cache whose unused pages and slots are NaN."""
    import torch

    size = spec.kv.page_size
    need = [-(-total // size) for _, total in lengths]
    order = (torch.randperm(sum(need) + 2, generator=generator) + 1).tolist()
    shape = (2, len(order) + 1, size, spec.kv.num_kv_heads, spec.kv.head_dim)
    kv = torch.full(shape, float("nan"))
    kv[:, 0] = 0.0
    table = torch.zeros(len(lengths) + padding, max(need) + 1, dtype=torch.int32)
    for i, (_, total) in enumerate(lengths):
        pages = [order.pop() for _ in range(need[i])]
        table[i, : need[i]] = torch.tensor(pages, dtype=torch.int32)
        flat = torch.randn(2, need[i] * size, *shape[3:], generator=generator)
        flat[:, total:] = float("nan")
        kv[:, pages] = flat.view(2, need[i], *shape[2:])
    q_lens = [q for q, _ in lengths] + [0] * padding
    starts = [0]
    for q in q_lens:
        starts.append(starts[-1] + q)
    seq = [total for _, total in lengths] + [0] * padding
    T = starts[-1] + padding
    table = table.expand(spec.group + 1, -1, -1)
    batch = ForwardBatch(
        num_tokens=starts[-1],
        num_seqs=len(lengths),
        num_decode=sum(q == 1 for q, _ in lengths),
        num_verify=0,
        token_ids=torch.zeros(T, dtype=torch.int32),
        position=torch.zeros(T, dtype=torch.int32),
        slot=(torch.zeros(T, dtype=torch.int32),) * (spec.group + 1),
        row=torch.zeros(len(seq), dtype=torch.int32),
        q_start=torch.tensor(starts, dtype=torch.int32),
        seq_len=torch.tensor(seq, dtype=torch.int32),
        page_table=tuple(table.unbind(0)),
        logit_index=torch.zeros(0, dtype=torch.int32),
        host_q_start=starts,
        host_seq_len=seq,
        host_exact=True,
        max_q=max(q_lens),
        max_kv=max(seq),
    )
    return batch, to_stored(kv, getattr(torch, spec.kv.dtype))
