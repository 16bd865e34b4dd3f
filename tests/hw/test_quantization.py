"""Quantized weights and the products with them, against arithmetic spelled out here."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from inferplane.hw import DeviceInfo, TorchDevice, quantization
from inferplane.hw.op import describe
from inferplane.hw.ops import TABLE
from inferplane.hw.ops.linear import LinearSpec
from inferplane.hw.quantization import (
    QuantizedWeight,
    Scheme,
    common,
    concatenate,
    dequantize,
    holds,
    part,
    quantize,
    quantize_input,
    widen,
)
from inferplane.testing.op_cases import SCHEMES
from inferplane.testing.op_run import OneOp

N, K = 200, 352
CPU = TorchDevice(DeviceInfo(backend="test", torch_device="cpu", name="cpu"))
WEIGHTS = sorted({replace(s, activation="", activation_group=0, static=False) for s in SCHEMES},
                 key=describe)  # fmt: skip
INTEGERS = [s for s in WEIGHTS if s.weight != "float8_e4m3fn"]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def block_of(scheme: Scheme, n: int, k: int, shape: tuple[int, int]) -> tuple[slice, slice]:
    """The values that share a scale with [n, k]."""
    rows, group = scheme.rows or shape[0], scheme.group or shape[1]
    top, left = n // rows * rows, k // group * group
    return slice(top, top + rows), slice(left, left + group)


@pytest.mark.parametrize("scheme", WEIGHTS, ids=describe)
def test_every_value_is_the_nearest_of_its_block(scheme: Scheme) -> None:
    weight = random(N, K)
    made = quantize(weight, scheme)
    back = dequantize(made, "float64")
    assert made.scale.shape == scheme.scale_shape(N, K)
    assert (made.out_features, made.in_features) == (N, K)
    for n, k in product((0, 63, 127, 128, N - 1), (0, 31, 32, 127, 128, K - 1)):
        block = weight[block_of(scheme, n, k, (N, K))].double()
        value = float(weight[n, k])
        if scheme.asymmetric:
            step = float(block.max() - block.min()) / (255 if scheme.weight == "int8" else 15)
        else:
            top = {"int8": 127, "int4": 7, "float8_e4m3fn": 448}[scheme.weight]
            step = float(block.abs().max()) / top
        if scheme.weight == "float8_e4m3fn":  # 3 bits behind the leading one, 2**-9 at least
            step *= max(2.0**-9, 2.0 ** (torch.tensor(abs(value) / step).log2().floor() - 3).item())
        assert abs(float(back[n, k]) - value) <= step * 0.5001


@pytest.mark.parametrize("scheme", WEIGHTS, ids=describe)
def test_large_weights_are_rounded_in_tiles(
    scheme: Scheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = random(300, 64)
    whole = quantize(weight, scheme)
    monkeypatch.setattr(quantization, "QUANTIZE_TILE", 64 * 130)
    tiled = quantize(weight, scheme)
    assert tiled.scheme == whole.scheme
    assert tiled.values.view(torch.uint8).equal(whole.values.view(torch.uint8))
    assert tiled.scale.equal(whole.scale)
    assert (tiled.offset is None) == (whole.offset is None)


def test_scales_and_values_of_small_matrices() -> None:
    weight = torch.tensor([[-127.0, 0.5, 1.5, 2.5], [0.0, 0.0, 0.0, 0.0]])
    made = quantize(weight, Scheme(weight="int8"))
    assert made.scale.tolist() == [[1.0], [1.0]]
    assert made.values.tolist() == [[-127, 0, 2, 2], [0, 0, 0, 0]]  # ties to even
    made = quantize(torch.tensor([[7.0, -7.0, 1.0, 0.0]]), Scheme(weight="int4", group=2))
    assert made.scale.tolist() == [[1.0, float(torch.tensor(1 / 7).half())]]
    assert made.values.tolist() == [[15 | 1 << 4, 15 | 8 << 4]]
    made = quantize(torch.tensor([[2.0, 17.0]]), Scheme(weight="int4", asymmetric=True))
    assert (made.values.tolist(), made.scale.tolist()) == ([[0 | 15 << 4]], [[1.0]])
    assert made.offset is not None
    assert made.offset.tolist() == [[2.0]]
    made = quantize(torch.tensor([[-448.0, 1.0]]), Scheme(weight="float8_e4m3fn", rows=0))
    assert made.values.float().tolist() == [[-448.0, 1.0]]
    constant = quantize(torch.full((2, 4), 3.0), Scheme(weight="int8", asymmetric=True))
    assert dequantize(constant, "float32").eq(3.0).all()


@pytest.mark.parametrize("asymmetric", [False, True])
def test_int4_scales_are_float16_where_that_has_the_bits(asymmetric: bool) -> None:
    scheme = Scheme(weight="int4", group=32, asymmetric=asymmetric)
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)) + 0.3
    for size, is_float16 in ((1.0, True), (1e-7, False), (1e6, False)):
        made = quantize(weight * size, scheme)
        held = [made.scale] if made.offset is None else [made.scale, made.offset]
        assert all(torch.equal(t, t.half().float()) for t in held) == is_float16
        far = dequantize(made, "float32") - weight * size
        assert far.norm() < 0.15 * size * weight.norm()


def test_inputs_are_rounded_as_the_contract_says() -> None:
    x = torch.tensor([[127.0, -0.5, 1.5, 2.5], [0.0, 0.0, 0.0, 0.0]], dtype=torch.bfloat16)
    scheme = Scheme(weight="int8", activation="int8")
    values, scale = quantize_input(x, scheme, None)
    assert values.dtype == torch.int8
    assert values.tolist() == [[127, 0, 2, 2], [0, 0, 0, 0]]
    assert scale.tolist() == [[1.0], [1.0]]
    values, scale = quantize_input(x, replace(scheme, activation_group=2), None)
    assert scale.tolist()[0] == [1.0, pytest.approx(2.5 / 127)]
    assert values.tolist()[0] == [127, 0, 76, 127]
    static = replace(scheme, activation="float8_e4m3fn", static=True)
    values, scale = quantize_input(x, static, torch.tensor([0.25]))
    assert values.float().tolist()[0] == [448.0, -2.0, 6.0, 10.0]  # 508 is cut off
    assert scale.tolist() == [[0.25]]
    values, _ = quantize_input(x, replace(scheme, static=True), torch.tensor([0.5]))
    assert values.tolist()[0] == [127, -1, 3, 5]


def run(
    scheme: Scheme,
    x: torch.Tensor,
    weight: QuantizedWeight,
    bias: torch.Tensor | None = None,
    **fields: Any,
) -> torch.Tensor:
    spec = LinearSpec(
        in_features=weight.in_features,
        out_features=weight.out_features,
        dtype=str(x.dtype).removeprefix("torch."),
        scheme=scheme,
        bias=bias is not None,
        **fields,
    )
    bound = TABLE["linear"].reference.build(spec, OneOp(CPU))
    assert bound.prepack is not None
    out: torch.Tensor = bound.run(x, bound.prepack(weight, bias))
    return out


@pytest.mark.parametrize("determinism", ["run", "batch"])
def test_product_of_integers(determinism: Any) -> None:
    """sum over groups of (sum q_x q_w) * s_w * s_x + offset * s_x * sum q_x"""
    scheme = Scheme(weight="int4", group=32, asymmetric=True, activation="int8")
    x, weight = random(5, 96, seed=1), quantize(random(24, 96, seed=2), scheme)
    assert weight.offset is not None
    s_x = x.abs().amax(1, keepdim=True) / 127
    q_x = (x / s_x).round().long()
    q_w = torch.stack([weight.values & 15, weight.values >> 4], 2).flatten(1).long()
    expected = torch.zeros(5, 24, dtype=torch.float64)
    for group in range(3):
        some = slice(32 * group, 32 * group + 32)
        dots = (q_x[:, some] @ q_w[:, some].T).double()
        sums = q_x[:, some].sum(1, keepdim=True).double()
        expected += dots * weight.scale[:, group].double()
        expected += sums * weight.offset[:, group].double()
    expected *= s_x.double()
    ours = run(scheme, x, weight, determinism=determinism)
    assert (ours - expected).abs().max() < 1e-5
    assert (ours - x @ dequantize(weight, "float32").T).abs().max() > 1e-3  # inputs are rounded


def test_product_of_fp8_blocks() -> None:
    scheme = Scheme(
        weight="float8_e4m3fn",
        rows=128,
        group=128,
        activation="float8_e4m3fn",
        activation_group=128,
    )
    x, weight = random(3, 192, seed=1), quantize(random(200, 192, seed=2), scheme)
    expected = torch.zeros(3, 200, dtype=torch.float64)
    for k, n in product((0, 1), (0, 1)):
        inputs, outputs = slice(128 * k, 128 * k + 128), slice(128 * n, 128 * n + 128)
        s_x = x[:, inputs].abs().amax(1, keepdim=True) / 448
        q_x = (x[:, inputs] / s_x).to(torch.float8_e4m3fn).double()
        q_w = weight.values[outputs, inputs].double()
        expected[:, outputs] += q_x @ q_w.T * s_x.double() * weight.scale[n, k].double()
    assert (run(scheme, x, weight) - expected).abs().max() < 1e-4


def test_a_static_scale_is_used() -> None:
    scheme = Scheme(weight="float8_e4m3fn", rows=0, activation="float8_e4m3fn")
    x, weight = random(3, 64, seed=1), quantize(random(8, 64, seed=2), scheme)
    static = replace(scheme, static=True)
    weight.scheme, weight.input_scale = static, torch.tensor([1 / 448])  # cuts off at 1
    expected = (x.clamp(-1, 1) * 448).to(torch.float8_e4m3fn).double() / 448
    expected = expected @ dequantize(weight, "float64").T
    assert (run(static, x, weight) - expected).abs().max() < 1e-5


def test_weights_are_not_made_dense_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from inferplane.hw.ops import linear

    monkeypatch.setattr(linear, "WEIGHT_TILE", 8 * K)
    sizes: list[int] = []

    def watched(weight: QuantizedWeight, dtype: str) -> torch.Tensor:
        sizes.append(weight.out_features)
        return dequantize(weight, dtype)

    monkeypatch.setattr(linear, "dequantize", watched)
    for scheme, tile in ((WEIGHTS[0], 8), (Scheme(weight="int8", rows=16), 16)):
        weight = quantize(random(N, K), scheme)
        x, bias = random(2, K, seed=1), random(N, seed=2)
        sizes.clear()
        tiled = run(scheme, x, weight, bias)
        assert max(sizes) == tile
        assert sum(sizes) == N
        assert (tiled - x @ dequantize(weight, "float32").T - bias).abs().max() < 1e-4


@pytest.mark.parametrize("sizes", [(128, 64, 200), (40, 24), (72,)], ids=str)
@pytest.mark.parametrize("scheme", WEIGHTS, ids=describe)
def test_stacked_weights_are_exactly_the_parts(scheme: Scheme, sizes: tuple[int, ...]) -> None:
    parts = [quantize(random(n, K, seed=n) * n, scheme) for n in sizes]
    whole = concatenate(parts)
    assert whole.scheme == scheme.merged(sizes)
    assert whole.scale.shape == whole.scheme.scale_shape(sum(sizes), K)
    expected = torch.cat([dequantize(p, "float32") for p in parts])
    assert dequantize(whole, "float32").equal(expected)
    rows = whole.scheme.rows
    start = rows or 0
    some = dequantize(part(whole, start, sum(sizes) - 1), "float32")
    assert some.equal(expected[start:-1])


def test_stacking_keeps_blocks_that_fit_and_the_largest_input_scale() -> None:
    blocks = Scheme(weight="float8_e4m3fn", rows=128, group=128)
    assert blocks.merged((256, 128, 64)) == blocks
    assert blocks.merged((64, 128)) == replace(blocks, rows=1)
    assert Scheme(weight="int8", rows=0).merged((64,)).rows == 0
    static = Scheme(weight="int8", activation="int8", static=True)
    made = [quantize(random(4, 8), Scheme(weight="int8")) for _ in range(2)]
    for weight, scale in zip(made, (0.5, 0.25), strict=True):
        weight.scheme, weight.input_scale = static, torch.tensor([scale])
    stacked = concatenate(made).input_scale
    assert stacked is not None
    assert stacked.tolist() == [0.5]
    with pytest.raises(ValueError, match="different schemes"):
        concatenate([made[0], quantize(random(4, 8), blocks)])


@pytest.mark.parametrize(("a", "b"), list(product(INTEGERS, INTEGERS)), ids=describe)
def test_a_common_scheme_holds_both_exactly(a: Scheme, b: Scheme) -> None:
    width = 384
    shared = common([a, b], width)
    assert shared is not None
    assert shared == common([b, a], width)
    for scheme in (a, b):
        assert holds(shared, scheme, width)
        weight = quantize(random(8, width, seed=3), scheme)
        wide = widen(weight, shared)
        assert wide.scale.shape == shared.scale_shape(8, width)
        assert dequantize(wide, "float64").equal(dequantize(weight, "float64"))
    assert holds(a, b, width) == (shared == a)


def test_some_schemes_have_nothing_in_common() -> None:
    int8, fp8 = Scheme(weight="int8"), Scheme(weight="float8_e4m3fn")
    assert common([int8, fp8], 64) is None
    assert common([int8, replace(int8, activation="int8")], 64) is None
    assert common([fp8, replace(fp8, rows=0)], 64) is None
    assert common([fp8, fp8], 64) == fp8
    assert holds(replace(int8, activation="int8"), int8, 64)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Scheme(weight="int3"), "weight type"),  # type: ignore[arg-type]
        (lambda: Scheme(weight="int8", activation="int4"), "activation"),  # type: ignore[arg-type]
        (lambda: Scheme(weight="float8_e4m3fn", asymmetric=True), "asymmetric"),
        (lambda: Scheme(weight="int8", group=-1), "negative"),
        (lambda: Scheme(weight="int8", static=True), "need an activation"),
        (
            lambda: Scheme(weight="int8", activation="int8", activation_group=8, static=True),
            "no groups",
        ),
        (lambda: quantize(random(2, 3), Scheme(weight="int4")), "3 is odd"),
        (
            lambda: quantize(random(2, 4), Scheme(weight="int8", activation="int8", static=True)),
            "static",
        ),
        (lambda: part(quantize(random(64, 8), Scheme(weight="int8", rows=16)), 8, 16), "row 8"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
