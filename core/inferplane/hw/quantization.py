"""Quantized weights: how they are stored, what they stand for, and how inputs meet them.

A scale is shared by a block of `rows` out_features and `group` in_features. Kernels repack a
QuantizedWeight as they like in `prepack`; its own layout is the plainest one that all checkpoint
formats can be turned into without rounding. Importing this module imports no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = {"float8_e4m3fn": 448, "int8": 127, "int4": 7}
"""the value that the largest magnitude of a block becomes with a symmetric scale"""
LOWEST = {"int8": -128, "int4": 0}
"""the stored value of a block's minimum in asymmetric schemes"""
STEPS = {"int8": 255, "int4": 15}
"""stored values from a block's minimum to its maximum in asymmetric schemes"""

QUANTIZE_TILE = 1 << 24
"""values that `quantize` takes at a time: it needs several float32 copies of them"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How the weights of a product, and maybe its inputs, are stored."""

    weight: Literal["float8_e4m3fn", "int8", "int4"]
    group: int = 0
    """in_features that share a scale; 0: all of a row"""
    rows: int = 1
    """out_features that share a scale; 0: the whole tensor. 128 with group 128: FP8 blocks"""
    asymmetric: bool = False
    """integers only: w = scale * q + offset; else w = scale * q (int8, fp8), scale * (q - 8)
    (int4)"""
    activation: Literal["", "float8_e4m3fn", "int8"] = ""
    """"": inputs stay in the op's dtype (weight-only); see `quantize_input`"""
    activation_group: int = 0
    """in_features that share an input scale, per token; 0: a token has one"""
    static: bool = False
    """one input scale for all tokens is stored with the weights"""

    def __post_init__(self) -> None:
        problem = ""
        if self.weight not in LARGEST:
            problem = "unknown weight type"
        elif self.activation not in ("", "float8_e4m3fn", "int8"):
            problem = "unknown activation type"
        elif min(self.group, self.rows, self.activation_group) < 0:
            problem = "group, rows and activation_group are not negative"
        elif self.asymmetric and self.weight == "float8_e4m3fn":
            problem = "only integers are asymmetric"
        elif not self.activation and (self.static or self.activation_group):
            problem = "static and activation_group need an activation type"
        elif self.static and self.activation_group:
            problem = "a static input scale has no groups"
        if problem:
            raise ValueError(f"{problem}: {self}")

    def scale_shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Blocks along each side; the last ones may be smaller."""
        down = -(-out_features // self.rows) if self.rows else 1
        return down, -(-in_features // self.group) if self.group else 1

    def merged(self, sizes: Sequence[int]) -> "Scheme":
        """The scheme of weights with `sizes` out_features stacked: blocks that would cross from
        one to the next get a scale per row."""
        splits_blocks = any(size % self.rows for size in sizes[:-1]) if self.rows else True
        return replace(self, rows=1) if len(sizes) > 1 and splits_blocks else self


@dataclass(slots=True)
class QuantizedWeight:
    """What prepack gets in place of a dense weight [N, K]."""

    scheme: Scheme
    values: "Tensor"
    """float8_e4m3fn [N, K], int8 [N, K], or int4 as u8 [N, K / 2], even k in the low nibble"""
    scale: "Tensor"
    """f32 [N / rows (1 if rows == 0), K / group (1 if group == 0)], rounded up"""
    offset: "Tensor | None" = None
    """f32 of the scale's shape, asymmetric only"""
    input_scale: "Tensor | None" = None
    """f32 [1], static only"""

    @property
    def out_features(self) -> int:
        return int(self.values.shape[0])

    @property
    def in_features(self) -> int:
        return int(self.values.shape[1]) * (2 if self.scheme.weight == "int4" else 1)

    @property
    def nbytes(self) -> int:
        held = (self.values, self.scale, self.offset, self.input_scale)
        return sum(t.numel() * t.element_size() for t in held if t is not None)

    def to(self, device: str) -> "QuantizedWeight":
        """The same weight on a torch device."""
        return self.moved(lambda tensor: tensor.to(device))

    def moved(self, move: "Callable[[Tensor], Tensor]") -> "QuantizedWeight":
        """The same weight of tensors that `move` returns for its own."""
        rest = (t if t is None else move(t) for t in (self.offset, self.input_scale))
        return QuantizedWeight(self.scheme, move(self.values), move(self.scale), *rest)


def dequantize(weight: QuantizedWeight, dtype: str) -> "Tensor":
    """[N, K] in `dtype`, rounded once from float32 (float64 stays exact)."""
    import torch

    scheme = weight.scheme
    wide = torch.float64 if dtype == "float64" else torch.float32
    if scheme.weight == "int4":
        values = unpack_nibbles(weight.values).to(wide)
        values = values if scheme.asymmetric else values - 8
    else:
        values = weight.values.to(wide)
    values = values * spread(weight.scale.to(wide), scheme.group, values, scheme.rows)
    if weight.offset is not None:
        values = values + spread(weight.offset.to(wide), scheme.group, values, scheme.rows)
    return values.to(getattr(torch, dtype))


