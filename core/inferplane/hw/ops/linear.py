"""Matrix products with weights: `linear` inside the model and `logits` at its end.

The implementation owns the layout of its weights: `prepack` is called once when they are loaded,
`run` gets what it returned. Weights are a dense tensor, or a QuantizedWeight where the spec has a
scheme.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inferplane.hw.op import (
    Bound,
    BuildContext,
    Determinism,
    Op,
    Reference,
    Reject,
    rounding,
)
from inferplane.hw.ops.rowwise import rowwise
from inferplane.hw.quantization import (
    LARGEST,
    QuantizedWeight,
    Scheme,
    dequantize,
    part,
    quantize,
    quantize_input,
    spread,
)

if TYPE_CHECKING:
    from torch import Tensor

TILE = 64
"""Rows of a batch-invariant product. A library picks its kernel by the number of rows, so the
reference always multiplies this many."""

WEIGHT_TILE = 1 << 20
"""values of a quantized weight that the reference holds dequantized at a time, about"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSpec:
    """y = x @ weight.T + bias. `scheme`: None if the weights are dense and in `dtype`."""

    in_features: int
    out_features: int
    dtype: str
    bias: bool = False
    scheme: Scheme | None = None
    determinism: Determinism = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsSpec:
    """f32 logits = h @ weight.T; softcap c > 0 turns x into c * tanh(x / c) (Gemma 2)."""

    dim: int
    vocab: int
    dtype: str
    softcap: float = 0.0
    scheme: Scheme | None = None
    determinism: Determinism = "run"


def tiled(x: "Tensor", weight: "Tensor", bias: "Tensor | None") -> "Tensor":
    """x[M, K] @ weight[N, K].T whose bits in a row do not depend on the other rows."""
    import torch
    from torch.nn.functional import linear, pad

    rows = x.shape[0]
    padded = pad(x, (0, 0, 0, -rows % TILE))
    parts = [linear(tile, weight, bias) for tile in padded.split(TILE)]
    return torch.cat(parts)[:rows] if parts else linear(x, weight, bias)


def dense(x: "Tensor", weight: "Tensor", bias: "Tensor | None") -> "Tensor":
    from torch.nn.functional import linear

    return linear(x, weight, bias)


