"""Attention to a draft tree: each token has the result of its own branch as a plain sequence."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from inferplane.hw import KVSpec
from inferplane.hw.ops import TABLE
from inferplane.hw.ops.attention import AttentionSpec
from inferplane.hw.ops.attention_inputs import paged_batch, plant
from inferplane.testing.op_run import Built, cpu

PAGE = 8
LENGTHS = [(1, 30), (13, 13), (9, 40), (40, 90)]
"""(queries, tokens): a decode, two drafts, a prefill with more queries than the masks have bits"""
SPEC = AttentionSpec(
    layer=0,
    group=0,
    num_heads=4,
    kv=KVSpec(num_kv_heads=2, head_dim=16, dtype="float32", page_size=PAGE),
    dtype="float32",
    scale=0.25,
    tree=True,
)


def run(spec: AttentionSpec, q: Tensor, batch: Any, kv: Tensor) -> Tensor:
    built = Built("attention.paged", TABLE["attention.paged"].reference, spec, cpu())
    return built({"q": q, "batch": batch, "sinks": None, "kv": kv}).results[0]


def drawn(seed: int) -> tuple[Any, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch, kv = paged_batch(LENGTHS, SPEC, generator, padding=1)
    plant(batch, 2, random.Random(seed))
    q = torch.randn(len(batch.token_ids), 4, 16, generator=generator)
    return batch, kv, q


def branch_alone(spec: AttentionSpec, batch: Any, kv: Tensor, q: Tensor, token: int) -> Tensor:
    """A draft token as the last of a sequence of what was before it and its branch."""
    index = next(i for i, end in enumerate(batch.host_q_start[1:]) if token < end)
    begin, end = batch.host_q_start[index : index + 2]
    before = batch.host_seq_len[index] - (end - begin)
    low, high = batch.tree_mask[token].tolist()
    seen = [j for j in range(16) if (low | high << 8) >> j & 1]
    held = kv[:, batch.page_table[0][index]].flatten(1, 2)  # [2, tokens, Hkv, D]
    chain = held[:, [*range(before), *(before + j for j in seen)]]
    length = chain.shape[1]
    pages = torch.zeros(2, -(-length // PAGE) * PAGE, *chain.shape[2:])
    pages[:, :length] = chain
    pages = torch.cat([torch.zeros(2, PAGE, *chain.shape[2:]), pages], 1)
    alone, _ = paged_batch([(1, length)], spec, torch.Generator().manual_seed(0))
    count = pages.shape[1] // PAGE
    alone.page_table = (torch.arange(1, count, dtype=torch.int32)[None],)
    plain = replace(spec, tree=False)
    return run(plain, q[token : token + 1], alone, pages.view(2, count, PAGE, *chain.shape[2:]))[0]


@pytest.mark.parametrize("determinism", ["run", "batch"])
@pytest.mark.parametrize("window", [0, 4])
def test_a_branch_is_a_plain_sequence(window: int, determinism: Any) -> None:
    spec = replace(SPEC, window=window, determinism=determinism)
    for seed in range(3):
        batch, kv, q = drawn(seed)
        got = run(spec, q, batch, kv)
        for token in range(1, 23):
            want = branch_alone(spec, batch, kv, q, token)
            assert torch.allclose(got[token], want, atol=1e-6), token


@pytest.mark.parametrize("window", [0, 4])
def test_other_tokens_see_all_before_them(window: int) -> None:
    batch, kv, q = drawn(0)
    spec = replace(SPEC, window=window)
    got, plain = run(spec, q, batch, kv), run(replace(spec, tree=False), q, batch, kv)
    assert torch.equal(got[0], plain[0])
    assert torch.equal(got[23:], plain[23:])
    assert not torch.equal(got[1:23], plain[1:23])
    assert torch.equal(run(spec, q, replace(batch, tree_mask=None), kv), plain)


def test_positions_of_three_axes_count_as_one() -> None:
    """Multimodal rope may be ahead of the pages or behind them."""
    batch, kv, q = drawn(1)
    spec = replace(SPEC, window=4)
    three = replace(batch, position=(batch.position - 7).repeat(3, 1))
    assert torch.equal(run(spec, q, three, kv), run(spec, q, batch, kv))
