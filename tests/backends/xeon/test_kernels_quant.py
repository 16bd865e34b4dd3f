"""Quantized products against float64, and a row's bits in batches of all sizes."""

import math
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor

from inferplane.hw import DeviceInfo
from inferplane.hw.op import Reject, Support
from inferplane.hw.ops.linear import LinearSpec
from inferplane.hw.quantization import (
    LARGEST,
    QuantizedWeight,
    Scheme,
    dequantize,
    quantize,
    quantize_input,
    spread,
)
from inferplane.testing.ops import check_op, conformance_cases
from inferplane_xeon import plugin, quantized
from inferplane_xeon.ops import implementations

MATRIX_PRODUCTS = True
INT8, INT4, FP8 = (Scheme(weight=kind) for kind in ("int8", "int4", "float8_e4m3fn"))
SCHEMES = {
    "w8a8": replace(INT8, activation="int8"),
    "w8a8 static": replace(INT8, activation="int8", static=True),
    "w8a8 g32": replace(INT8, activation="int8", group=32),
    "w8a8 g16": replace(INT8, activation="int8", group=16, asymmetric=True),
    "w8a8 row offset": replace(INT8, activation="int8", asymmetric=True),
    "w8a8 blocks": replace(INT8, activation="int8", group=128, rows=128, activation_group=128),
    "w8a8 input groups": replace(INT8, activation="int8", activation_group=64),
    "w4a8": replace(INT4, activation="int8"),
    "w4a8 g32": replace(INT4, activation="int8", group=32),
    "w4a8 g32 offset": replace(INT4, activation="int8", group=32, asymmetric=True),
    "w4a8 g64 input groups": replace(
        INT4, activation="int8", group=64, activation_group=128, asymmetric=True
    ),
    "w4a8 g128": replace(INT4, activation="int8", group=128, rows=0),
    "w8": INT8,
    "w8 g32": replace(INT8, group=32, asymmetric=True),
    "w4 g32": replace(INT4, group=32),
    "w4 g128": replace(INT4, group=128, asymmetric=True),
    "fp8": FP8,
    "fp8 tensor": replace(FP8, rows=0),
    "fp8 blocks": replace(FP8, group=128, rows=128),
    "fp8 inputs": replace(FP8, activation="float8_e4m3fn"),
    "fp8 static": replace(FP8, activation="float8_e4m3fn", static=True),
    "fp8 block inputs": replace(
        FP8, group=128, rows=128, activation="float8_e4m3fn", activation_group=128
    ),
    "int4 with fp8 inputs": replace(INT4, group=32, activation="float8_e4m3fn"),
}
SIZES = [(1, 576, 96), (2, 8, 3), (7, 578, 49), (8, 256, 145), (35, 130, 200), (5, 1536, 50)]


@pytest.fixture(params=SCHEMES.values(), ids=SCHEMES.keys())
def scheme(request: pytest.FixtureRequest) -> Scheme:
    kind: Scheme = request.param
    return kind


