"""Paged attention against a float64 oracle, and bitwise against itself in other batches."""

import math
import random
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from inferplane.hw.kv import to_stored
from inferplane_xeon import kernels
from tests.backends.xeon.paged import Sequences, Shape, attend, make, oracle

SHAPES = {
    "smollm2": Shape(heads=9, kv_heads=3, dim=64),
    "mha": Shape(heads=4, kv_heads=4, dim=128, page_size=32),
    "mqa_many_rows": Shape(heads=71, kv_heads=1, dim=64),
    "gemma": Shape(heads=4, kv_heads=1, dim=256, window=100, softcap=20.0),
    "sinks_window": Shape(heads=8, kv_heads=2, dim=64, window=128, sinks=True),
    "odd": Shape(heads=6, kv_heads=2, dim=72, page_size=7, head_major=False),
    "smallest": Shape(heads=1, kv_heads=1, dim=8, page_size=1, softcap=3.0, sinks=True),
    "long_pages": Shape(heads=2, kv_heads=1, dim=40, page_size=300, window=1),
}
MATRIX_PRODUCTS = True
NORM = {torch.bfloat16: 4e-3, torch.float32: 3e-6}
DTYPES = [torch.bfloat16, torch.float32]
INT8_NORM = 1e-4
"""of float32 queries: they and the probabilities have 16 bits where the products are of integers"""
PAGES = pytest.mark.parametrize("int8", [False, True], ids=["pages", "int8_pages"])


def check(seqs: Sequences, parts: list[tuple[int, int, int]], **kwargs: int) -> None:
    for part, got in zip(parts, attend(seqs, parts, **kwargs), strict=True):
        want = oracle(seqs, *part)
        bound = NORM[seqs.shape.dtype]
        if seqs.shape.int8:
            bound = max(bound, INT8_NORM)
        assert torch.isfinite(got).all()
        assert (got.double() - want).norm() <= bound * want.norm()
        assert (got.double() - want).abs().max() <= 4 * bound * want.abs().max()


@PAGES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_matches_the_oracle(isa: str, name: str, dtype: torch.dtype, int8: bool) -> None:
    shape = replace(SHAPES[name], dtype=dtype, int8=int8)
    seqs = make(shape, [1, 15, 64, 257, 513, 700], seed=1)
    decode = [(b, q.shape[0] - 1, q.shape[0]) for b, q in enumerate(seqs.q)]
    check(seqs, decode, padding=3)
    check(seqs, [(3, 256, 257), (2, 0, 64), (5, 200, 700), (1, 3, 9), (4, 512, 513)], spread=8)


@PAGES
@pytest.mark.parametrize("seed", range(12))
def test_matches_the_oracle_on_random_batches(isa: str, seed: int, int8: bool) -> None:
    choose = random.Random(seed)
    kv_heads = choose.choice([1, 2, 3])
    shape = Shape(
        heads=kv_heads * choose.choice([1, 2, 3, 5, 8]),
        kv_heads=kv_heads,
        dim=8 * choose.randint(1, 32),
        page_size=choose.choice([1, 5, 16, 64]),
        window=choose.choice([0, 0, 1, 33, 256, 300]),
        softcap=choose.choice([0.0, 0.0, 15.0]),
        sinks=choose.random() < 0.3,
        head_major=choose.random() < 0.5,
        dtype=choose.choice(DTYPES),
        int8=int8,
    )
    lengths = [choose.randint(1, 600) for _ in range(choose.randint(1, 6))]
    seqs = make(shape, lengths, seed)
    parts = []
    for b, n in enumerate(lengths):
        last = choose.randint(1, n)
        first = last - 1 if choose.random() < 0.5 else choose.randint(0, last - 1)
        parts.append((b, first, last))
    check(seqs, parts, padding=choose.randint(0, 2), spread=8 * choose.randint(0, 2))


@PAGES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["smollm2", "gemma", "sinks_window", "odd", "mqa_many_rows"])
def test_bits_do_not_depend_on_the_batch(
    isa: str, threads: ModuleType, name: str, dtype: torch.dtype, int8: bool
) -> None:
    seqs = make(replace(SHAPES[name], dtype=dtype, int8=int8), [330, 70, 600], seed=2)
    threads.set_threads(1)
    whole = [attend(seqs, [(b, 0, q.shape[0])])[0] for b, q in enumerate(seqs.q)]
    choose = random.Random(3)
    for team in (1, 2, 3):
        threads.set_threads(team)
        done = [0, 0, 0]
        while any(d < q.shape[0] for d, q in zip(done, seqs.q, strict=True)):
            parts = []
            for b, q in enumerate(seqs.q):
                left = q.shape[0] - done[b]
                step = min(left, choose.choice([0, 1, 1, 7, 64, 129, 300]))
                if step:
                    parts.append((b, done[b], done[b] + step))
                    done[b] += step
            choose.shuffle(parts)
            if not parts:
                continue
            for (b, first, last), got in zip(parts, attend(seqs, parts, padding=1), strict=True):
                assert torch.equal(got, whole[b][first:last]), (team, b, first, last)


