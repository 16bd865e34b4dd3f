"""A norm and the products that read it as one op: where products take quantized inputs, whoever
implements the whole can deliver them quantized, without a way through memory."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inferplane.hw.op import (
    Bound,
    BuildContext,
    Determinism,
    Op,
    Packing,
    Reference,
    Tolerance,
    rounding,
)
from inferplane.hw.ops.gated import GatedLinearSpec
from inferplane.hw.ops.linear import LinearSpec, linear_inputs
from inferplane.hw.ops.norm import RMSNormSpec

if TYPE_CHECKING:
    from torch import Tensor

Parts = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NormLinearSpec:
    """y = linear(norm(x + residual))"""

    norm: RMSNormSpec
    linear: LinearSpec
    determinism: Determinism = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class NormMLPSpec:
    """y = down(gated(norm(x + residual))): a feed-forward with the norm before it"""

    norm: RMSNormSpec
    gated: GatedLinearSpec
    down: LinearSpec
    determinism: Determinism = "run"


def norm_linear(spec: NormLinearSpec, ctx: BuildContext) -> Bound:
    """prepack(weight[N, d] or QuantizedWeight, bias[N] | None) -> W
    run(x[T, d], W, residual[T, d] | None, norm[d]) -> (y[T, N], x + residual)

    Without a residual the sum is x. Implementations may overwrite x and residual, and return them.
    """
    alone, add, product = (ctx.bind(op, part) for op, part in _linear_parts(spec))

    def run(
        x: "Tensor", packed: Any, residual: "Tensor | None", norm: "Tensor"
    ) -> "tuple[Tensor, Tensor]":
        normed, total = (alone.run(x, norm), x) if residual is None else add.run(x, residual, norm)
        return product.run(normed, packed), total

    return Bound(run=run, prepack=product.prepack, packing=product.packing)


def norm_mlp(spec: NormMLPSpec, ctx: BuildContext) -> Bound:
    """prepack(weight[2F, d], gate's rows then up's, down[d, F]) -> W, each maybe a QuantizedWeight
    run(x[T, d], W, residual[T, d] | None, norm[d]) -> (y[T, d], x + residual)

    As norm_linear for the rest.
    """
    alone, add, gated, down = (ctx.bind(op, part) for op, part in _mlp_parts(spec))

    def prepack(weight: Any, other: Any) -> Any:
        assert gated.prepack is not None and down.prepack is not None
        return gated.prepack(weight), down.prepack(other)

    def run(
        x: "Tensor", packed: Any, residual: "Tensor | None", norm: "Tensor"
    ) -> "tuple[Tensor, Tensor]":
        normed, total = (alone.run(x, norm), x) if residual is None else add.run(x, residual, norm)
        return down.run(gated.run(normed, packed[0]), packed[1]), total

    return Bound(run=run, prepack=prepack, packing=_both(gated.packing, down.packing))


def _both(first: Packing | None, second: Packing | None) -> Packing | None:
    """The packing of two weights as one; None if one has none."""
    if first is None or second is None:
        return None
    each = {"0.": first, "1.": second}

    def save(packed: Any) -> "Mapping[str, Tensor]":
        made: dict[str, Tensor] = {}
        for (prefix, packing), weight in zip(each.items(), packed, strict=True):
            made |= {prefix + name: tensor for name, tensor in packing.save(weight).items()}
        return made

    def load(kept: "Mapping[str, Tensor]") -> Any:
        return tuple(
            packing.load({n[len(prefix) :]: t for n, t in kept.items() if n.startswith(prefix)})
            for prefix, packing in each.items()
        )

    return Packing(f"{first.form}, {second.form}", save, load)


def _norm_parts(norm: RMSNormSpec, strength: Determinism) -> Parts:
    norm = replace(norm, determinism=strength)
    return ("norm.rms", norm), ("norm.add_rms", norm)


def _linear_parts(spec: NormLinearSpec) -> Parts:
    """The parts are as deterministic as the whole must be."""
    strength = spec.determinism
    linear = replace(spec.linear, determinism=strength)
    return *_norm_parts(spec.norm, strength), ("linear", linear)


def _mlp_parts(spec: NormMLPSpec) -> Parts:
    strength = spec.determinism
    gated = replace(spec.gated, determinism=strength)
    down = replace(spec.down, determinism=strength)
    return *_norm_parts(spec.norm, strength), ("linear.glu", gated), ("linear", down)


def _inputs(spec: NormLinearSpec | NormMLPSpec, seed: int) -> dict[str, Any]:
    import torch

    made: dict[str, Any]
    if isinstance(spec, NormLinearSpec):
        made = linear_inputs(spec.linear, seed)
    else:
        made = linear_inputs(spec.gated.linear, seed)
        made["down"] = linear_inputs(spec.down, seed + 1)["weight"]
        del made["bias"]
    generator = torch.Generator().manual_seed(seed)
    x = made["x"]
    residual = torch.randn(x.shape, generator=generator).to(x.dtype) if seed % 4 else None
    norm = torch.randn(spec.norm.dim, generator=generator).to(x.dtype)
    return made | {"residual": residual, "norm": norm}


def _tolerance(dtype: str, width: int, products: list[LinearSpec]) -> Tolerance:
    """Quantized inputs are roundings of what was rounded to `dtype` before: those near the middle
    of two values become the other neighbour, 1/16 away on average in float8. That is what limits
    a sum of many, not its length; the sharp test of such kernels is that they have the bits of
    their parts."""
    steps = sum(bool(linear.scheme and linear.scheme.activation) for linear in products)
    if steps:
        return Tolerance(relative=0.25 * steps, absolute=0.25 * steps, norm=0.04 * steps)
    return rounding(dtype, width, factor=8.0 * len(products))


OPS = (
    Op(
        name="norm_linear",
        spec=NormLinearSpec,
        reference=Reference(norm_linear),
        tolerance=lambda spec: _tolerance(spec.norm.dtype, spec.norm.dim, [spec.linear]),
        inputs=_inputs,
        parts=_linear_parts,
        mutates=("x", "residual"),
    ),
    Op(
        name="norm_mlp",
        spec=NormMLPSpec,
        reference=Reference(norm_mlp),
        tolerance=lambda spec: _tolerance(
            spec.norm.dtype, spec.down.in_features, [spec.gated.linear, spec.down]
        ),
        inputs=_inputs,
        parts=_mlp_parts,
        mutates=("x", "residual"),
    ),
)
