"""What must hold of paged attention besides agreement with the oracle: a sequence's result is a
matter of its own pages alone, wherever they lie and however its queries are split into steps."""

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from inferplane.hw import ForwardBatch, Tolerance
from inferplane.testing.compare import close, identical, require
from inferplane.testing.op_run import Built, Inputs

if TYPE_CHECKING:
    from torch import Tensor

Part = tuple[int, int, int]
"""(sequence, its first query of this step, how many)"""


def check_attention(built: Built, spec: Any, inputs: Inputs, whole: "Tensor", seed: int) -> None:
    """`whole` is what `built` gives for `inputs`."""
    batch: ForwardBatch = inputs["batch"]
    require(not bool(whole[batch.num_tokens :].any()), "rows of padding tokens are not zero")
    moved = built(permute_pages(inputs, seed))
    identical("result after moving the pages", moved.results[0], whole)
    exact = spec.determinism == "batch"
    for parts in splits(batch, seed):
        some, tokens = part_of(inputs, parts)
        got = built(some).results[0][: len(tokens)]
        if exact:
            identical(f"result of {parts} alone", got, whole[tokens])
        else:
            close(f"result of {parts} alone", got, whole[tokens], twice(spec))


def twice(spec: Any) -> Tolerance:
    """Between two results that may each be off by the tolerance."""
    from inferplane.hw.ops import TABLE

    one = TABLE["attention.paged"].tolerance(spec)
    return Tolerance(2 * one.relative, 2 * one.absolute, 2 * one.norm)


def permute_pages(inputs: Inputs, seed: int) -> Inputs:
    """The same sequences in other pages; page 0 stays."""
    import torch

    count = inputs["kv"].shape[1]
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat(
        [torch.zeros(1, dtype=torch.long), torch.randperm(count - 1, generator=generator) + 1]
    )
    kv = torch.empty_like(inputs["kv"])
    kv[:, order] = inputs["kv"]
    batch = inputs["batch"]
    table = tuple(order.to(torch.int32)[t.long()] for t in batch.page_table)
    return inputs | {"kv": kv, "batch": replace(batch, page_table=table)}


def splits(batch: ForwardBatch, seed: int) -> list[list[Part]]:
    """Steps that each compute some of the batch's queries: single sequences, the first and the
    last part of one beside others, single queries, everything in reverse. Drafts stay whole."""
    choose = random.Random(seed)
    starts = batch.host_q_start
    q_lens = [starts[i + 1] - starts[i] for i in range(batch.num_seqs)]
    drafts = range(batch.num_decode, batch.num_decode + batch.num_verify)
    longest = max(range(batch.num_seqs), key=lambda i: (i not in drafts, q_lens[i]))
    made: list[list[Part]] = [[(i, 0, n)] for i, n in enumerate(q_lens)][:2]
    if q_lens[longest] > 1 and longest not in drafts:
        cut = choose.randint(1, q_lens[longest] - 1)
        others = [(i, 0, n) for i, n in enumerate(q_lens) if i != longest]
        made.append([*others[:1], (longest, 0, cut)])
        made.append([(longest, cut, q_lens[longest] - cut), *others])
        made.append([(longest, q_lens[longest] - 1, 1)])
    last = [(i, n - 1, 1) if i not in drafts else (i, 0, n) for i, n in enumerate(q_lens)]
    made.append(last[::-1])
    return made


def part_of(inputs: Inputs, parts: list[Part]) -> "tuple[Inputs, Tensor]":
    """Inputs of a step that computes only these parts, and which tokens of the whole they are."""
    import torch

    batch: ForwardBatch = inputs["batch"]
    drafts = range(batch.num_decode, batch.num_decode + batch.num_verify)
    # the order of every batch: decodes, drafts, the rest
    parts = sorted(parts, key=lambda part: (part[2] > 1, part[0] not in drafts))
    size = inputs["kv"].shape[2]
    tokens: list[int] = []
    starts, seq = [0], []
    for index, first, count in parts:
        begin, end = batch.host_q_start[index], batch.host_q_start[index + 1]
        tokens += range(begin + first, begin + first + count)
        starts.append(len(tokens))
        seq.append(batch.host_seq_len[index] - (end - begin) + first + count)
    picked = torch.tensor([index for index, _, _ in parts])
    where = torch.tensor(tokens)
    columns = -(-max(seq) // size)
    T = len(tokens)
    padding = torch.zeros(T, dtype=torch.int32)
    made = replace(
        batch,
        num_tokens=T,
        num_seqs=len(parts),
        num_decode=sum(count == 1 for _, _, count in parts),
        num_verify=sum(index in drafts for index, _, _ in parts),
        token_ids=padding,
        position=batch.position[where],
        slot=(padding,) * len(batch.slot),
        row=torch.zeros(len(parts), dtype=torch.int32),
        q_start=torch.tensor(starts, dtype=torch.int32),
        seq_len=torch.tensor(seq, dtype=torch.int32),
        page_table=tuple(t[picked, :columns] for t in batch.page_table),
        host_q_start=starts,
        host_seq_len=seq,
        max_q=max(count for _, _, count in parts),
        max_kv=max(seq),
        tree_mask=None if batch.tree_mask is None else batch.tree_mask[where],
    )
    return inputs | {"q": inputs["q"][where], "batch": made}, where
