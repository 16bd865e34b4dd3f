"""RMS norm (Zhang and Sennrich, arXiv 1910.07467), alone and with the residual add before it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inferplane.hw.op import Bound, BuildContext, Determinism, Op, Reference, Tolerance, rounding

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class RMSNormSpec:
    """y = x / rms(x) * (weight + offset), computed in float32.

    `cast_first`: the normalized value is rounded to `dtype` before it meets the weight (Llama);
    otherwise the product is rounded (Gemma, whose offset is 1).
    """

    dim: int
    dtype: str
    epsilon: float
    offset: float = 0.0
    cast_first: bool = True
    determinism: Determinism = "run"


def rms_norm(spec: RMSNormSpec, ctx: BuildContext) -> Bound:
    """run(x[..., d], weight[d]) -> y[..., d]"""

    def run(x: "Tensor", weight: "Tensor") -> "Tensor":
        wide = x.double() if x.element_size() == 8 else x.float()
        wide = wide * (wide.square().mean(-1, keepdim=True) + spec.epsilon).rsqrt()
        if spec.cast_first:
            return wide.to(x.dtype) * (weight + spec.offset if spec.offset else weight)
        return (wide * (weight.to(wide.dtype) + spec.offset)).to(x.dtype)

    return Bound(run=run)


def add_rms_norm(spec: RMSNormSpec, ctx: BuildContext) -> Bound:
    """run(x[..., d], residual[..., d], weight[d]) -> (y[..., d], x + residual)

    Implementations may overwrite x and residual, and return them.
    """
    norm = ctx.bind("norm.rms", spec).run

    def run(x: "Tensor", residual: "Tensor", weight: "Tensor") -> "tuple[Tensor, Tensor]":
        total = x + residual
        return norm(total, weight), total

    return Bound(run=run)


def tolerance(spec: RMSNormSpec) -> Tolerance:
    return rounding(spec.dtype, spec.dim)


def _inputs(spec: RMSNormSpec, seed: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, spec.dtype)
    rows = int(torch.randint(1, 40, (), generator=generator))
    return {
        "x": (torch.randn(rows, spec.dim, generator=generator) * 3).to(dtype),
        "weight": torch.randn(spec.dim, generator=generator).to(dtype),
    }


def _add_inputs(spec: RMSNormSpec, seed: int) -> dict[str, Any]:
    made = _inputs(spec, seed)
    return {
        "x": made["x"],
        "residual": _inputs(spec, seed)["x"].flip(0),
        "weight": made["weight"],
    }


OPS = (
    Op(
        name="norm.rms",
        spec=RMSNormSpec,
        reference=Reference(rms_norm),
        tolerance=tolerance,
        inputs=_inputs,
    ),
    Op(
        name="norm.add_rms",
        spec=RMSNormSpec,
        reference=Reference(add_rms_norm),
        tolerance=tolerance,
        inputs=_add_inputs,
        parts=lambda spec: (("norm.rms", replace(spec)),),
        mutates=("x", "residual"),
    ),
)