@PAGES
def test_a_lone_decode_is_split_over_threads_without_changing_bits(
    isa: str, threads: ModuleType, int8: bool
) -> None:
    seqs = make(replace(SHAPES["smollm2"], int8=int8), [2000], seed=4)
    threads.set_threads(1)
    alone = attend(seqs, [(0, 1999, 2000)])[0]
    threads.set_threads(4)
    assert torch.equal(attend(seqs, [(0, 1999, 2000)])[0], alone)


@PAGES
def test_pages_behind_the_window_may_be_gone(isa: str, int8: bool) -> None:
    shape = Shape(heads=4, kv_heads=2, dim=64, window=40, dtype=torch.float32, int8=int8)
    seqs = make(shape, [500], seed=5)
    want = attend(seqs, [(0, 460, 500)])[0]
    gone = (460 - 40) // shape.page_size
    seqs.table[0, :gone] = 0  # the null page, which is NaN here
    assert torch.equal(attend(seqs, [(0, 460, 500)])[0], want)


@PAGES
def test_nan_in_a_visible_key_shows(isa: str, int8: bool) -> None:
    seqs = make(Shape(heads=2, kv_heads=1, dim=16, dtype=torch.float32, int8=int8), [40], seed=6)
    page, slot = int(seqs.table[0, 1]), 3  # position 19
    seqs.cache[0][page, slot] = to_stored(torch.full((16,), math.nan), seqs.cache[0].dtype)
    got = attend(seqs, [(0, 0, 40)])[0]
    assert torch.isfinite(got[:19]).all()
    assert torch.isnan(got[19:]).all()


@PAGES
@pytest.mark.parametrize("what", ["query", "value"])
def test_other_nans_show(isa: str, what: str, int8: bool) -> None:
    seqs = make(Shape(heads=2, kv_heads=1, dim=16, int8=int8), [40], seed=6)
    if what == "query":
        seqs.q[0][19, :, 5] = math.nan
    else:
        page, slot = int(seqs.table[0, 1]), 3  # position 19
        seqs.cache[1][page, slot] = to_stored(torch.full((16,), math.nan), seqs.cache[1].dtype)
    got = torch.cat([attend(seqs, [(0, i, i + 1)])[0] for i in range(40)])
    gone = [19] if what == "query" else list(range(19, 40))
    assert torch.isnan(got[gone]).all()
    assert torch.isfinite(got[[i for i in range(40) if i not in gone]]).all()


def test_zeros_in_int8_pages(isa: str) -> None:
    seqs = make(Shape(heads=3, kv_heads=1, dim=24, int8=True), [30], seed=6)
    seqs.q[0][:] = 0
    check(seqs, [(0, 0, 30)])
    seqs.cache[1].zero_()
    assert not attend(seqs, [(0, 0, 30)])[0].any()


def test_large_scores_do_not_overflow(isa: str) -> None:
    seqs = make(Shape(heads=2, kv_heads=1, dim=64, dtype=torch.float32), [300], seed=7)
    seqs.q[0] *= 1000.0
    got, want = attend(seqs, [(0, 0, 300)])[0], oracle(seqs, 0, 0, 300)
    assert (got.double() - want).norm() <= 1e-4 * want.norm()  # scores of 1e4 carry 1e-3


def test_an_outweighing_sink_leaves_nothing(isa: str) -> None:
    seqs = make(Shape(heads=2, kv_heads=1, dim=16, sinks=True), [20], seed=8)
    assert seqs.sinks is not None
    seqs.sinks[:] = torch.tensor([300.0, -300.0])
    got = attend(seqs, [(0, 0, 20)])[0]
    assert got[:, 0].abs().max() < 1e-20
    seqs.sinks = None
    assert torch.equal(got[:, 1], attend(seqs, [(0, 0, 20)])[0][:, 1])


def test_nothing_to_do(isa: str) -> None:
    seqs = make(SHAPES["smollm2"], [5], seed=9)
    out = torch.empty(0, 9, 64, dtype=torch.bfloat16)
    none = torch.empty(0, dtype=torch.int32)
    start = torch.zeros(1, dtype=torch.int32)
    kernels.attention(out, seqs.cache, seqs.table[:0], none, start, out, scale=1.0)
