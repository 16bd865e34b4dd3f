"""Rotary position embedding (Su et al., arXiv 2104.09864) and its context extensions."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakValueDictionary

from inferplane.hw.op import Bound, BuildContext, Determinism, Op, Reference, Tolerance, rounding

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotate the first `rotary_dim` of `head_dim` elements by position-dependent angles.

    `style`: neox pairs element i with i + rotary_dim / 2, gptj pairs 2i with 2i + 1. `scaling`:
    none; linear (`factor`); llama3 (factor, low, high, original length); yarn (factor, beta_fast,
    beta_slow, original length, attention factor; Peng et al., arXiv 2309.00071).
    """

    head_dim: int
    rotary_dim: int
    max_position: int
    theta: float
    dtype: str
    style: Literal["neox", "gptj"] = "neox"
    scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    parameters: tuple[float, ...] = ()
    determinism: Determinism = "run"


def inverse_frequencies(spec: RopeSpec) -> "tuple[Tensor, float]":
    """f32[rotary_dim / 2] angles per position, and the factor for cos and sin."""
    import torch

    exponent = torch.arange(0, spec.rotary_dim, 2, dtype=torch.int64).float() / spec.rotary_dim
    plain = 1.0 / (spec.theta**exponent)
    if spec.scaling == "none":
        return plain, 1.0
    factor = spec.parameters[0]
    if spec.scaling == "linear":
        return plain / factor, 1.0
    if spec.scaling == "llama3":
        _, low, high, original = spec.parameters
        wavelength = 2 * math.pi / plain
        smooth = ((original / wavelength - low) / (high - low)).clamp(0, 1)
        return (1 - smooth) * plain / factor + smooth * plain, 1.0
    _, fast, slow, original, attention = spec.parameters
    bounds = [
        spec.rotary_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(spec.theta))
        for turns in (fast, slow)
    ]
    first, last = max(math.floor(bounds[0]), 0), min(math.ceil(bounds[1]), spec.rotary_dim - 1)
    width = last - first if last != first else 0.001
    ramp = ((torch.arange(spec.rotary_dim // 2).float() - first) / width).clamp(0, 1)
    return plain / factor * ramp + plain * (1 - ramp), attention


_tables: "WeakValueDictionary[tuple[RopeSpec, str], Tensor]" = WeakValueDictionary()
"""those in use"""


def cos_sin_table(spec: RopeSpec, torch_device: str) -> "Tensor":
    """f32[max_position, rotary_dim]: cosines, then sines. All layers share one, so it may not be
    written to."""
    import torch

    known = _tables.get((spec, torch_device))
    if known is not None:
        return known
    frequencies, factor = inverse_frequencies(spec)
    angle = torch.outer(torch.arange(spec.max_position).float(), frequencies)
    table = (torch.cat([angle.cos(), angle.sin()], dim=-1) * factor).to(torch_device)
    _tables[spec, torch_device] = table
    return table


def rope(spec: RopeSpec, ctx: BuildContext) -> Bound:
    """run(q[T, Hq, D], k[T, Hkv, D], position i32[T]) -> (q, k), rotated copies"""
    import torch

    table = cos_sin_table(spec, ctx.device.info.torch_device)
    half, rotary = spec.rotary_dim // 2, spec.rotary_dim

    def rotate(x: "Tensor", cos: "Tensor", sin: "Tensor") -> "Tensor":
        rest = x[..., rotary:]
        wide = x[..., :rotary].to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        if spec.style == "neox":
            a, b = wide[..., :half], wide[..., half:]
        else:
            a, b = wide[..., 0::2], wide[..., 1::2]
        pair = (a * cos - b * sin, b * cos + a * sin)
        turned = (
            torch.cat(pair, dim=-1)
            if spec.style == "neox"
            else torch.stack(pair, dim=-1).flatten(-2)
        )
        turned = turned.to(x.dtype)
        return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned

    def run(q: "Tensor", k: "Tensor", position: "Tensor") -> "tuple[Tensor, Tensor]":
        cos, sin = table.index_select(0, position).unsqueeze(1).split(half, dim=-1)  # [T, 1, R/2]
        return rotate(q, cos, sin), rotate(k, cos, sin)

    return Bound(run=run)


def _tolerance(spec: RopeSpec) -> Tolerance:
    return rounding(spec.dtype, 16)


def _inputs(spec: RopeSpec, seed: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, spec.dtype)
    position = torch.randint(0, spec.max_position, (19,), generator=generator, dtype=torch.int32)
    return {
        "q": torch.randn(19, 6, spec.head_dim, generator=generator).to(dtype),
        "k": torch.randn(19, 2, spec.head_dim, generator=generator).to(dtype),
        "position": position,
    }


OPS = (
    Op(
        name="rope",
        spec=RopeSpec,
        reference=Reference(rope),
        tolerance=_tolerance,
        inputs=_inputs,
    ),
)
