"""Norms, gated activations, rope and KV writes against float64."""

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from inferplane.hw.kv import from_stored, to_stored
from inferplane_xeon import kernels

DTYPES = [torch.bfloat16, torch.float32]
BOUND = {torch.bfloat16: 2.0**-7, torch.float32: 2.0**-21}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    kind: torch.dtype = request.param
    return kind


def randn(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def near(got: Tensor, want: Tensor, slack: float = 1.0) -> None:
    bound = BOUND[got.dtype] * slack
    error = (got.double() - want).abs()
    assert bool((error <= bound * (want.abs() + 1e-3)).all()), float(error.max())


def normed(x: Tensor, epsilon: float) -> Tensor:
    wide = x.double()
    return wide * (wide.square().mean(-1, keepdim=True) + epsilon).rsqrt()


@pytest.mark.parametrize("tokens", [1, 3, 200])
@pytest.mark.parametrize("width", [8, 100, 576, 1027])
def test_rms_norm(isa: str, dtype: torch.dtype, width: int, tokens: int) -> None:
    x = (randn(1, tokens, width + 5) * 3).to(dtype)[:, :width]
    weight = randn(2, width).to(dtype)
    out = torch.empty(tokens, width, dtype=dtype)
    kernels.rms_norm(x, weight, out, eps=1e-5)
    near(out, normed(x, 1e-5).to(dtype).double() * weight.double())
    kernels.rms_norm(x, weight, out, eps=1e-5, weight_offset=1.0, cast_before_weight=False)
    near(out, normed(x, 1e-5) * (1 + weight.double()))


def test_the_two_roundings_differ(isa: str) -> None:
    x, weight = randn(1, 50, 64).to(torch.bfloat16), randn(2, 64).to(torch.bfloat16)
    llama, gemma = (torch.empty_like(x) for _ in range(2))
    kernels.rms_norm(x, weight, llama, eps=1e-5, cast_before_weight=True)
    kernels.rms_norm(x, weight, gemma, eps=1e-5, cast_before_weight=False)
    assert torch.equal(llama, normed(x, 1e-5).to(x.dtype) * weight)
    assert torch.equal(gemma, (normed(x, 1e-5).float() * weight.float()).to(x.dtype))
    assert not torch.equal(llama, gemma)


@pytest.mark.parametrize("inplace", [False, True])
def test_add_rms_norm(isa: str, dtype: torch.dtype, inplace: bool) -> None:
    x, residual = randn(1, 70, 200).to(dtype), randn(2, 70, 200).to(dtype)
    weight, out = randn(3, 200).to(dtype), torch.empty(70, 200, dtype=dtype)
    want = x + residual
    total = residual if inplace else torch.empty_like(residual)
    kernels.rms_norm(x, weight, out, eps=1e-6, residual=residual, residual_out=total)
    assert torch.equal(total, want)
    near(out, normed(want, 1e-6).to(dtype).double() * weight.double())


@pytest.mark.parametrize("width", [8, 100, 1536])
@pytest.mark.parametrize("kind", ["silu", "gelu"])
def test_glu(isa: str, dtype: torch.dtype, kind: str, width: int) -> None:
    x = (randn(1, 40, 2 * width) * 4).to(dtype)
    out = torch.empty(40, width, dtype=dtype)
    kernels.glu(x, out, gelu=kind == "gelu")
    gate, up = x.double().chunk(2, -1)
    act = silu(gate) if kind == "silu" else gelu(gate, approximate="tanh")
    # gelu's exponent grows with the cube of its input, and so does the rounding error of it
    near(out, act.to(dtype).double() * up, slack=8.0 if kind == "gelu" else 1.0)


def test_glu_at_the_ends_of_the_range(isa: str) -> None:
    x = torch.tensor([[-1e30, -200.0, 0.0, 200.0, 1e30, math.nan, 0, 0] + [1.0] * 8])
    for gelu_form in (False, True):
        out = torch.empty(1, 8)
        kernels.glu(x, out, gelu=gelu_form)
        assert out[0, [0, 1, 2]].abs().max() < 1e-6
        assert out[0, 3] == 200.0
        assert out[0, 4] == torch.tensor(1e30)
        assert torch.isnan(out[0, 5])


def rotated(x: Tensor, table: Tensor, position: Tensor, interleaved: bool) -> Tensor:
    rotary = table.shape[1]
    cos, sin = table[position.long()].double().unsqueeze(1).chunk(2, -1)  # [T, 1, R / 2]
    pairs = (slice(0, rotary, 2), slice(1, rotary, 2))
    if not interleaved:
        pairs = (slice(0, rotary // 2), slice(rotary // 2, rotary))
    y = x.clone()
    a, b = x[..., pairs[0]], x[..., pairs[1]]
    y[..., pairs[0]], y[..., pairs[1]] = a * cos - b * sin, b * cos + a * sin
    return y


@pytest.mark.parametrize("tokens", [1, 7, 90])
@pytest.mark.parametrize("interleaved", [False, True], ids=["neox", "gptj"])
@pytest.mark.parametrize(("dim", "rotary"), [(64, 64), (96, 24), (80, 32), (8, 2), (256, 256)])
def test_rope_alone(
    isa: str, dtype: torch.dtype, dim: int, rotary: int, interleaved: bool, tokens: int
) -> None:
    q, k = randn(1, tokens, 6, dim).to(dtype), randn(2, tokens, 2, dim).to(dtype)
    angle = randn(3, 50, rotary // 2) * 9
    table = torch.cat([angle.cos(), angle.sin()], -1)
    position = torch.arange(tokens, dtype=torch.int32) * 7 % 50
    q_before, k_before = q.clone(), k.clone()
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    kernels.rope(q, k, table, position, q_out, k_out, interleaved=interleaved)
    assert torch.equal(q, q_before)
    assert torch.equal(k, k_before)
    for got, x in ((q_out, q), (k_out, k)):
        want = rotated(x.double(), table, position, interleaved)
        size = x.double().norm(dim=-1, keepdim=True)
        assert bool(((got.double() - want).abs() <= BOUND[dtype] * size).all())


@pytest.mark.parametrize("head_major", [True, False])
@pytest.mark.parametrize("norms", [True, False])
def test_fused_norm_rope_and_write(
    isa: str, dtype: torch.dtype, norms: bool, head_major: bool
) -> None:
    tokens, heads, kv_heads, dim, size = 19, 6, 2, 64, 5
    qkv = randn(1, tokens, heads + 2 * kv_heads, dim).to(dtype)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    angle = randn(3, 50, dim // 2) * 9
    table = torch.cat([angle.cos(), angle.sin()], -1)
    position = torch.arange(tokens, dtype=torch.int32)
    slot = torch.randperm(8 * size, generator=torch.Generator().manual_seed(4))[:tokens].int()
    slot[-3:] = torch.tensor([0, 1, 0])  # padding writes to the null page
    shape = (2, 9, kv_heads, size, dim) if head_major else (2, 9, size, kv_heads, dim)
    data = torch.full(shape, math.nan, dtype=dtype)
    data = data.permute(0, 1, 3, 2, 4) if head_major else data
    cache = (data[0], data[1])
    weights = (randn(5, dim).to(dtype), randn(6, dim).to(dtype))
    want = []
    for x, weight in zip((q, k), weights, strict=True):
        y = (normed(x, 1e-6) * weight.double()).to(dtype).double() if norms else x.double()
        want.append(rotated(y, table, position, False))
    out = torch.empty(tokens, heads, dim, dtype=dtype)
    live, untouched = slot.long()[:-3], set(range(9 * size)) - set(slot.tolist())
    kernels.rope(
        q,
        k,
        table,
        position,
        out,
        None,
        norms=weights if norms else None,
        eps=1e-6,
        cast_before_weight=False,
        write=(v, cache, slot),
    )
    stored = [half[live // size, live % size] for half in cache]
    for got, goal in ((out, want[0]), (stored[0], want[1][:-3])):
        scale = goal.norm(dim=-1, keepdim=True)
        assert bool(((got.double() - goal).abs() <= BOUND[dtype] * scale).all())
    assert torch.equal(stored[1], v[:-3])
    rest = torch.tensor(sorted(untouched))
    assert torch.isnan(torch.stack(cache)[:, rest // size, rest % size]).all()


def test_rope_in_place(isa: str, dtype: torch.dtype) -> None:
    q, k = randn(1, 5, 4, 32).to(dtype), randn(2, 5, 2, 32).to(dtype)
    table, position = randn(3, 9, 32), torch.arange(5, dtype=torch.int32)
    apart = torch.empty_like(q), torch.empty_like(k)
    for interleaved in (False, True):
        kernels.rope(q, k, table, position, *apart, interleaved=interleaved)
        own = q.clone(), k.clone()
        kernels.rope(*own, table, position, *own, interleaved=interleaved)
        assert torch.equal(own[0], apart[0])
        assert torch.equal(own[1], apart[1])


@pytest.mark.parametrize("tokens", [1, 40, 3000])
def test_kv_write(isa: str, dtype: torch.dtype, tokens: int) -> None:
    qkv = randn(1, tokens, 5, 24).to(dtype)
    _, k, v = qkv.split([1, 2, 2], dim=1)
    size, pages = 16, 200
    slot = torch.randperm(size * pages, generator=torch.Generator().manual_seed(2))[:tokens].int()
    data = torch.zeros(2, pages, 2, size, 24, dtype=dtype).permute(0, 1, 3, 2, 4)
    kernels.kv_write(k, v, (data[0], data[1]), slot)
    want = torch.zeros_like(data)
    at = slot.long()
    want[0][at // size, at % size], want[1][at // size, at % size] = k, v
    assert torch.equal(data, want)


def int8_cache(pages: int, heads: int, size: int, dim: int) -> tuple[Tensor, Tensor]:
    """Keys and values whose scales are NaN, head-major."""
    data = torch.full((2, pages, heads, size, dim + 4), -1, dtype=torch.int8).permute(0, 1, 3, 2, 4)
    return data[0], data[1]


@pytest.mark.parametrize("dim", [8, 24, 64, 256])
def test_kv_write_of_int8(isa: str, dtype: torch.dtype, dim: int) -> None:
    tokens, size, pages = 90, 16, 9
    k, v = (
        (randn(i, tokens, 2, dim) * 10.0 ** randn(i + 2, tokens, 2, 1).mul(3)).to(dtype)
        for i in (1, 2)
    )
    k[3, 1, dim // 2], v[4, 0, 1], k[5], v[6] = math.nan, -math.inf, 0.0, 1e-38
    slot = torch.randperm(size * pages, generator=torch.Generator().manual_seed(2))[:tokens].int()
    cache, want = int8_cache(pages, 2, size, dim), int8_cache(pages, 2, size, dim)
    kernels.kv_write(k, v, cache, slot)
    at = slot.long()
    for got, half, x in zip(cache, want, (k, v), strict=True):
        half[at // size, at % size] = to_stored(x, torch.int8)
        assert torch.equal(got, half), "the same bits, and no byte beside them"
    assert from_stored(cache[0][at // size, at % size])[3, 1].isnan().all()


@pytest.mark.parametrize("norms", [True, False])
def test_int8_pages_hold_what_others_would(isa: str, dtype: torch.dtype, norms: bool) -> None:
    tokens, dim, size = 19, 40, 5
    q, k, v = randn(1, tokens, 8, dim).to(dtype).split([4, 2, 2], dim=1)
    table, position = randn(3, 50, dim), torch.arange(tokens, dtype=torch.int32)
    weights = (randn(5, dim).to(dtype), randn(6, dim).to(dtype)) if norms else None
    slot = torch.randperm(8 * size, generator=torch.Generator().manual_seed(4))[:tokens].int()
    wide = torch.zeros(2, 8, size, 2, dim, dtype=dtype)
    caches = (wide[0], wide[1]), int8_cache(8, 2, size, dim)
    outs = []
    for cache in caches:
        outs.append(torch.empty(tokens, 4, dim, dtype=dtype))
        kernels.rope(
            q, k, table, position, outs[-1], None, norms=weights, eps=1e-6, write=(v, cache, slot)
        )
    assert torch.equal(*outs)
    at = slot.long()
    for stored, narrow in zip(*caches, strict=True):
        row = stored[at // size, at % size]
        assert torch.equal(narrow[at // size, at % size], to_stored(row, torch.int8))


def test_bits_of_a_row_do_not_depend_on_the_others(
    isa: str, dtype: torch.dtype, threads: ModuleType
) -> None:
    x, weight = randn(1, 300, 576).to(dtype), randn(2, 576).to(dtype)
    results = []
    for team, rows in ((1, 300), (3, 300), (1, 1)):
        threads.set_threads(team)
        norm = torch.empty(300, 576, dtype=dtype)
        act = torch.empty(300, 288, dtype=dtype)
        for first in range(0, 300, rows):
            part = slice(first, first + rows)
            kernels.rms_norm(x[part], weight, norm[part], eps=1e-5)
            kernels.glu(x[part], act[part])
        results.append(torch.cat([norm, act], -1))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
