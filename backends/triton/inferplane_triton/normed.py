"""norm_linear and norm_mlp.

Over FP8 or INT8 weights with quantized inputs the kernel that makes the inputs of a product
quantizes them, unless the product of so many rows does it itself. Bits are those of the ops one by
one. Over dense weights the product of one row, or of two where W is small, makes its input
itself, and the gated activation: three launches fewer in a layer, which take 6 us of 17 in
Qwen3-0.6B.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from inferplane.hw import Bound, BuildContext, Device, Reject, Support
from inferplane.hw.op import describe
from inferplane.hw.ops.activation import GluSpec
from inferplane.hw.ops.linear import LinearSpec
from inferplane.hw.ops.norm import RMSNormSpec
from inferplane.hw.ops.normed import NormLinearSpec, NormMLPSpec
from inferplane_triton import launch, quantized, rowwise, tuning
from inferplane_triton.attention import core_count, next_power, overlapped
from inferplane_triton.kernels import rowwise as kernels
from inferplane_triton.linear import Linear, own_or_library
from inferplane_triton.packed import Bytes, pack_bytes
from inferplane_triton.quantized import BytesProduct

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 32768
"""values that one program rounds with a scale of their own"""


def _supports(norm: RMSNormSpec, products: list[LinearSpec], device: Device) -> Support | Reject:
    dense = all(linear.scheme is None for linear in products)
    for linear in products:
        if not dense and (linear.scheme is None or not linear.scheme.activation):
            return Reject("feature", "inputs that are not quantized")
        known = Linear() if dense else quantized.Linear()
        verdict = known.supports(linear, device)
        if isinstance(verdict, Reject):
            return verdict
        if linear.in_features > LONGEST and not dense:
            return Reject("shape", f"rows of {linear.in_features} elements do not fit one program")
    verdict = rowwise.RMSNorm().supports(norm, device)
    if isinstance(verdict, Reject):
        return verdict
    if dense:
        return Support(priority=60, invariance="run", notes="one kernel for few rows")
    inputs = ", ".join(dict.fromkeys(describe(p.scheme) for p in products))
    return Support(priority=60, invariance="run", notes=f"inputs rounded on the way: {inputs}")


class Dense:
    """A product of norm(x + residual), and the gated activation of it if `glu`"""

    def __init__(
        self, norm: RMSNormSpec, linear: LinearSpec, ctx: BuildContext, glu: GluSpec | None = None
    ) -> None:
        columns, width = linear.out_features, linear.in_features
        self._spec, self._size = norm, glu.size if glu else columns
        self._product = own_or_library(columns, width, ctx)
        self._alone = rowwise.RMSNorm().build(norm, ctx).run
        self._add = rowwise.AddRMSNorm().build(norm, ctx).run
        self._activation = glu.activation if glu else ""
        self._activate = rowwise.Glu().build(glu, ctx).run if glu else None
        pdl = bool(overlapped(ctx.device)["PDL"])
        shape = self._size, width, core_count(ctx.device), glu is not None, pdl
        self._lines = tuning.dense_row(*shape), tuning.dense_several(*shape)

    def __call__(
        self, x: "Tensor", residual: "Tensor | None", weight: "Tensor", w: "Tensor",
        bias: "Tensor | None",
    ) -> "tuple[Tensor, Tensor]":  # fmt: skip
        """(act(norm(x + residual) @ W.T + bias), x + residual)"""
        if line := launch.line(x.shape[0], *self._lines):
            total = x if residual is None else x.new_empty(x.shape)
            y = x.new_empty((x.shape[0], self._size))
            residual = None if residual is None else residual.contiguous()
            norm = launch.Norm(self._spec, weight, residual, total)
            launch.dense_rows(x.contiguous(), w, bias, y, line, norm, self._activation)
            return y, total
        normed, total = (
            (self._alone(x, weight), x) if residual is None else self._add(x, residual, weight)
        )
        y = self._product(normed, w, bias)
        return (self._activate(y) if self._activate else y), total


class Normed:
    """A product of norm(x + residual) that is quantized"""

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


def _contiguous(weight: "Tensor") -> "Tensor":
    return weight.contiguous()


class NormLinear:
    name = "triton.norm_linear"

    def supports(self, spec: NormLinearSpec, device: Device) -> Support | Reject:
        return _supports(spec.norm, [spec.linear], device)

    def build(self, spec: NormLinearSpec, ctx: BuildContext) -> Bound:
        dense = spec.linear.scheme is None
        product = (Dense if dense else Normed)(spec.norm, spec.linear, ctx)
        pack: Callable[[Any], Any] = _contiguous if dense else pack_bytes

        def prepack(weight: Any, bias: "Tensor | None" = None) -> Any:
            return pack(weight), bias

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
        linear, glu, down = spec.gated.linear, spec.gated.glu, spec.down
        first: Dense | Normed
        second: Callable[..., Tensor]
        pack: Callable[[Any], Any]
        if linear.scheme is None:
            first, pack = Dense(spec.norm, linear, ctx, glu), _contiguous
            second = own_or_library(down.out_features, down.in_features, ctx)
        else:
            first, pack = Normed(spec.norm, linear, ctx), pack_bytes
            second = Gated(glu, down, ctx)

        def prepack(weight: Any, other: Any) -> Any:
            return pack(weight), pack(other)

        def run(
            x: "Tensor", packed: Any, residual: "Tensor | None", norm: "Tensor"
        ) -> "tuple[Tensor, Tensor]":
            hidden, total = first(x, residual, norm, packed[0], None)
            return second(hidden, packed[1], None), total

        return Bound(run=run, prepack=prepack)
