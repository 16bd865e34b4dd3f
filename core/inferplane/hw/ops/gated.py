"""The first half of a gated feed-forward as one op: two products and the activation of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from inferplane.hw.op import Bound, BuildContext, Determinism, Op, Reference, Tolerance, rounding
from inferplane.hw.ops.activation import GluSpec
from inferplane.hw.ops.linear import LinearSpec, linear_inputs
from inferplane.hw.quantization import Scheme

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedLinearSpec:
    """y = act(x @ gate.T) * (x @ up.T), each with `size` = F rows; gate and up share a scheme."""

    in_features: int
    size: int
    dtype: str
    activation: Literal["silu", "gelu_tanh"] = "silu"
    scheme: Scheme | None = None
    determinism: Determinism = "run"

    @property
    def linear(self) -> LinearSpec:
        """Both products as one."""
        return LinearSpec(
            in_features=self.in_features,
            out_features=2 * self.size,
            dtype=self.dtype,
            scheme=self.scheme,
            determinism=self.determinism,
        )

    @property
    def glu(self) -> GluSpec:
        return GluSpec(
            size=self.size,
            dtype=self.dtype,
            activation=self.activation,
            determinism=self.determinism,
        )


def gated_linear(spec: GatedLinearSpec, ctx: BuildContext) -> Bound:
    """prepack(weight[2F, K], gate's rows then up's) -> W; run(x[T, K], W) -> [T, F]"""
    product, act = (ctx.bind(op, part) for op, part in _parts(spec))

    def run(x: "Tensor", packed: Any) -> "Tensor":
        out: Tensor = act.run(product.run(x, packed))
        return out

    return Bound(run=run, prepack=product.prepack, packing=product.packing)


def _parts(spec: GatedLinearSpec) -> tuple[tuple[str, Any], ...]:
    return ("linear", spec.linear), ("activation.glu", spec.glu)


def _inputs(spec: GatedLinearSpec, seed: int) -> dict[str, Any]:
    made = linear_inputs(spec.linear, seed)
    return {"x": made["x"], "weight": made["weight"]}


def _tolerance(spec: GatedLinearSpec) -> Tolerance:
    """Both factors are rounded before they meet."""
    return rounding(spec.dtype, spec.in_features, factor=8.0)


OPS = (
    Op(
        name="linear.glu",
        spec=GatedLinearSpec,
        reference=Reference(gated_linear),
        tolerance=_tolerance,
        inputs=_inputs,
        parts=_parts,
    ),
)
