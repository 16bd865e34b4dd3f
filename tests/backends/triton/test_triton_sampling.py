"""Sampling and embedding kernels: conformance, and the reference's tokens over random rows with
ties, masked tokens and every mix of filters, with lists that suffice and lists that overflow."""

import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backends.triton.interpreter import DEVICE, ON_GPU, TORCH_DEVICE  # isort: skip

from inferplane.hw import Support
from inferplane.hw.noise import words
from inferplane.hw.op import OpImpl
from inferplane.hw.ops import TABLE
from inferplane.hw.ops.embedding import EmbeddingSpec
from inferplane.hw.ops.sampling import SamplingSpec
from inferplane.testing.op_run import OneOp, to_device
from inferplane.testing.ops import check_op, conformance_cases
from inferplane_triton.sampling import Draw, Embedding, Filter, Logprobs, Tiles

OPS: dict[str, OpImpl] = {
    "embedding": Embedding(),
    "sampling.filter": Filter(),
    "sampling.draw": Draw(),
    "sampling.logprobs": Logprobs(),
}
SMALL = Tiles(segment=128, group=16, cap=64, block=128)
"""several segments, blocks and overflowing lists in a small vocabulary"""
# the interpreter's warnings are of infinities that the kernels then leave out
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
KINDS = ["plain", "ties", "flat", "masked", "few", "same", "negative", "coarse", "late"]
TOP_K = torch.tensor([0, 0, 1, 3, 50, 10**6], dtype=torch.int32)


def built(op: str, impl: OpImpl, vocab: int) -> tuple[Any, Any]:
    """The kernel, called with tensors of the CPU, and the reference."""
    spec = SamplingSpec(vocab=vocab)
    run = impl.build(spec, OneOp(DEVICE)).run

    def call(*arguments: Any, **named: Any) -> Any:
        given = [to_device(x, TORCH_DEVICE) for x in arguments]
        done = run(*given, **{k: to_device(x, TORCH_DEVICE) for k, x in named.items()})
        return tuple(x.cpu() for x in done) if isinstance(done, tuple) else done.cpu()

    return call, TABLE[op].reference.build(spec, OneOp(DEVICE)).run


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

    def among(*values: float) -> Tensor:
        at = torch.randint(len(values), (rows,), generator=generator)
        return torch.tensor(values)[at]

    return {
        "temperature": among(0.0, 0.3, 1.0, 1.0, 2.0),
        "top_k": TOP_K[torch.randint(len(TOP_K), (rows,), generator=generator)],
        "top_p": among(1.0, 0.953, 0.517, 0.1, 1e-6, 0.0),
        "min_p": among(0.0, 0.0, 0.05, 0.3, 1.0),
        "seed": torch.randint(-(2**31), 2**31, (rows, 2), generator=generator).int(),
        "sample_index": among(0, 1, 7).int(),
        "position": torch.randint(0, 5000, (rows,), generator=generator, dtype=torch.int32),
    }


@pytest.mark.parametrize("op", OPS if ON_GPU else ["sampling.filter"])
def test_conformance(op: str) -> None:
    """Takes a minute for each of the other ops in the interpreter."""
    cases = conformance_cases(op)
    for spec in cases if ON_GPU else cases[:1]:
        assert isinstance(check_op(DEVICE, op, OPS[op], spec, seed=1), Support)


@pytest.mark.parametrize("scale", [1.0, 5.3])
@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16"] if ON_GPU else ["float32", "float16"]
)  # the interpreter rounds bfloat16 in its own way
def test_embedding(dtype: str, scale: float) -> None:
    spec = EmbeddingSpec(vocab=99, dim=80, dtype=dtype, scale=scale)
    run, reference = (
        impl.build(spec, OneOp(DEVICE)).run
        for impl in (OPS["embedding"], TABLE["embedding"].reference)
    )
    given = TABLE["embedding"].inputs(spec, 0)
    ids, weight = (to_device(given[name], TORCH_DEVICE) for name in ("ids", "weight"))
    assert torch.equal(run(ids, weight), reference(ids, weight))
    assert torch.equal(run(ids, weight.repeat(1, 2)[:, 80:]), reference(ids, weight))


@pytest.mark.parametrize(
    ("vocab", "rows", "tiles", "kind"),
    [(300, 6, SMALL, kind) for kind in KINDS] + [(99, 8, Tiles(), "ties")],
)
def test_tokens_of_the_reference(vocab: int, rows: int, tiles: Tiles, kind: str) -> None:
    draw, reference = built("sampling.draw", Draw(tiles), vocab)
    x, given = logits(kind, rows, vocab), settings(rows, 0)
    for flags in ({}, {"unfiltered": True}, {"greedy": True}):
        got, want = (run(x, *given.values(), **flags) for run in (draw, reference))
        assert got.tolist() == want.tolist(), flags


@pytest.mark.parametrize("vocab", [1, 2])
def test_smallest_vocabularies(vocab: int) -> None:
    draw, reference = built("sampling.draw", Draw(), vocab)
    x, given = logits("plain", 9, vocab), settings(9, 1)
    assert torch.equal(draw(x, *given.values()), reference(x, *given.values()))


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(50, 0.953, 0.05), (5000, 0.9, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.1), (0, 1.0, 0.0)],
)
def test_a_large_vocabulary(top_k: int, top_p: float, min_p: float) -> None:
    vocab, rows = 20011, 1
    draw, reference = built("sampling.draw", Draw(), vocab)
    x, given = logits("plain", rows, vocab), settings(rows, 5)
    given["temperature"].fill_(0.9)
    given["top_k"].fill_(top_k)
    given["top_p"].fill_(top_p)
    given["min_p"].fill_(min_p)
    assert torch.equal(draw(x, *given.values()), reference(x, *given.values()))


