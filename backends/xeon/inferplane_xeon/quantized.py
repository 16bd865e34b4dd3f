"""Products with quantized weights: packing, the kernel's arguments, and the contract's ops on it.

Inputs in int8 meet integer weights in integer dot products; everything else multiplies the exact
stored values in the model's type. Both sum groups in the order of K, so they are batch-invariant.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferplane.hw.op import Bound, BuildContext, Packing, Reject, describe
from inferplane.hw.ops.gated import GatedLinearSpec
from inferplane.hw.ops.linear import LinearSpec, LogitsSpec, scheme_problem
from inferplane.hw.quantization import QuantizedWeight, Scheme
from inferplane_xeon.kernels import GLU, LINEAR_BLOCK, in_turns, library, packed_form
from inferplane_xeon.memory import settle

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = {"int8": 0, "int4": 1, "float8_e4m3fn": 2}
INPUTS = {"": 0, "int8": 1, "float8_e4m3fn": 2}
MAX_INPUTS = 65536
"""products of int8 inputs that are sure to fit a 32 bit sum"""
HALF_ERROR = 2.0**-11
"""relative rounding error of float16 within its normal range"""


@dataclass(slots=True)
class PackedWeight:
    """A QuantizedWeight [N, K] in the kernel's order (csrc/abi.h, QuantLinearArgs)."""

    scheme: Scheme
    data: "Tensor"
    """u8, blocks of 48 columns"""
    group: int
    """inputs that share a scale, of the weights and of the inputs; 0: all"""
    half: bool
    """scales and offsets are float16"""
    unit: float
    """power of two that scales and offsets are multiplied by when used"""
    input_scale: "Tensor | None"
    bias: "Tensor | None" = None


def shared_inputs(scheme: Scheme, inputs: int) -> int:
    """In_features within which neither the weights' nor the inputs' scale changes; 0: all."""
    return min((g for g in (scheme.group, scheme.activation_group) if 0 < g < inputs), default=0)


def quant_problem(spec: LinearSpec | LogitsSpec) -> Reject | None:
    scheme = spec.scheme
    inputs = spec.in_features if isinstance(spec, LinearSpec) else spec.dim
    if scheme is None:
        return Reject("feature", "the weights are not quantized")
    if spec.dtype not in ("bfloat16", "float32"):
        return Reject("dtype", f"{spec.dtype}: kernels for bfloat16 and float32 alone")
    if scheme.activation == "int8" and scheme.weight == "float8_e4m3fn":
        return Reject("feature", f"no kernel for {describe(scheme)}")
    group = shared_inputs(scheme, inputs)
    if group % 8:
        return Reject("shape", f"groups of {group} are no multiple of 8")
    for size in (scheme.group, scheme.activation_group):
        if 0 < size < inputs and size % group:
            return Reject("shape", f"groups of {size} and {group} do not fit together")
    if scheme.activation == "int8" and (group or inputs) > MAX_INPUTS:
        return Reject("shape", f"{group or inputs} inputs in a group, at most {MAX_INPUTS}")
    return scheme_problem(scheme, inputs)


