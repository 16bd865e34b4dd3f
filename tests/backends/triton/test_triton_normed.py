"""Norms and activations that quantize, or are part of a product, by Triton's interpreter, which
has no bf16."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backends.triton.interpreter import ON_GPU  # isort: skip

from inferplane.hw import Bound, Device, DeviceInfo, Reject, TorchDevice
from inferplane.hw.ops import TABLE
from inferplane.hw.ops.gated import GatedLinearSpec
from inferplane.hw.ops.linear import LinearSpec, linear_inputs
from inferplane.hw.ops.norm import RMSNormSpec
from inferplane.hw.ops.normed import NormLinearSpec, NormMLPSpec
from inferplane.hw.quantization import Scheme
from inferplane.resolver import Resolver
from inferplane.testing.op_run import OneOp
from inferplane_triton import launch, linear, normed, quantized, rowwise, tuning
from tests.backends.triton.test_triton_products import CDNA3, HOPPER, compiled

if ON_GPU:
    pytest.skip("tests/gpu has the conformance kit on the GPU", allow_module_level=True)

FP8 = "float8_e4m3fn"
INFO = DeviceInfo(backend="test", torch_device="cpu", name="test", arch="sm_90")
D, F = 384, 1280  # both are no power of two, F is more than a part of 1,024
KERNELS: dict[str, Any] = {
    "norm.rms": rowwise.RMSNorm(),
    "norm.add_rms": rowwise.AddRMSNorm(),
    "activation.glu": rowwise.Glu(),
    "linear": quantized.Linear(),
}
SCHEMES = [
    Scheme(weight=FP8, activation=FP8),
    Scheme(weight=FP8, activation=FP8, static=True),
    Scheme(weight=FP8, rows=128, group=128, activation=FP8, activation_group=128),
    Scheme(weight="int8", activation="int8"),
]


class OneByOne(OneOp):
    """Ops run by the kernels of the pack, composites as their parts."""

    def bind(self, op: str, spec: Any) -> Bound:
        if op == "linear" and spec.scheme is None:
            return linear.Linear().build(spec, self)
        return KERNELS.get(op, TABLE[op].reference).build(spec, self)


def context() -> Any:
    """Of a device without instructions that the interpreter does not have."""
    return OneByOne(TorchDevice(replace(INFO, arch="")))


def specs(
    scheme: Scheme | None, dtype: str, gemma: bool = False
) -> tuple[NormLinearSpec, NormMLPSpec]:
    norm = RMSNormSpec(dim=D, dtype=dtype, epsilon=1e-5)
    if gemma:
        norm = replace(norm, offset=1.0, cast_first=False)
    qkv = LinearSpec(in_features=D, out_features=192, dtype=dtype, bias=True, scheme=scheme)
    gated = GatedLinearSpec(
        in_features=D,
        size=F,
        dtype=dtype,
        scheme=scheme,
        activation="gelu_tanh" if gemma else "silu",
    )
    down = LinearSpec(in_features=F, out_features=D, dtype=dtype, scheme=scheme)
    return (
        NormLinearSpec(norm=norm, linear=qkv),
        NormMLPSpec(norm=norm, gated=gated, down=down),
    )


def both(impl: Any, op: str, spec: Any, weights: list[Any], *given: Any) -> list[list[Tensor]]:
    """What the kernels of the whole give, and those of the parts."""
    results = []
    for one in (impl, TABLE[op].reference):
        bound = one.build(spec, context())
        x, *rest = (None if t is None else t.clone() for t in given)
        results.append(list(bound.run(x, bound.prepack(*weights), *rest)))
    return results


@pytest.mark.parametrize("scheme", [None, *SCHEMES], ids=str)
@pytest.mark.parametrize("rows_alone", [True, False])
def test_the_whole_has_the_bits_of_its_parts(
    scheme: Scheme | None, rows_alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a product that rounds one row itself, and with one that does not."""
    tall = launch.Row(rows=64, block=128)  # a program takes the interpreter milliseconds
    monkeypatch.setattr(tuning, "bytes_row", lambda *_: tall if rows_alone else None)
    several = launch.Line(rows=128, programs=2)  # tiles each of gate and up; qkv's last is a half
    monkeypatch.setattr(tuning, "dense_row", lambda *_: several)
    gemma = scheme is not None and bool(scheme.group or scheme.weight == "int8")
    first_spec, mlp = specs(scheme, "float16", gemma or (scheme is None and rows_alone))
    products = (first_spec.linear, mlp.gated.linear, mlp.down)
    qkv, up, down = (linear_inputs(part, 3) for part in products)
    generator = torch.Generator().manual_seed(5)
    norm = torch.randn(D, generator=generator).half()
    for rows in (0, 1, 2, 3) if rows_alone else (1, 4, 70):
        x, residual = (torch.randn(rows, D, generator=generator).half() for _ in range(2))
        if rows > 1:
            x[1] = residual[1] = 0  # no largest value to divide by
        first, later = (
            both(normed.NormLinear(), "norm_linear", first_spec, [qkv["weight"], qkv["bias"]],
                 x, added, norm)
            for added in (None, residual)
        )  # fmt: skip
        last = both(normed.NormMLP(), "norm_mlp", mlp, [up["weight"], down["weight"]],
                    x, residual, norm)  # fmt: skip
        for whole, parts in (first, later, last):
            for got, want in zip(whole, parts, strict=True):
                assert got.isfinite().all()
                assert torch.equal(got, want)
        assert torch.equal(first[0][1], x)
        assert torch.equal(last[0][1], x + residual)


