"""Token embedding."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferplane.hw.op import (
    EPSILON,
    Bound,
    BuildContext,
    Determinism,
    Op,
    Reference,
    Tolerance,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSpec:
    """`scale` multiplies the row after it was rounded to `dtype` (Gemma), and is itself rounded."""

    vocab: int
    dim: int
    dtype: str
    scale: float = 1.0
    determinism: Determinism = "run"


def embedding(spec: EmbeddingSpec, ctx: BuildContext) -> Bound:
    """run(ids i32[T], weight[V, d]) -> [T, d]"""
    import torch

    scale = torch.tensor(
        spec.scale, dtype=getattr(torch, spec.dtype), device=ctx.device.info.torch_device
    )

    def run(ids: "Tensor", weight: "Tensor") -> "Tensor":
        rows = weight.index_select(0, ids)
        return rows if spec.scale == 1.0 else rows * scale

    return Bound(run=run)


def _inputs(spec: EmbeddingSpec, seed: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(spec.vocab, spec.dim, generator=generator)
    return {
        "ids": torch.randint(0, spec.vocab, (17,), generator=generator, dtype=torch.int32),
        "weight": weight.to(getattr(torch, spec.dtype)),
    }


def _tolerance(spec: EmbeddingSpec) -> Tolerance:
    bound = 1.25 * EPSILON[spec.dtype]  # the scale and the product are rounded, half each
    return Tolerance(relative=bound, absolute=0.0, norm=bound)


OPS = (
    Op(
        name="embedding",
        spec=EmbeddingSpec,
        reference=Reference(embedding),
        tolerance=_tolerance,
        inputs=_inputs,
    ),
)
