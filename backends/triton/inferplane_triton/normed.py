"""norm_linear and norm_mlp over FP8 or INT8 weights with quantized inputs: the kernel that makes
the inputs of a product quantizes them, unless the product of so many rows does it itself. Bits
are those of the ops one by one."""

from typing import TYPE_CHECKING, Any

from inferplane.hw import Bound, BuildContext, Device, Reject, Support
from inferplane.hw.op import describe
from inferplane.hw.ops.activation import GluSpec
from inferplane.hw.ops.linear import LinearSpec
from inferplane.hw.ops.norm import RMSNormSpec
from inferplane.hw.ops.normed import NormLinearSpec, NormMLPSpec
from inferplane.hw.quantization import QuantizedWeight
from inferplane_triton import quantized, rowwise
from inferplane_triton.attention import next_power, overlapped
from inferplane_triton.kernels import rowwise as kernels
from inferplane_triton.packed import Bytes, pack_bytes
from inferplane_triton.quantized import BytesProduct

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 32768
"""values that one program rounds with a scale of their own"""


def _supports(norm: RMSNormSpec, products: list[LinearSpec], device: Device) -> Support | Reject:
    for linear in products:
        if linear.scheme is None or not linear.scheme.activation:
            return Reject("feature", "inputs that are not quantized")
        verdict = quantized.Linear().supports(linear, device)
        if isinstance(verdict, Reject):
            return verdict
        if linear.in_features > LONGEST:
            return Reject("shape", f"rows of {linear.in_features} elements do not fit one program")
    known = rowwise.RMSNorm().supports(norm, device)
    if isinstance(known, Reject):
        return known
    inputs = ", ".join(dict.fromkeys(describe(p.scheme) for p in products))
    return Support(priority=60, invariance="run", notes=f"inputs rounded on the way: {inputs}")


class Normed:
    """A product of norm(x + residual)"""

    def __init__(self, norm: RMSNormSpec, linear: LinearSpec, ctx: BuildContext) -> None:
        assert linear.scheme is not None
        self._spec, self._static = norm, linear.scheme.static
        self._product = BytesProduct(linear, linear.out_features, linear.in_features, ctx)
        self._alone = rowwise.RMSNorm().build(norm, ctx).run
        self._add = rowwise.AddRMSNorm().build(norm, ctx).run
        self._early = overlapped(ctx.device)

    def __call__(
        self, x: "Tensor", residual: "Tensor | None", weight: "Tensor", w: Bytes,
        bias: "Tensor | None",
    ) -> "tuple[Tensor, Tensor]":  # fmt: skip
        """(norm(x + residual) @ W.T + bias, x + residual)"""
        if not self._product.rounds(x.shape[0]):
            q, scale, total = self._rounded(x.contiguous(), residual, weight, w)
            return self._product.multiply(q, scale, w, bias), total
        if residual is None:
            return self._product(self._alone(x, weight), w, bias), x
        normed, total = self._add(x, residual, weight)
        return self._product(normed, w, bias), total

    def _rounded(
        self, x: "Tensor", residual: "Tensor | None", weight: "Tensor", w: Bytes
    ) -> "tuple[Tensor, Tensor, Tensor]":
        spec, block = self._spec, next_power(self._spec.dim)
        q, scale = self._product.outputs(*x.shape)
        total = x if residual is None else x.new_empty(x.shape)
        kernels.rms_quantize[(x.shape[0],)](
            x, None if residual is None else residual.contiguous(), weight, w.input_scale,
            q, scale, total, spec.dim,
            EPSILON=spec.epsilon, OFFSET=spec.offset, CAST_FIRST=spec.cast_first, BLOCK=block,
            GROUP=self._product.group or block, STATIC=self._static, ADD=residual is not None,
            num_warps=rowwise.warps(spec.dim), **self._early,
        )  # fmt: skip
        return q, scale, total


class Gated:
    """A product of act(gate) * up"""

    def __init__(self, glu: GluSpec, linear: LinearSpec, ctx: BuildContext) -> None:
        assert linear.scheme is not None
        self._spec, self._static = glu, linear.scheme.static
        self._product = BytesProduct(linear, linear.out_features, linear.in_features, ctx)
        self._alone = rowwise.Glu().build(glu, ctx).run
        self._early = overlapped(ctx.device)
        in_parts = self._static or self._product.group
        self._block = min(1024 if in_parts else LONGEST, next_power(glu.size))
        self._warps = 16 if self._block > 8192 else 8 if self._block > 1024 else 4

    def __call__(self, x: "Tensor", w: Bytes, bias: "Tensor | None") -> "Tensor":
        """x [T, 2F], gate then up"""
        rows, size, block = x.shape[0], self._spec.size, self._block
        if self._product.rounds(rows):
            return self._product(self._alone(x), w, bias)
        q, scale = self._product.outputs(rows, size)
        kernels.glu_quantize[rows, -(-size // block)](
            x, w.input_scale, q, scale, size, GELU=self._spec.activation == "gelu_tanh",
            BLOCK=block, GROUP=self._product.group or block, STATIC=self._static,
            num_warps=self._warps, **self._early,
        )  # fmt: skip
        return self._product.multiply(q, scale, w, bias)


class NormLinear:
    name = "triton.norm_linear"

    def supports(self, spec: NormLinearSpec, device: Device) -> Support | Reject:
        return _supports(spec.norm, [spec.linear], device)

    def build(self, spec: NormLinearSpec, ctx: BuildContext) -> Bound:
        product = Normed(spec.norm, spec.linear, ctx)

        def prepack(weight: QuantizedWeight, bias: "Tensor | None" = None) -> Any:
            return pack_bytes(weight), bias

        def run(
            x: "Tensor", packed: Any, residual: "Tensor | None", norm: "Tensor"
        ) -> "tuple[Tensor, Tensor]":
            return product(x, residual, norm, *packed)

        return Bound(run=run, prepack=prepack)


class NormMLP:
    name = "triton.norm_mlp"

    def supports(self, spec: NormMLPSpec, device: Device) -> Support | Reject:
        return _supports(spec.norm, [spec.gated.linear, spec.down], device)

    def build(self, spec: NormMLPSpec, ctx: BuildContext) -> Bound:
        both = Normed(spec.norm, spec.gated.linear, ctx)
        down = Gated(spec.gated.glu, spec.down, ctx)

        def prepack(weight: QuantizedWeight, other: QuantizedWeight) -> Any:
            return pack_bytes(weight), pack_bytes(other)

        def run(
            x: "Tensor", packed: Any, residual: "Tensor | None", norm: "Tensor"
        ) -> "tuple[Tensor, Tensor]":
            gate_up, total = both(x, residual, norm, packed[0], None)
            return down(gate_up, packed[1], None), total

        return Bound(run=run, prepack=prepack)