@pytest.fixture(params=["bfloat16", "float32"])
def dtype(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


def randn(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def weights(scheme: Scheme, outputs: int, inputs: int, seed: int = 2) -> QuantizedWeight:
    weight = quantize(randn(seed, outputs, inputs), replace(scheme, static=False))
    weight.scheme = scheme
    if scheme.static:  # cuts off what is beyond 2.5
        weight.input_scale = torch.tensor([2.5 / LARGEST[scheme.activation]])
    return weight


def exact(x: Tensor, weight: QuantizedWeight) -> tuple[Tensor, Tensor]:
    """The product, and that of its terms' magnitudes, which bounds what rounding may do."""
    scheme, wide = weight.scheme, x.double()
    if scheme.activation:
        values, scale = quantize_input(x, scheme, weight.input_scale)
        wide = values.double() * spread(scale.double(), scheme.activation_group, values)
    plain = dequantize(weight, "float64")
    terms = plain.abs()
    if scheme.asymmetric:  # scale * q and offset nearly cancel out
        steps = 16 if scheme.weight == "int4" else 256
        terms = terms + steps * spread(weight.scale.double(), scheme.group, plain, scheme.rows)
    return wide @ plain.T, wide.abs() @ terms.T


def near(got: Tensor, want: Tensor, size: Tensor, packed: quantized.PackedWeight) -> None:
    assert torch.isfinite(got).all()
    rounding = 2.0**-11 if packed.half else 2.0**-19  # of each term; then of the result
    result = 2.0**-8 if got.dtype == torch.bfloat16 else 2.0**-22
    limit = rounding * size + result * want.abs() + 1e-30
    assert bool(((got.double() - want).abs() <= limit).all())


def test_matches_float64(isa: str, dtype: str, scheme: Scheme) -> None:
    kind = getattr(torch, dtype)
    for rows, inputs, outputs in SIZES:
        x = randn(1, rows, inputs + 3).to(kind)[:, :inputs]
        weight, bias = weights(scheme, outputs, inputs), randn(3, outputs).to(kind)
        want, size = exact(x, weight)
        packed = quantized.pack(weight, dtype)
        for out in (torch.full_like(want, torch.nan, dtype=t) for t in (kind, torch.float32)):
            near(quantized.quant_linear(x, packed, out), want, size, packed)
        packed.bias = bias
        near(quantized.quant_linear(x, packed, out), want + bias.double(), size + 1, packed)
        capped = quantized.quant_linear(x, packed, out, softcap=9.0).double()
        assert (capped - 9.0 * ((want + bias.double()) / 9.0).tanh()).norm() <= 2e-3 * size.norm()


def test_random_shapes(isa: str, dtype: str, scheme: Scheme) -> None:
    draw = torch.Generator().manual_seed(5)
    for seed in range(6):
        rows, inputs, outputs = (
            int(torch.randint(1, most, (), generator=draw)) for most in (40, 300, 150)
        )
        inputs += inputs % 2
        x = randn(seed, rows, inputs).to(getattr(torch, dtype))
        weight = weights(scheme, outputs, inputs, seed)
        packed = quantized.pack(weight, dtype)
        got = quantized.quant_linear(x, packed, torch.full((rows, outputs), torch.nan))
        near(got, *exact(x, weight), packed)


EXTREMES = {
    "zeros": torch.zeros(3, 256),
    "one row of zeros": torch.cat([torch.zeros(1, 256), torch.ones(1, 256)]),
    "all equal": torch.full((2, 256), -3.0),
    "outliers": randn(4, 9, 256) * torch.where(torch.arange(256) == 77, 1e4, 1.0),
    "largest values": 127.0 * randn(4, 5, 256).sign(),
    "tiny": randn(4, 3, 256) * 1e-30,
    "subnormal": randn(4, 3, 256) * 1e-40,
    "huge": randn(4, 3, 256) * 1e30,
}


def test_extreme_inputs(isa: str, dtype: str, scheme: Scheme) -> None:
    weight = weights(scheme, 50, 256)
    if scheme.weight != "float8_e4m3fn":  # both ends of what can be stored
        low, high = (0, 255) if scheme.weight == "int4" else (-128, 127)
        weight.values[:10], weight.values[10:20] = low, high
    packed = quantized.pack(weight, dtype)
    for values in EXTREMES.values():
        x = values.to(getattr(torch, dtype))
        got = quantized.quant_linear(x, packed, torch.full((len(x), 50), torch.nan))
        near(got, *exact(x, weight), packed)


def test_what_is_not_finite_stays_in_its_row(isa: str, dtype: str, scheme: Scheme) -> None:
    x = randn(1, 5, 256).to(getattr(torch, dtype))
    packed = quantized.pack(weights(scheme, 50, 256), dtype)
    clean = quantized.quant_linear(x, packed, torch.empty(5, 50))
    others = torch.tensor([0, 1, 3, 4])
    for value in (torch.nan, torch.inf, -torch.inf):
        x[2, 100] = value
        got = quantized.quant_linear(x, packed, torch.empty(5, 50))
        if not scheme.static:
            assert not torch.isfinite(got[2]).any()
        elif value == value:  # a given scale cuts off infinity like any large value
            x[2, 100] = math.copysign(1e30, value)
            assert torch.equal(got, quantized.quant_linear(x, packed, torch.empty(5, 50)))
        assert torch.equal(got[others], clean[others])


def test_scales_beyond_float16(isa: str) -> None:
    weight = weights(replace(INT4, group=32, activation="int8"), 50, 256)
    weight.scale[:, ::2] *= 2.0**-30
    packed = quantized.pack(weight, "bfloat16")
    assert not packed.half
    x = randn(1, 3, 256).bfloat16()
    got = quantized.quant_linear(x, packed, torch.empty(3, 50))
    near(got, *exact(x, weight), packed)
    weight.scale[:, :] = randn(1, *weight.scale.shape).abs() * 2.0**-60 + 2.0**-62
    packed = quantized.pack(weight, "bfloat16")
    assert packed.half
    got = quantized.quant_linear(x, packed, torch.empty(3, 50))
    near(got, *exact(x, weight), packed)


def test_every_fp8_value(isa: str, dtype: str) -> None:
    """One input and weight at a time: the code's own value, subnormals and NaN included."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    weight = QuantizedWeight(FP8, codes.repeat(2, 1).T.contiguous(), torch.ones(256, 1))
    x = torch.tensor([[1.0, 0.0]]).to(getattr(torch, dtype))
    got = quantized.quant_linear(x, quantized.pack(weight, dtype), torch.empty(1, 256))
    want = codes.float()
    assert torch.equal(got[0].nan_to_num(nan=999.0), want.nan_to_num(nan=999.0))


def test_bits_of_a_row_do_not_depend_on_the_others(
    isa: str, dtype: str, scheme: Scheme, threads: ModuleType
) -> None:
    x = randn(1, 70, 200).to(getattr(torch, dtype))
    packed = quantized.pack(weights(scheme, 333, 200), dtype)
    whole = quantized.quant_linear(x, packed, torch.empty(70, 333))
    for team, sizes in ((1, (1, 2, 3, 4, 5, 7, 8, 9)), (3, (1, 64))):
        threads.set_threads(team)
        for rows in sizes:
            for first in (0, 1, 70 - rows):
                part = x[first : first + rows]
                got = quantized.quant_linear(part, packed, torch.empty(rows, 333))
                assert torch.equal(got, whole[first : first + rows]), (team, rows, first)


def test_instruction_sets_agree(library: ModuleType, dtype: str, scheme: Scheme) -> None:
    """Integer products are exact, so only the order of float sums within inputs may differ."""
    x = randn(1, 9, 384).to(getattr(torch, dtype))
    packed = quantized.pack(weights(scheme, 100, 384), dtype)
    results, before, names = [], library.isa(), library.isas()
    for name in names + ["amx_emulated"] * ("avx512_bf16" in names):
        library.set_isa(name)
        results.append(quantized.quant_linear(x, packed, torch.empty(9, 100)))
    library.set_isa(before)
    if scheme.activation == "int8":
        assert all(torch.equal(each, results[0]) for each in results)


REJECTED = [
    ("dtype", "float16", INT8, 64),
    ("feature", "bfloat16", replace(FP8, activation="int8"), 64),
    ("shape", "bfloat16", replace(INT8, group=12), 64),
    ("shape", "bfloat16", replace(INT8, group=64, activation="int8", activation_group=96), 256),
    ("shape", "bfloat16", replace(INT8, activation="int8"), 65537),
    ("feature", "bfloat16", None, 64),
]


@pytest.mark.parametrize(("code", "dtype", "scheme", "inputs"), REJECTED)
def test_limits_are_told(code: str, dtype: str, scheme: Scheme | None, inputs: int) -> None:
    spec = LinearSpec(in_features=inputs, out_features=8, dtype=dtype, scheme=scheme)
    verdict = quantized.quant_problem(spec)
    assert isinstance(verdict, Reject)
    assert verdict.code == code
    assert verdict.reason


def test_conformance(isa: str) -> None:
    """Every scheme of the contract's own cases."""
    info = DeviceInfo(backend="xeon", torch_device="cpu", name="test", arch=isa)
    device, checked = plugin.create_device(info, {}), 0
    for op, impl in implementations():
        if impl.name == "xeon.quant_linear":
            cases = [c for c in conformance_cases(op, ("float32", "bfloat16")) if c.scheme]
            for spec in cases:
                assert isinstance(check_op(device, op, impl, spec, seed=0), Support)
            checked += len(cases)
    assert checked > 100
