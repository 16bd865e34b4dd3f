"""The INT4 kernels as they are compiled for GPUs, run lane by lane on the CPU: the instructions
alone are replaced (instructions.cuh)."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inferplane.hw.quantization import QuantizedWeight, Scheme, dequantize, quantize
from inferplane_cuda.packed import Weights, pack
from tests.backends.cuda.lanes import arguments, library

INT4 = Scheme(weight="int4", group=128)
BFLOAT, HALF = torch.bfloat16, torch.float16


def options(w: Weights, dtype: torch.dtype, **changed: int) -> dict[str, int]:
    plain = {"ROWS": 4, "STRIPS": 1, "WARPS": 2, "ACROSS": 1, "DEPTH": 2, "SCALED": 0, "RAW": 0}
    own = {"GROUP": w.group, "OFFSETS": w.offsets, "WIDE": int(w.wide)}
    return plain | {"BIAS": 0, "HALF": int(dtype == HALF)} | own | changed


def made(scheme: Scheme, n: int = 128, k: int = 512) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(1)
    return quantize(torch.randn(n, k, generator=generator) / k**0.5, scheme)


def product(
    sources: Path, weight: QuantizedWeight, rows: int, dtype: torch.dtype, **changed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(what the kernel gives, x)"""
    w = pack(weight)
    n, k = weight.out_features, weight.in_features
    chosen = options(w, dtype, **changed)
    kernels = library(sources, chosen)
    x = torch.randn(rows, k, generator=torch.Generator().manual_seed(2)).to(dtype)
    bias = torch.arange(n).to(dtype) / 64 if chosen["BIAS"] else None
    y = torch.full((rows, n), float("nan"), dtype=dtype)
    kernels.few(*arguments((x, w.words, w.scales, bias, y, rows, n, k // 128)))
    return y if bias is None else y - bias, x


def far(got: torch.Tensor, x: torch.Tensor, weight: QuantizedWeight) -> float:
    want = x.double() @ dequantize(weight, "float64").T
    return float((got.double() - want).norm() / want.norm())


SCHEMES = [replace(INT4, group=g, asymmetric=a) for g in (32, 64, 128, 0) for a in (False, True)]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.group}{'+' * s.asymmetric}")
def test_products_of_every_scheme(sources: Path, scheme: Scheme) -> None:
    weight = made(scheme)
    got, x = product(sources, weight, 3, HALF)
    assert far(got, x, weight) < 1e-3


VARIANTS = {
    "one row": (1, {"ROWS": 1, "DEPTH": 3}),
    "raw": (2, {"RAW": 1}),
    "a strip more": (7, {"ROWS": 8, "STRIPS": 2}),
    "four warps": (13, {"ROWS": 16, "STRIPS": 4, "WARPS": 4, "DEPTH": 1}),
    "bias": (3, {"BIAS": 1}),
    "scaled": (9, {"ROWS": 16, "SCALED": 1}),
    "side by side": (19, {"ROWS": 32, "SCALED": 1, "WARPS": 4, "ACROSS": 2, "STRIPS": 2}),
    "more than a program has": (9, {"ROWS": 8, "WARPS": 4, "ACROSS": 4, "STRIPS": 2, "DEPTH": 1}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_products_of_every_cut(sources: Path, name: str) -> None:
    rows, changed = VARIANTS[name]
    weight = made(replace(INT4, asymmetric=True), k=640)
    got, x = product(sources, weight, rows, BFLOAT, **changed)
    assert far(got, x, weight) < (0.006 if changed.get("SCALED") else 0.003)


@pytest.mark.parametrize("dtype", [BFLOAT, HALF])
@pytest.mark.parametrize("stored", ["symmetric", "offsets", "wide", "zero points"])
def test_dense_weights_are_rounded_once(sources: Path, stored: str, dtype: torch.dtype) -> None:
    weight = made(replace(INT4, group=64, asymmetric=stored != "symmetric"))
    if stored == "wide":
        weight.scale = weight.scale * 1.0001
    if stored == "zero points":
        zeros = torch.arange(weight.scale.numel()).view(weight.scale.shape) % 16
        weight.offset = -weight.scale * zeros
    w = pack(weight)
    assert (w.offsets, w.wide) == {
        "symmetric": (0, False), "offsets": (1, False), "wide": (1, True), "zero points": (2, False)
    }[stored]  # fmt: skip
    kernels = library(sources, options(w, dtype, ROWS=8))
    n, k = weight.out_features, weight.in_features
    out = torch.full((n - 32, k), float("nan"), dtype=dtype)
    kernels.dense(*arguments((w.words, w.scales, out, 1, n // 16 - 2, k // 128)))
    want = dequantize(weight, str(dtype).split(".")[1])[16:-16]
    # (q - 8) scale + (offset + 8 scale) in f32 for q scale + offset: rarely the last bit differs
    assert float((out != want).float().mean()) < 0.01
    assert torch.allclose(out, want, atol=0, rtol=0.01)
