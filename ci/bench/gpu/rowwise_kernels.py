"""What rowwise.py times that is no op of the contract: the kernels that quantize what they make,
each inside a composite of the engine, and one that does nothing."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from inferplane.hw import Bound, BuildContext, Device, Reject, Support
from inferplane.hw.ops.normed import NormLinearSpec, NormMLPSpec
from inferplane_triton.attention import overlapped
from inferplane_triton.normed import Gated, Normed, NormLinear, NormMLP

PLAIN: Any = SimpleNamespace(input_scale=None)
"""a weight whose inputs have scales that depend on them"""


@triton.jit
def nothing(PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


def launch_nothing(device: Device) -> None:
    """A kernel that costs what starting and ending one costs, launched as those of the engine."""
    nothing[(1,)](num_warps=4, **overlapped(device))


@dataclass(frozen=True, slots=True)
class Behind:
    """In the place of the product that reads a quantized result: the result is what it is given.
    So the kernel is launched as the engine does it, and alone."""

    product: Any

    @property
    def group(self) -> int:
        return int(self.product.group)

    def rounds(self, rows: int) -> bool:
        return False

    def outputs(self, rows: int, width: int) -> tuple[Tensor, Tensor]:
        made: tuple[Tensor, Tensor] = self.product.outputs(rows, width)
        return made

    def multiply(self, q: Tensor, scale: Tensor, w: Any, bias: Any) -> tuple[Tensor, Tensor]:
        return q, scale


class AddRMSNormQuantize:
    """run(x[T, d], residual[T, d], weight[d]) -> ((q[T, d], scale f32[T, groups]), x + residual)"""

    name = "triton.rms_quantize"

    def supports(self, spec: NormLinearSpec, device: Device) -> Support | Reject:
        return NormLinear().supports(spec, device)

    def build(self, spec: NormLinearSpec, ctx: BuildContext) -> Bound:
        made = Normed(spec.norm, spec.linear, ctx)
        made._product = Behind(made._product)

        def run(x: Tensor, residual: Tensor, weight: Tensor) -> Any:
            return made(x, residual, weight, PLAIN, None)

        return Bound(run=run)


class GluQuantize:
    """run(x[T, 2F]) -> (q[T, F], scale f32[T, groups])"""

    name = "triton.glu_quantize"

    def supports(self, spec: NormMLPSpec, device: Device) -> Support | Reject:
        return NormMLP().supports(spec, device)

    def build(self, spec: NormMLPSpec, ctx: BuildContext) -> Bound:
        made = Gated(spec.gated.glu, spec.down, ctx)
        made._product = Behind(made._product)

        def run(x: Tensor) -> Any:
            return made(x, PLAIN, None)

        return Bound(run=run)


QUANTIZING = {
    "norm.add_rms/fp8": AddRMSNormQuantize(),
    "activation.glu/fp8": GluQuantize(),
}
