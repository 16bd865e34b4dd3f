"""Quantized weights as the kernels read them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferplane.hw import Reject
from inferplane.hw.quantization import QuantizedWeight, Scheme

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 128
"""FP8 blocks have this many rows and columns"""
GROUPS = (32, 64, 128)


@dataclass(frozen=True, slots=True)
class Bytes:
    """fp8 or int8 weights."""

    values: "Tensor"
    """[N, K]"""
    scale: "Tensor"
    """f32 [N], or [N / 128, K / 128] if blocked"""
    blocked: bool
    activation: bool
    """inputs are quantized, too"""
    input_scale: "Tensor | None"
    """f32 [1]: static"""


@dataclass(frozen=True, slots=True)
class Nibbles:
    """int4 weights."""

    words: "Tensor"
    """i32 [N, K / 8]; nibble j of word 4 t + i is the weight of k = 32 t + 4 j + i"""
    scale: "Tensor"
    """[K / group, N] f32, or f16 where that is exact"""
    offset: "Tensor | None"
    group: int


def problem(scheme: Scheme, in_features: int, out_features: int) -> Reject | None:
    """Why the kernels cannot read weights of a scheme."""
    if in_features % 128:
        return Reject("shape", f"{in_features} input features are not a multiple of 128")
    if out_features % 64:
        return Reject("shape", f"{out_features} output features are not a multiple of 64")
    if scheme.weight == "int4":
        group = scheme.group or in_features
        if scheme.activation:
            return Reject("feature", "int4 weights with quantized inputs")
        if scheme.rows != 1:
            return Reject("feature", f"int4 scales of {scheme.rows} rows")
        if group not in (*GROUPS, in_features):
            return Reject("shape", f"groups of {group} input features are not of {GROUPS} or all")
        return None
    if scheme.asymmetric:
        return Reject("feature", f"asymmetric {scheme.weight}")
    if scheme.activation not in ("", scheme.weight):
        return Reject("feature", f"{scheme.weight} weights with {scheme.activation} inputs")
    if scheme.group and (scheme.group, scheme.rows) != (BLOCK, BLOCK):
        shape = f"{scheme.rows} rows by {scheme.group}"
        return Reject("feature", f"scales of {shape} columns, blocks are {BLOCK} by {BLOCK}")
    if scheme.activation and not scheme.static and scheme.activation_group != scheme.group:
        return Reject("feature", f"input groups of {scheme.activation_group}")
    if scheme.group and scheme.static:
        return Reject("feature", "a static input scale with blocks")
    return None


def pack_bytes(weight: QuantizedWeight) -> Bytes:
    scheme, scale = weight.scheme, weight.scale
    if not scheme.group:
        repeats = scheme.rows or weight.out_features
        scale = scale.repeat_interleave(repeats, dim=0)[: weight.out_features, 0]
    return Bytes(
        values=weight.values.contiguous(),
        scale=scale.contiguous(),
        blocked=bool(scheme.group),
        activation=bool(scheme.activation),
        input_scale=weight.input_scale,
    )


def pack_nibbles(weight: QuantizedWeight) -> Nibbles:
    import torch

    n, k = weight.out_features, weight.in_features
    # canonical: byte b of 32 values has k = 2 b and 2 b + 1; wanted: [i, j] of k = 4 j + i
    pairs = weight.values.view(n, k // 32, 8, 2)  # [n, t, j, i / 2]
    words = torch.zeros((n, k // 32, 4), dtype=torch.int32, device=pairs.device)
    for nibble in range(8):
        for half in range(2):
            both = pairs[:, :, nibble, half].to(torch.int32)
            words[:, :, 2 * half] |= (both & 15) << (4 * nibble)
            words[:, :, 2 * half + 1] |= (both >> 4) << (4 * nibble)
    return Nibbles(
        words=words.view(n, k // 8),
        scale=_narrow(weight.scale),
        offset=None if weight.offset is None else _narrow(weight.offset),
        group=weight.scheme.group or k,
    )


def _narrow(scale: "Tensor") -> "Tensor":
    """[N, groups] -> [groups, N]; checkpoints of fp16 scales keep them at half the bytes"""
    turned = scale.T.contiguous()
    half = turned.half()
    return half if bool((half.float() == turned).all()) else turned
