"""Sampling and embedding on each instruction set: conformance, and the reference's tokens over many
random rows with ties, masked tokens and every mix of filters."""

import zlib
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from inferplane.hw import DeviceInfo, Support
from inferplane.hw.op import OpImpl
from inferplane.hw.ops import TABLE
from inferplane.hw.ops.sampling import SamplingSpec
from inferplane.testing.op_run import OneOp
from inferplane.testing.ops import check_op, conformance_cases
from inferplane_xeon import plugin
from inferplane_xeon.ops import implementations

DEVICE: Any = plugin.create_device(DeviceInfo(backend="xeon", torch_device="cpu", name="test"), {})
NATIVE: dict[str, OpImpl] = dict(implementations())
KINDS = ["plain", "ties", "flat", "masked", "few", "same", "negative", "coarse", "late"]


def pair(op: str, vocab: int) -> tuple[Any, Any]:
    """The kernel and the reference."""
    spec, context = SamplingSpec(vocab=vocab), OneOp(DEVICE)
    return NATIVE[op].build(spec, context).run, TABLE[op].reference.build(spec, context).run


def logits(kind: str, rows: int, vocab: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{kind}{rows}{vocab}".encode()))
    x = torch.randn(rows, vocab, generator=generator) * 4
    chance = torch.rand(rows, vocab, generator=generator)
    made = {
        "plain": x,
        "ties": (x * 2).round() / 2,
        "flat": x * 0.01,
        "masked": x.masked_fill(chance < 0.9, -torch.inf),
        "few": x.masked_fill(chance < 1 - 3 / vocab, -torch.inf),  # some rows have no token left
        "same": x * 0 + 1.5,
        "negative": -x.abs() - 90,
        "coarse": (chance * 3).floor() + 2.0**23,  # so that scores are equal, too
        "late": 2.0**23 + (torch.arange(vocab) == vocab - 1).expand(rows, vocab).float(),
    }
    return made[kind]


def settings(rows: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def among(*values: float, dtype: Any = torch.float32) -> Tensor:
        at = torch.randint(len(values), (rows,), generator=generator)
        return torch.tensor(values, dtype=dtype)[at]

    seeds = torch.randint(-(2**31), 2**31, (rows, 2), generator=generator)
    return {
        "temperature": among(0.0, 0.3, 1.0, 1.0, 2.0),
        "top_k": among(0, 0, 1, 3, 50, 700, 10**6, dtype=torch.int32),
        "top_p": among(1.0, 0.953, 0.517, 0.1, 1e-6, 0.0),
        "min_p": among(0.0, 0.0, 0.05, 0.3, 1.0),
        "seed": seeds.int(),
        "sample_index": among(0, 1, 7, dtype=torch.int32),
        "position": torch.randint(0, 5000, (rows,), generator=generator, dtype=torch.int32),
    }


@pytest.mark.parametrize(
    "op", ["embedding", "sampling.filter", "sampling.draw", "sampling.logprobs"]
)
def test_conformance(isa: str, op: str) -> None:
    checked = 0
    for spec in conformance_cases(op):
        for seed in range(3):
            checked += isinstance(check_op(DEVICE, op, NATIVE[op], spec, seed), Support)
    assert checked >= 12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("vocab", "rows"), [(1, 9), (99, 300), (1003, 300), (4099, 60)])
def test_tokens_of_the_reference(isa: str, vocab: int, rows: int, kind: str) -> None:
    draw, reference = pair("sampling.draw", vocab)
    x = logits(kind, rows, vocab)
    for seed in range(2):
        given = settings(rows, seed)
        for flags in ({}, {"unfiltered": True}, {"greedy": True}):
            assert torch.equal(
                draw(x, *given.values(), **flags), reference(x, *given.values(), **flags)
            ), flags


@pytest.mark.parametrize("kind", ["plain", "ties", "masked", "flat"])
@pytest.mark.parametrize(("vocab", "rows"), [(49152, 8), (151936, 3)])
def test_large_vocabularies(isa: str, vocab: int, rows: int, kind: str) -> None:
    draw, reference = pair("sampling.draw", vocab)
    x, given = logits(kind, rows, vocab), settings(rows, 5)
    assert torch.equal(draw(x, *given.values()), reference(x, *given.values()))
    for top_k, top_p, min_p in ((50, 0.953, 0.05), (0, 0.9, 0.0), (0, 1.0, 0.1), (0, 1.0, 0.0)):
        given["temperature"].fill_(1.0)
        given["top_k"].fill_(top_k)
        given["top_p"].fill_(top_p)
        given["min_p"].fill_(min_p)
        assert torch.equal(draw(x, *given.values()), reference(x, *given.values())), (
            top_k,
            top_p,
            min_p,
        )


def test_all_of_a_small_vocabulary_is_drawn(isa: str) -> None:
    draw, _ = pair("sampling.draw", 3)
    given = {
        name: values[:1].expand(4000, *values.shape[1:]) for name, values in settings(1, 0).items()
    }
    given["temperature"] = torch.ones(4000)
    given["position"] = torch.arange(4000, dtype=torch.int32)
    x = torch.tensor([0.5, 0.25, 0.25]).log().expand(4000, 3)
    counts = draw(x, *given.values(), unfiltered=True).bincount()
    assert counts.tolist() == pytest.approx([2000, 1000, 1000], rel=0.1)


def test_number_of_threads_changes_nothing(isa: str, threads: ModuleType) -> None:
    draw, _ = pair("sampling.draw", 20011)
    score, _ = pair("sampling.logprobs", 20011)
    x, given = logits("ties", 23, 20011), settings(23, 3)
    ids = torch.arange(23, dtype=torch.int32)
    results = []
    for count in (1, 2, 3):
        threads.set_threads(count)
        results.append([draw(x, *given.values()), *score(x, ids, 4)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("vocab", "top"), [(1, 1), (99, 99), (1003, 0), (4099, 20), (49152, 5)])
def test_logprobs(isa: str, vocab: int, top: int, kind: str) -> None:
    score, reference = pair("sampling.logprobs", vocab)
    x = logits(kind, 9, vocab)
    x[:, vocab // 2] = 0.0  # at least one token
    ids = torch.randint(vocab, (9,), generator=torch.Generator().manual_seed(1)).int()
    own, rank, top_ids, top_logprobs = score(x, ids, top)
    exact = reference(x.double(), ids, top)
    assert torch.equal(rank, exact[1])
    assert torch.equal(top_ids, reference(x, ids, top)[2])
    for got, want in ((own, exact[0]), (top_logprobs, exact[3])):
        assert torch.allclose(got.double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("vocab", [1, 31, 99, 1003])
def test_filter_has_the_bits_of_the_reference(isa: str, vocab: int) -> None:
    restrict, reference = pair("sampling.filter", vocab)
    for seed in range(30):
        inputs = TABLE["sampling.filter"].inputs(SamplingSpec(vocab=vocab), seed)
        wanted = reference(**inputs)
        assert torch.equal(restrict(**inputs), wanted), sorted(inputs)  # overwrites its logits


def test_logits_that_are_part_of_a_wider_tensor(isa: str) -> None:
    draw, _ = pair("sampling.draw", 99)
    x, given = logits("plain", 5, 99), settings(5, 1)
    wide = torch.cat([x, x + 100], dim=1)[:, :99]
    assert torch.equal(draw(wide, *given.values()), draw(x, *given.values()))


def test_not_a_number_gives_some_token(isa: str) -> None:
    draw, _ = pair("sampling.draw", 1003)
    x = logits("plain", 40, 1003)
    x[:20, ::7] = torch.nan
    x[20:] = torch.nan
    tokens = draw(x, *settings(40, 2).values())
    assert bool(((tokens >= 0) & (tokens < 1003)).all())