@dataclass(frozen=True, slots=True)
class Quantized:
    """The product with a QuantizedWeight, whose rows are dequantized a tile at a time.

    Weight-only schemes multiply in `dtype`. With quantized inputs the products are those of the
    exact values, summed in float32, as if a kernel summed q_x * q_w exactly in each block.
    """

    scheme: Scheme
    dtype: str
    product: "Callable[[Tensor, Tensor, Tensor | None], Tensor]"

    def __call__(self, x: "Tensor", weight: QuantizedWeight, bias: "Tensor | None") -> "Tensor":
        import torch

        given, dtype = x.dtype, self.dtype
        if self.scheme.activation:
            dtype = "float64" if dtype == "float64" else "float32"
            kind = getattr(torch, dtype)
            values, scale = quantize_input(x, self.scheme, weight.input_scale)
            x = values.to(kind) * spread(scale.to(kind), self.scheme.activation_group, values)
            bias = None if bias is None else bias.to(kind)
        step = max(1, WEIGHT_TILE // weight.in_features)
        if self.scheme.rows:
            step = -(-step // self.scheme.rows) * self.scheme.rows
        parts = []
        for start in range(0, weight.out_features, step):
            stop = min(start + step, weight.out_features)
            tile = dequantize(part(weight, start, stop), dtype)
            parts.append(self.product(x, tile, None if bias is None else bias[start:stop]))
        return torch.cat(parts, dim=1).to(given)


def _product(spec: "LinearSpec | LogitsSpec") -> Any:
    product = tiled if spec.determinism == "batch" else dense
    return Quantized(spec.scheme, spec.dtype, product) if spec.scheme else product


def linear(spec: LinearSpec, ctx: BuildContext) -> Bound:
    """prepack(weight[N, K] or QuantizedWeight, bias[N] | None) -> W; run(x[T, K], W) -> [T, N]"""
    product = _product(spec)

    def prepack(weight: Any, bias: "Tensor | None" = None) -> Any:
        return weight, bias

    def run(x: "Tensor", packed: Any) -> "Tensor":
        out: Tensor = product(x, packed[0], packed[1])
        return out

    return Bound(run=run, prepack=prepack)


def logits(spec: LogitsSpec, ctx: BuildContext) -> Bound:
    """prepack(weight[V, d] or QuantizedWeight) -> W; run(h[N, d], W) -> f32[N, V]"""
    import torch

    def cap(out: "Tensor") -> "Tensor":
        return spec.softcap * (out / spec.softcap).tanh()

    product = _product(spec)
    capped = rowwise(cap) if spec.determinism == "batch" else cap

    def run(hidden: "Tensor", weight: Any) -> "Tensor":
        out = product(hidden, weight, None)
        out = out if out.dtype == torch.float64 else out.float()
        return capped(out) if spec.softcap else out

    return Bound(run=run, prepack=lambda weight: weight)


def scheme_problem(scheme: Scheme | None, in_features: int) -> Reject | None:
    """Why no weight of this width has the scheme."""
    if scheme and scheme.weight == "int4" and in_features % 2:
        return Reject("shape", f"int4 packs two in_features in a byte, {in_features} is odd")
    return None


def linear_inputs(spec: LinearSpec, seed: int) -> dict[str, Any]:
    """x [T, K], weight [N, K] or quantized, and bias [N] | None."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, spec.dtype)
    rows = int(torch.randint(1, 100, (), generator=generator))
    k, n = spec.in_features, spec.out_features
    x = torch.randn(rows, k, generator=generator)
    weight: Any = torch.randn(n, k, generator=generator) / k**0.5
    bias = torch.randn(n, generator=generator).to(dtype) if spec.bias else None
    if spec.scheme is None:
        return {"x": x.to(dtype), "weight": weight.to(dtype), "bias": bias}
    weight = quantize(weight, replace(spec.scheme, static=False))
    weight.scheme = spec.scheme
    if spec.scheme.activation:
        x = _even_steps(x, spec.scheme, generator)
    if spec.scheme.static:  # the inputs beyond 2 or so are cut off
        weight.input_scale = torch.tensor([2.0 / 2 ** LARGEST[spec.scheme.activation].bit_length()])
    return {"x": x.to(dtype), "weight": weight, "bias": bias}


def _even_steps(x: "Tensor", scheme: Scheme, generator: Any) -> "Tensor":
    """Inputs whose scales are powers of two. A kernel may multiply by the reciprocal of a scale,
    which rounds a value that is nearly halfway to the other side; here both are exact."""
    import torch

    largest = LARGEST[scheme.activation]
    groups = []
    for group in x.split(scheme.activation_group or x.shape[1], dim=1):
        exponent = torch.randint(-2, 3, (len(x), 1), generator=generator)
        top = largest / 2.0 ** (largest.bit_length() - 2 + exponent)  # about 1 to 16
        group = (group * top / 4).clamp(-top, top)
        place = torch.randint(group.shape[1], (len(x), 1), generator=generator)
        groups.append(group.scatter(1, place, top))
    return torch.cat(groups, dim=1)


def _logits_inputs(spec: LogitsSpec, seed: int) -> dict[str, Any]:
    as_linear = LinearSpec(
        in_features=spec.dim, out_features=spec.vocab, dtype=spec.dtype, scheme=spec.scheme
    )
    made = linear_inputs(as_linear, seed)
    return {"x": made["x"], "weight": made["weight"]}


OPS = (
    Op(
        name="linear",
        spec=LinearSpec,
        reference=Reference(linear, lambda spec, _: scheme_problem(spec.scheme, spec.in_features)),
        tolerance=lambda spec: rounding(spec.dtype, spec.in_features),
        inputs=linear_inputs,
    ),
    Op(
        name="logits",
        spec=LogitsSpec,
        reference=Reference(logits, lambda spec, _: scheme_problem(spec.scheme, spec.dim)),
        tolerance=lambda spec: rounding(spec.dtype, spec.dim),
        inputs=_logits_inputs,
    ),
)