def pack(
    weight: QuantizedWeight, dtype: str, bias: "Tensor | None" = None, gated: bool = False
) -> PackedWeight:
    """The kernel's copy of a weight; `gated`: for a gated product.

    With several groups a row, a bfloat16 model's scales are kept as float16 (times a power of two
    for the whole tensor): 2^-12 of rounding in a scale, an eighth of what the result's own
    rounding adds. They stay float32 if their range does not fit.
    """
    import torch

    scheme, outputs, inputs = weight.scheme, weight.out_features, weight.in_features
    group = shared_inputs(scheme, inputs)
    groups = -(-inputs // group) if group else 1
    scale = _per_group(weight.scale, scheme, outputs, group, groups)
    offset = weight.offset
    if offset is not None:
        offset = _per_group(offset, scheme, outputs, group, groups)
        if scheme.weight == "int4":  # around the middle, or roundings of both would add up
            offset = offset + 8 * scale
    half, unit = False, 1.0
    if dtype == "bfloat16" and groups > 1:
        parts = [scale] if offset is None else [scale, offset]
        unit = _unit(max(float(part.abs().max()) for part in parts))
        rounded = [(part / unit).half() for part in parts]
        half = all(_close(r.float() * unit, part) for r, part in zip(rounded, parts, strict=True))
        if half:
            scale, offset = rounded[0], None if offset is None else rounded[1]
    unit = unit if half else 1.0
    stored = weight.values.contiguous()
    if gated:
        stored, scale = in_turns(stored), in_turns(scale)
        offset = None if offset is None else in_turns(offset)
        outputs = len(stored)
    blocks, depth = -(-outputs // LINEAR_BLOCK), -(-inputs // 8) * 8
    size = groups * scale.element_size() * (1 if offset is None else 2)  # of a column
    size += depth // (2 if scheme.weight == "int4" else 1)
    nbytes = blocks * (-(-size * LINEAR_BLOCK // 64) * 64)
    data = settle(torch.empty(nbytes, dtype=torch.uint8))
    library().quant_pack(
        stored.data_ptr(),
        scale.data_ptr(),
        0 if offset is None else offset.data_ptr(),
        data.data_ptr(),
        outputs,
        inputs,
        WEIGHTS[scheme.weight],
        group,
        half,
    )
    return PackedWeight(scheme, data, group, half, unit, weight.input_scale, bias)


def _per_group(scale: "Tensor", scheme: Scheme, outputs: int, group: int, groups: int) -> "Tensor":
    """A scale for each row and packed group, [N, groups]."""
    import torch

    scale = scale.float()
    if scheme.rows != 1:
        scale = scale.repeat_interleave(scheme.rows or outputs, dim=0)[:outputs]
    if scale.shape[1] != groups:
        start = torch.arange(groups) * group
        scale = scale[:, start // scheme.group if scheme.group else start * 0]
    return scale.contiguous()


def _unit(largest: float) -> float:
    """The power of two that brings a largest value just below float16's."""
    if not 0 < largest < math.inf:
        return 1.0
    return 2.0 ** (math.frexp(largest)[1] - 15)


def _close(rounded: "Tensor", exact: "Tensor") -> bool:
    return bool(((rounded - exact).abs() <= HALF_ERROR * exact.abs()).all())


def packing(scheme: Scheme, inputs: int) -> Packing:
    """PackedWeight as tensors; scheme and group follow from the spec."""
    import torch

    def save(packed: PackedWeight) -> "dict[str, Tensor]":
        kept = {"data": packed.data, "input_scale": packed.input_scale, "bias": packed.bias}
        if packed.half:
            kept["unit"] = torch.tensor(packed.unit, dtype=torch.float64)
        return {name: tensor for name, tensor in kept.items() if tensor is not None}

    def load(kept: "Mapping[str, Tensor]") -> PackedWeight:
        half = "unit" in kept
        return PackedWeight(
            scheme=scheme,
            data=kept["data"],
            group=shared_inputs(scheme, inputs),
            half=half,
            unit=float(kept["unit"]) if half else 1.0,
            input_scale=kept.get("input_scale"),
            bias=kept.get("bias"),
        )

    return Packing(packed_form(), save, load)


def quant_linear(
    x: "Tensor", packed: PackedWeight, out: "Tensor", *, softcap: float = 0.0, glu: str = ""
) -> "Tensor":
    """x [M, K] times the packed weights, plus their bias -> out [M, N] of x's type or float32."""
    scheme = packed.scheme
    rows, outputs = out.shape
    library().quant_linear(
        x.data_ptr(),
        packed.data.data_ptr(),
        0 if packed.bias is None else packed.bias.data_ptr(),
        out.data_ptr(),
        0 if packed.input_scale is None else packed.input_scale.data_ptr(),
        rows,
        x.shape[1],
        outputs,
        x.stride(0),
        WEIGHTS[scheme.weight],
        INPUTS[scheme.activation],
        packed.group,
        scheme.activation_group,
        scheme.asymmetric,
        packed.half,
        packed.unit,
        out.element_size() == 4,
        softcap,
        x.element_size() == 4,
        GLU[glu],
    )
    return out


def linear(spec: LinearSpec, ctx: BuildContext) -> Bound:
    outputs, dtype = spec.out_features, spec.dtype
    assert spec.scheme is not None

    def prepack(weight: QuantizedWeight, bias: "Tensor | None" = None) -> PackedWeight:
        return pack(weight, dtype, bias)

    def run(x: "Tensor", packed: PackedWeight) -> "Tensor":
        return quant_linear(x, packed, ctx.empty((x.shape[0], outputs), dtype))

    return Bound(run=run, prepack=prepack, packing=packing(spec.scheme, spec.in_features))


def gated_linear(spec: GatedLinearSpec, ctx: BuildContext) -> Bound:
    size, dtype, activation = spec.size, spec.dtype, spec.activation
    assert spec.scheme is not None

    def prepack(weight: QuantizedWeight) -> PackedWeight:
        return pack(weight, dtype, gated=True)

    def run(x: "Tensor", packed: PackedWeight) -> "Tensor":
        return quant_linear(x, packed, ctx.empty((x.shape[0], size), dtype), glu=activation)

    return Bound(run=run, prepack=prepack, packing=packing(spec.scheme, spec.in_features))


def logits(spec: LogitsSpec, ctx: BuildContext) -> Bound:
    vocab, softcap, dtype = spec.vocab, spec.softcap, spec.dtype
    assert spec.scheme is not None

    def prepack(weight: QuantizedWeight) -> PackedWeight:
        return pack(weight, dtype)

    def run(hidden: "Tensor", packed: PackedWeight) -> "Tensor":
        out = ctx.empty((hidden.shape[0], vocab), "float32")
        return quant_linear(hidden, packed, out, softcap=softcap)

    return Bound(run=run, prepack=prepack, packing=packing(spec.scheme, spec.dim))
