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
    """int4 weights [N, K] in chunks of four planes; see kernels/nibbles.py."""

    numbers: "Tensor"
    """i16 [N, chunks * plane]; nibble j of number p in chunk c is the weight of
    k = (4 c + j) plane + p, zero from K on"""
    scale: "Tensor"
    """of each plane: i64 [chunks, N], four of fp16, or f32 [4 chunks, N] where those are inexact"""
    offset: "Tensor | None"
    width: int
    """K"""
    plane: int
    """of K, with one scale: at most 128"""

    @property
    def chunks(self) -> int:
        return self.numbers.shape[1] // self.plane


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
    plane = min(weight.scheme.group or k, max(GROUPS))
    chunks = -(-k // (4 * plane))
    low, high = weight.values & 15, weight.values >> 4
    q = torch.stack([low, high], 2).view(n, k)
    q = torch.nn.functional.pad(q, (0, chunks * 4 * plane - k)).view(n, chunks, 4, plane)
    two = torch.stack([q[:, :, 0] | q[:, :, 1] << 4, q[:, :, 2] | q[:, :, 3] << 4], 3)
    return Nibbles(
        numbers=two.view(torch.int16).view(n, chunks * plane),
        scale=_of_planes(weight.scale, k // plane, chunks),
        offset=None if weight.offset is None else _of_planes(weight.offset, k // plane, chunks),
        width=k,
        plane=plane,
    )


def _of_planes(scale: "Tensor", planes: int, chunks: int) -> "Tensor":
    """[N, groups] -> [chunks, N] of four fp16, or [4 chunks, N] where fp16 rounds"""
    import torch

    each = scale.repeat_interleave(planes // scale.shape[1], dim=1)
    each = torch.nn.functional.pad(each, (0, 4 * chunks - planes))
    half = each.half()
    if bool((half.float() == each).all()):
        return half.view(torch.int64).T.contiguous()
    return each.float().T.contiguous()