def unpack_nibbles(packed: "Tensor") -> "Tensor":
    """u8 [N, K / 2] -> u8 [N, K]"""
    import torch

    return torch.stack([packed & 15, packed >> 4], dim=2).flatten(1)


def pack_nibbles(values: "Tensor") -> "Tensor":
    """u8 [N, K], each below 16 -> u8 [N, K / 2]"""
    return values[:, 0::2] | (values[:, 1::2] << 4)


def spread(scale: "Tensor", group: int, like: "Tensor", rows: int = 1) -> "Tensor":
    """A scale per block of `rows` and `group` (0: whole side) as something that broadcasts
    against `like` [n, k]."""
    if group:
        scale = scale.repeat_interleave(group, dim=1)[:, : like.shape[1]]
    if rows > 1:
        scale = scale.repeat_interleave(rows, dim=0)[: like.shape[0]]
    return scale


def quantize(tensor: "Tensor", scheme: Scheme) -> QuantizedWeight:
    """Weights [N, K] of any float type to the nearest values of a scheme, ties to even.

    Symmetric scales are amax / 127, / 448 and / 7; asymmetric ones spread minimum to maximum over
    all values. Those of int4 are rounded to float16, as checkpoints have them: kernels read them as
    often as weights. Raises ValueError for what has no such form: odd K in int4, a static scheme.
    """
    import torch
    from torch.nn.functional import pad

    n, k = tensor.shape
    if scheme.static:
        raise ValueError("a static input scale comes from a checkpoint, weights do not tell it")
    if scheme.weight == "int4" and k % 2:
        raise ValueError(f"int4 packs two in_features in a byte, {k} is odd")
    step = QUANTIZE_TILE // k // (scheme.rows or 1) * (scheme.rows or 1)
    if scheme.rows and 0 < step < n:
        return concatenate([quantize(tile, scheme) for tile in tensor.split(step)])
    rows, group = scheme.rows or n, scheme.group or k
    wide = tensor.float()
    down, across = scheme.scale_shape(n, k)
    blocks = pad(wide, (0, across * group - k, 0, down * rows - n), value=float("nan"))
    blocks = blocks.view(down, rows, across, group).transpose(1, 2).flatten(2)
    offset = None
    if scheme.asymmetric:
        lowest, steps = LOWEST[scheme.weight], STEPS[scheme.weight]
        low = blocks.nan_to_num(nan=float("inf")).amin(2)
        high = blocks.nan_to_num(nan=float("-inf")).amax(2)
        scale = _nonzero((high - low) / steps)
        scale = _stored(scale, scale, scheme.weight)
        offset = _stored(low - lowest * scale, scale, scheme.weight)
        wide = wide - spread(offset, scheme.group, wide, scheme.rows)
        values = wide / spread(scale, scheme.group, wide, scheme.rows)
        values = values.round().clamp(lowest, lowest + steps)
    else:
        scale = _nonzero(blocks.nan_to_num(nan=0.0).abs().amax(2) / LARGEST[scheme.weight])
        scale = _stored(scale, scale, scheme.weight)
        values = wide / spread(scale, scheme.group, wide, scheme.rows)
        values = _rounded(values, scheme.weight)
    if scheme.weight == "int4":
        stored = pack_nibbles((values if scheme.asymmetric else values + 8).to(torch.uint8))
    else:
        stored = values.to(getattr(torch, scheme.weight))
    return QuantizedWeight(scheme, stored, scale, offset)


def _nonzero(scale: "Tensor") -> "Tensor":
    """Blocks of equal values have no range to divide by."""
    return scale.masked_fill(scale == 0, 1.0)


def _stored(exact: "Tensor", scale: "Tensor", kind: str) -> "Tensor":
    """Rounded to float16 for int4, except in blocks where that has few bits for the scale, or none
    for the value."""
    if kind != "int4":
        return exact
    return exact.half().float().where((scale >= 2.0**-14) & (exact.abs() < 65504), exact)


def _rounded(values: "Tensor", kind: str) -> "Tensor":
    """The nearest values of a type, still as floats (float8: its conversion rounds)."""
    limit = LARGEST[kind]
    values = values.clamp(-limit, limit)
    return values if kind == "float8_e4m3fn" else values.round()


def quantize_input(
    x: "Tensor", scheme: Scheme, input_scale: "Tensor | None"
) -> "tuple[Tensor, Tensor]":
    """Inputs [T, K] as a kernel must quantize them: (values [T, K] of the activation's type,
    f32 scale [T, groups] or [1, 1] if static).

    scale = amax / 127 or / 448 in float32 (1 where all are zero), values = x / scale in float32,
    cut off at the type's largest value and rounded, ties to even.
    """
    import torch

    x = x.float()
    if input_scale is not None:
        scale = input_scale.view(1, 1)
    else:
        parts = x.abs().split(scheme.activation_group or x.shape[1], dim=1)
        amax = torch.cat([part.amax(1, keepdim=True) for part in parts], dim=1)
        scale = _nonzero(amax / LARGEST[scheme.activation])
    values = _rounded(x / spread(scale, scheme.activation_group, x), scheme.activation)
    return values.to(getattr(torch, scheme.activation)), scale