def test_a_tiny_temperature_is_greedy() -> None:
    draw, _ = built("sampling.draw", Draw(SMALL), 300)
    x, given = logits("plain", 6, 300), settings(6, 2)
    given["temperature"].fill_(1e-4)
    given["top_k"][:3], given["top_p"][:3], given["min_p"][:3] = 0, 1.0, 0.0
    assert draw(x, *given.values()).tolist() == x.argmax(-1).tolist()


def test_words_are_those_of_the_specification() -> None:
    """Over all tokens at once: with logits of 0 the largest word wins, the lower id of equal
    uniforms."""
    draw, _ = built("sampling.draw", Draw(), 4099)
    given = settings(2, 8)
    given["temperature"].fill_(1.0)
    noise = words(given["seed"], given["sample_index"], given["position"], 4099)
    got = draw(torch.zeros(2, 4099), *given.values(), unfiltered=True)
    assert got.tolist() == (noise >> 9).argmax(-1).tolist()


def test_rows_do_not_see_each_other() -> None:
    draw, _ = built("sampling.draw", Draw(SMALL), 300)
    score, _ = built("sampling.logprobs", Logprobs(SMALL), 300)
    x, given = logits("ties", 5, 300), settings(5, 3)
    ids = torch.arange(5, dtype=torch.int32)
    whole = [draw(x, *given.values()), *score(x, ids, 4)]
    for rows in (slice(4, 5), slice(0, 3)):
        some = draw(x[rows], *(v[rows] for v in given.values()))
        parts = [some, *score(x[rows], ids[rows], 4)]
        assert all(torch.equal(a, b[rows]) for a, b in zip(parts, whole, strict=True))


def test_settings_that_are_columns_of_a_table() -> None:
    draw, _ = built("sampling.draw", Draw(), 99)
    x, given = logits("plain", 9, 99), settings(9, 4)
    floats = torch.stack([given[n] for n in ("temperature", "top_p", "min_p")]).T.contiguous()
    integers = torch.stack([given["top_k"], given["sample_index"]]).T
    table = torch.cat([given["seed"], integers, floats.view(torch.int32)], 1).contiguous()
    real = table.view(torch.float32)
    columns = (real[:, 4], table[:, 2], real[:, 5], real[:, 6], table[:, :2], table[:, 3])
    wide = torch.cat([x, x + 100], dim=1)[:, :99]
    assert torch.equal(draw(wide, *columns, given["position"]), draw(x, *given.values()))


@pytest.mark.parametrize(
    ("vocab", "top", "tiles", "kind"),
    [(300, 20, SMALL, kind) for kind in KINDS]
    + [(300, 0, SMALL, "plain"), (99, 99, Tiles(), "ties"), (99, 99, Tiles(), "masked")],
)
def test_logprobs(vocab: int, top: int, tiles: Tiles, kind: str) -> None:
    score, reference = built("sampling.logprobs", Logprobs(tiles), vocab)
    x = logits(kind, 2, vocab)
    x[:, vocab // 2] = 0.0  # at least one token
    ids = torch.randint(vocab, (2,), generator=torch.Generator().manual_seed(1)).int()
    own, rank, top_ids, top_logprobs = score(x, ids, top)
    exact = reference(x.double(), ids, top)
    assert torch.equal(rank, exact[1])
    assert torch.equal(top_ids, reference(x, ids, top)[2])
    for got, want in ((own, exact[0]), (top_logprobs, exact[3])):
        assert torch.allclose(got.double(), want, rtol=1e-6, atol=1e-6)
        assert not got.isnan().any()


@pytest.mark.parametrize("vocab", [1, 99, 2500])
def test_filter_has_the_bits_of_the_reference(vocab: int) -> None:
    restrict, reference = built("sampling.filter", Filter(), vocab)
    for seed in range(8):
        inputs = TABLE["sampling.filter"].inputs(SamplingSpec(vocab=vocab), seed)
        assert torch.equal(restrict(**inputs), reference(**inputs)), sorted(inputs)


def test_not_a_number_gives_some_token() -> None:
    draw, _ = built("sampling.draw", Draw(SMALL), 300)
    x = logits("plain", 6, 300)
    x[:3, ::7] = torch.nan
    x[3:] = torch.nan
    for flags in ({}, {"unfiltered": True}, {"greedy": True}):
        tokens = draw(x, *settings(6, 2).values(), **flags)
        assert bool(((tokens >= 0) & (tokens < 300)).all())


def test_no_rows() -> None:
    draw, _ = built("sampling.draw", Draw(), 99)
    score, _ = built("sampling.logprobs", Logprobs(), 99)
    assert draw(torch.zeros(0, 99), *settings(0, 0).values()).shape == (0,)
    assert score(torch.zeros(0, 99), torch.zeros(0, dtype=torch.int32), 3)[2].shape == (0, 3)


@pytest.mark.parametrize(
    "target", ["cuda 90 32", pytest.param("hip gfx942 64", marks=pytest.mark.slow)]
)
def test_kernels_compile(target: str, tmp_path: Path) -> None:
    program = Path(__file__).with_name("compile_sampling.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, str(program), *target.split()],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert len(run.stdout.splitlines()) == 18
