"""FP8 products through torch._scaled_mm (cuBLAS and CUTLASS) for any number of rows.

Inputs are quantized by torch, a handful of launches: a pack with kernels of its own is faster.
"""

from typing import TYPE_CHECKING, Any

from inferplane.hw import Bound, BuildContext, Device, Reject, Support
from inferplane.hw.ops.linear import LinearSpec, LogitsSpec
from inferplane.hw.quantization import QuantizedWeight, quantize_input

if TYPE_CHECKING:
    from torch import Tensor

FP8 = "float8_e4m3fn"
MULTIPLE = 16
"""of both sides of a weight"""


def _supports(
    spec: LinearSpec | LogitsSpec, device: Device, columns: int, width: int
) -> Support | Reject:
    scheme = spec.scheme
    if scheme is None:
        return Reject("feature", "dense weights are cuda.cublas's")
    if (scheme.weight, scheme.activation) != (FP8, FP8):
        return Reject("feature", f"{scheme.weight} weights, inputs {scheme.activation or 'plain'}")
    if scheme.group or scheme.activation_group:
        return Reject("feature", "scales of blocks")
    if spec.dtype != "bfloat16":
        return Reject("dtype", f"scales of rows give bfloat16, not {spec.dtype}")
    if columns % MULTIPLE or width % MULTIPLE:
        return Reject("shape", f"{columns} x {width} are not multiples of {MULTIPLE}")
    arch = device.info.arch
    if not arch.startswith("sm_") or int(arch[3:]) < 90:
        return Reject("hardware", f"{arch or device.info.name}: scales of rows need sm_90")
    return Support(priority=50, invariance="run", notes="torch._scaled_mm")


def _prepack(weight: QuantizedWeight) -> "tuple[Tensor, Tensor, QuantizedWeight]":
    rows = weight.out_features
    scale = weight.scale.repeat_interleave(weight.scheme.rows or rows, dim=0)[:rows]
    return weight.values.contiguous(), scale.T.contiguous(), weight


def _product(x: "Tensor", packed: Any, bias: "Tensor | None") -> "Tensor":
    import torch

    values, scale, weight = packed
    if not len(x):
        return x.new_empty((0, len(values)))
    q, input_scale = quantize_input(x, weight.scheme, weight.input_scale)
    return torch._scaled_mm(
        q, values.T, scale_a=input_scale.expand(len(x), 1).contiguous(), scale_b=scale,
        bias=bias, out_dtype=x.dtype,
    )  # fmt: skip


class Linear:
    name = "cuda.scaled_mm"

    def supports(self, spec: LinearSpec, device: Device) -> Support | Reject:
        return _supports(spec, device, spec.out_features, spec.in_features)

    def build(self, spec: LinearSpec, ctx: BuildContext) -> Bound:
        def prepack(weight: QuantizedWeight, bias: "Tensor | None" = None) -> Any:
            return _prepack(weight), bias

        def run(x: "Tensor", packed: Any) -> "Tensor":
            return _product(x, packed[0], packed[1])

        return Bound(run=run, prepack=prepack)


class Logits:
    name = "cuda.scaled_mm"

    def supports(self, spec: LogitsSpec, device: Device) -> Support | Reject:
        return _supports(spec, device, spec.vocab, spec.dim)

    def build(self, spec: LogitsSpec, ctx: BuildContext) -> Bound:
        def run(hidden: "Tensor", weight: Any) -> "Tensor":
            out = _product(hidden, weight, None).float()
            return spec.softcap * (out / spec.softcap).tanh() if spec.softcap else out

        return Bound(run=run, prepack=_prepack)