def part(weight: QuantizedWeight, start: int, stop: int) -> QuantizedWeight:
    """Rows start to stop of a weight, as views. `start` is a multiple of scheme.rows."""
    rows = weight.scheme.rows
    if rows and start % rows:
        raise ValueError(f"row {start} is inside a block of {rows} rows")
    some = slice(start // rows, -(-stop // rows)) if rows else slice(None)
    return replace(
        weight,
        values=weight.values[start:stop],
        scale=weight.scale[some],
        offset=None if weight.offset is None else weight.offset[some],
    )


def concatenate(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Weights of one scheme and K stacked along N, as products that share their input are merged.

    Exact but for static input scales, of which the largest serves all: nothing is cut off that
    was not before. Raises ValueError if the schemes differ.
    """
    import torch

    first = weights[0].scheme
    if any(w.scheme != first for w in weights):
        raise ValueError(f"weights of different schemes: {[w.scheme for w in weights]}")
    if len(weights) == 1:
        return weights[0]
    scheme = first.merged([w.out_features for w in weights])

    def stacked(kind: str) -> "Tensor":
        return join([_by_row(w, getattr(w, kind), scheme.rows) for w in weights])

    scales = [w.input_scale for w in weights if w.input_scale is not None]
    return QuantizedWeight(
        scheme=scheme,
        values=join([w.values for w in weights]),
        scale=stacked("scale"),
        offset=stacked("offset") if scheme.asymmetric else None,
        input_scale=torch.stack(scales).amax(0) if scales else None,
    )


def join(parts: "Sequence[Tensor]") -> "Tensor":
    """Tensors [n, ...] one after the other. Those without data (torch device meta) only get the
    shape: torch.cat would import torch's compiler for them, which takes a second."""
    import torch

    if parts[0].is_meta:
        return parts[0].new_empty((sum(p.shape[0] for p in parts), *parts[0].shape[1:]))
    return torch.cat(list(parts))


def _by_row(weight: QuantizedWeight, scale: "Tensor", rows: int) -> "Tensor":
    """Scales of a weight's blocks for blocks of `rows`, which is the weight's own number or 1."""
    if weight.scheme.rows == rows:
        return scale
    repeats = weight.scheme.rows or weight.out_features
    return scale.repeat_interleave(repeats, dim=0)[: weight.out_features]


def common(schemes: Sequence[Scheme], in_features: int) -> Scheme | None:
    """The smallest scheme that holds the values of all of these exactly; None if there is none.

    Only integers have one besides their own: GGUF files store q, k and v of a layer differently.
    """
    first = schemes[0]
    if all(scheme == first for scheme in schemes):
        return first
    kinds = {scheme.weight for scheme in schemes}
    inputs = {(s.activation, s.activation_group, s.static) for s in schemes}
    if "float8_e4m3fn" in kinds or len(inputs) > 1:
        return None
    return replace(
        first,
        weight="int8" if "int8" in kinds else "int4",
        group=gcd(*(scheme.group or in_features for scheme in schemes)) % in_features,
        rows=1,
        asymmetric=any(scheme.asymmetric for scheme in schemes),
    )


def holds(wide: Scheme, narrow: Scheme, in_features: int) -> bool:
    """Whether `widen` can bring a weight of scheme `narrow` into `wide`, whatever the inputs."""
    made = common([weight_only(wide), weight_only(narrow)], in_features)
    return made is not None and replace(made, group=made.group % in_features) == replace(
        weight_only(wide), group=wide.group % in_features
    )


def weight_only(scheme: Scheme) -> Scheme:
    """The scheme with inputs that stay in the op's dtype."""
    return replace(scheme, activation="", activation_group=0, static=False)


def widen(weight: QuantizedWeight, scheme: Scheme) -> QuantizedWeight:
    """The same values in a scheme that `holds` them."""
    old, k = weight.scheme, weight.in_features
    values, scale, offset = weight.values, weight.scale, weight.offset
    if old.rows != scheme.rows:
        scale = _by_row(weight, scale, scheme.rows)
        offset = None if offset is None else _by_row(weight, offset, scheme.rows)
    repeats = (old.group or k) // (scheme.group or k)
    if repeats > 1:
        scale = scale.repeat_interleave(repeats, dim=1)
        offset = None if offset is None else offset.repeat_interleave(repeats, dim=1)
    if scheme.asymmetric and offset is None:
        offset = scale * (-8 if old.weight == scheme.weight == "int4" else 0)
    if old.weight != scheme.weight:
        values = unpack_nibbles(values).char()
        values = values if old.asymmetric else values - 8
    kept = weight.input_scale if scheme.static else None
    return QuantizedWeight(scheme, values, scale, offset, kept)
