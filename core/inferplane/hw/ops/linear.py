"""Matrix products with weights: `linear` inside the model and `logits` at its end.

The implementation owns the layout of its weights: `prepack` is called once when they are loaded,
`run` gets what it returned.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferplane.hw.op import Bound, BuildContext, Determinism, Op, Reference, Tolerance, rounding
from inferplane.hw.ops.rowwise import rowwise

if TYPE_CHECKING:
    from torch import Tensor

TILE = 64
"""Rows of a batch-invariant product. A library picks its kernel by the number of rows, so the
reference always multiplies this many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSpec:
    """y = x @ weight.T + bias. `scheme` names the weights' number format: "dense" is `dtype`."""

    in_features: int
    out_features: int
    dtype: str
    bias: bool = False
    scheme: str = "dense"
    determinism: Determinism = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsSpec:
    """f32 logits = h @ weight.T; softcap c > 0 turns x into c * tanh(x / c) (Gemma 2)."""

    dim: int
    vocab: int
    dtype: str
    softcap: float = 0.0
    scheme: str = "dense"
    determinism: Determinism = "run"


def tiled(x: "Tensor", weight: "Tensor", bias: "Tensor | None") -> "Tensor":
    """x[M, K] @ weight[N, K].T whose bits in a row do not depend on the other rows."""
    import torch
    from torch.nn.functional import linear, pad

    rows = x.shape[0]
    padded = pad(x, (0, 0, 0, -rows % TILE))
    parts = [linear(tile, weight, bias) for tile in padded.split(TILE)]
    return torch.cat(parts)[:rows] if parts else linear(x, weight, bias)


def linear(spec: LinearSpec, ctx: BuildContext) -> Bound:
    """prepack(weight[N, K], bias[N] | None) -> W; run(x[T, K], W) -> [T, N]"""
    from torch.nn.functional import linear as dense

    product = tiled if spec.determinism == "batch" else dense

    def prepack(weight: "Tensor", bias: "Tensor | None" = None) -> Any:
        return weight, bias

    def run(x: "Tensor", packed: Any) -> "Tensor":
        return product(x, packed[0], packed[1])

    return Bound(run=run, prepack=prepack)


def logits(spec: LogitsSpec, ctx: BuildContext) -> Bound:
    """prepack(weight[V, d]) -> W; run(h[N, d], W) -> f32[N, V]"""
    import torch
    from torch.nn.functional import linear as dense

    def cap(out: "Tensor") -> "Tensor":
        return spec.softcap * (out / spec.softcap).tanh()

    in_batch_mode = spec.determinism == "batch"
    product = tiled if in_batch_mode else dense
    capped = rowwise(cap) if in_batch_mode else cap

    def run(hidden: "Tensor", weight: "Tensor") -> "Tensor":
        out = product(hidden, weight, None)
        out = out if out.dtype == torch.float64 else out.float()
        return capped(out) if spec.softcap else out

    return Bound(run=run, prepack=lambda weight: weight)


def _rejects(spec: Any, device: Any) -> Any:
    from inferplane.hw.op import Reject

    if spec.scheme != "dense":
        return Reject("feature", f"no reference for scheme {spec.scheme}")
    return None


def _linear_inputs(spec: LinearSpec, seed: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, spec.dtype)
    rows = int(torch.randint(1, 100, (), generator=generator))
    k, n = spec.in_features, spec.out_features
    return {
        "x": torch.randn(rows, k, generator=generator).to(dtype),
        "weight": (torch.randn(n, k, generator=generator) / k**0.5).to(dtype),
        "bias": torch.randn(n, generator=generator).to(dtype) if spec.bias else None,
    }


def _logits_inputs(spec: LogitsSpec, seed: int) -> dict[str, Any]:
    made = _linear_inputs(
        LinearSpec(in_features=spec.dim, out_features=spec.vocab, dtype=spec.dtype), seed
    )
    return {"x": made["x"], "weight": made["weight"]}


def _tolerance(spec: LinearSpec) -> Tolerance:
    return rounding(spec.dtype, spec.in_features)


OPS = (
    Op(
        name="linear",
        spec=LinearSpec,
        reference=Reference(linear, _rejects),
        tolerance=_tolerance,
        inputs=_linear_inputs,
    ),
    Op(
        name="logits",
        spec=LogitsSpec,
        reference=Reference(logits, _rejects),
        tolerance=lambda spec: rounding(spec.dtype, spec.dim),
        inputs=_logits_inputs,
    ),
)
