"""Gated activations (Shazeer, arXiv 2002.05202): act(gate) * up."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from inferplane.hw.op import Bound, BuildContext, Determinism, Op, Reference, Tolerance, rounding
from inferplane.hw.ops.rowwise import rowwise

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GluSpec:
    """`size` is F: input [T, 2F] holds gate then up."""

    size: int
    dtype: str
    activation: Literal["silu", "gelu_tanh"] = "silu"
    determinism: Determinism = "run"


def glu(spec: GluSpec, ctx: BuildContext) -> Bound:
    """run(x[T, 2F]) -> [T, F]"""
    from functools import partial

    from torch.nn.functional import gelu, silu

    act: Callable[[Tensor], Tensor]
    act = silu if spec.activation == "silu" else partial(gelu, approximate="tanh")
    act = rowwise(act) if spec.determinism == "batch" else act

    def run(x: "Tensor") -> "Tensor":
        gate, up = x.split(spec.size, dim=-1)
        out: Tensor = act(gate) * up
        return out

    return Bound(run=run)


def _tolerance(spec: GluSpec) -> Tolerance:
    return rounding(spec.dtype, 16)


def _inputs(spec: GluSpec, seed: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    rows = int(torch.randint(1, 40, (), generator=generator))
    x = torch.randn(rows, 2 * spec.size, generator=generator) * 2
    return {"x": x.to(getattr(torch, spec.dtype))}


OPS = (
    Op(
        name="activation.glu",
        spec=GluSpec,
        reference=Reference(glu),
        tolerance=_tolerance,
        inputs=_inputs,
    ),
)