def test_results_are_those_of_the_references() -> None:
    """In int8 alone: the interpreter rounds FP8 wrongly where a value moves to the next power of
    two."""
    impls = {"norm_linear": normed.NormLinear(), "norm_mlp": normed.NormMLP()}
    for (op, impl), spec in zip(impls.items(), specs(SCHEMES[-1], "float32"), strict=True):
        given = TABLE[op].inputs(spec, 1)
        weights = [given.pop(n) for n in ("weight", "bias", "down") if n in given]
        wanted = TABLE[op].reference.build(spec, OneOp(TorchDevice(INFO)))
        bound = impl.build(spec, context())
        assert wanted.prepack is not None
        want, _ = wanted.run(given["x"], wanted.prepack(*weights), given["residual"], given["norm"])
        got, _ = bound.run(given["x"], bound.prepack(*weights), given["residual"], given["norm"])
        assert float((got - want).norm() / want.norm()) < 0.003


def test_supports_names_the_reason() -> None:
    device = TorchDevice(INFO)

    def code(impl: Any, spec: Any, where: Device = device) -> str:
        verdict = impl.supports(spec, where)
        return verdict.code if isinstance(verdict, Reject) else ""

    ampere = TorchDevice(replace(INFO, arch="sm_80"))
    impls = (normed.NormLinear(), normed.NormMLP())
    for impl, spec, wide in zip(
        impls, specs(SCHEMES[0], "bfloat16"), specs(SCHEMES[0], "float32"), strict=True
    ):
        assert code(impl, spec) == ""
        assert code(impl, wide) == "dtype"
        assert code(impl, spec, ampere) == "hardware"
    first, mlp = specs(SCHEMES[0], "bfloat16")
    for scheme in (None, Scheme(weight=FP8), Scheme(weight="int4", group=128)):
        plain = replace(first.linear, scheme=scheme)
        wanted = "feature" if scheme else ""
        assert code(normed.NormLinear(), replace(first, linear=plain)) == wanted
        down = replace(mlp.down, scheme=scheme)
        assert code(normed.NormMLP(), replace(mlp, down=down)) == "feature"  # of two kinds
    dense, mlp = specs(None, "bfloat16")
    assert code(normed.NormLinear(), dense) == code(normed.NormMLP(), mlp) == ""
    assert (
        code(normed.NormLinear(), replace(dense, linear=replace(dense.linear, in_features=100)))
        == "shape"
    )
    _, mlp = specs(SCHEMES[0], "bfloat16")
    long = replace(mlp.down, in_features=1 << 16)
    assert code(normed.NormMLP(), replace(mlp, down=long)) == "shape"


def test_deterministic_steps_and_named_parts_run_one_by_one() -> None:
    first, mlp = specs(SCHEMES[0], "bfloat16")
    device = TorchDevice(INFO)
    wholes = [("norm_linear", normed.NormLinear()), ("norm_mlp", normed.NormMLP())]

    def chosen(op: str, spec: Any, **overrides: str) -> str:
        named = {op.replace("__", "."): name for op, name in overrides.items()}
        resolver = Resolver(device, [*KERNELS.items(), *wholes], named)
        return resolver.resolve(op, spec).chosen.name

    for op, spec in (("norm_linear", first), ("norm_mlp", mlp)):
        assert chosen(op, spec) == f"triton.{op}"
        assert chosen(op, replace(spec, determinism="batch")) == "reference"
        assert chosen(op, spec, **{op: "reference"}) == "reference"
        assert chosen(op, spec, norm__add_rms="triton.add_rms") == "reference"
        assert chosen(op, spec, linear="reference") == "reference"  # in linear.glu, too
    assert chosen("norm_linear", first, activation__glu="reference") == "triton.norm_linear"
    assert chosen("norm_mlp", mlp, activation__glu="reference") == "reference"


@pytest.mark.parametrize(
    "target", [pytest.param(each, marks=pytest.mark.slow) for each in (HOPPER, CDNA3)]
)
def test_sums_over_a_row_have_one_order(target: str, tmp_path: Path) -> None:
    """Not seen by the interpreter, which has one layout."""
    for dim, *layouts in compiled("compile_normed.py", target, tmp_path):
        assert len(layouts) == 1, (dim, layouts)
