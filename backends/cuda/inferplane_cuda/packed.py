"""INT4 weights in the order of kernels/int4.cu, which also says what that order is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferplane.hw.quantization import QuantizedWeight, unpack_nibbles

if TYPE_CHECKING:
    from torch import Tensor

STRIP = 16
"""rows of W that a warp multiplies at a time"""
STEP = 128
"""of K that a warp takes at a time; groups are this long at most"""
PACKED_AT_ONCE = 1 << 24
"""weights that packing takes at a time: it needs several int32 copies of them"""


@dataclass(frozen=True, slots=True)
class Weights:
    """[N, K]"""

    words: "Tensor"
    """i32 [N / 16, K / 64, 128]"""
    scales: "Tensor"
    """[N / 16, K / group, 8, 1 or 2, 2]: of rows r and r + 8 of a strip, then `offsets` of them;
    f16, or f32 where those are inexact"""
    group: int
    """of K, with one scale: 32, 64 or 128"""
    offsets: int
    """0: none, weights are (q - 8) scale; 1: offsets; 2: zero points, offset = -scale zero"""

    @property
    def wide(self) -> bool:
        return self.scales.element_size() == 4


def pack(weight: QuantizedWeight) -> Weights:
    """`weight` has 16 n rows and 128 k columns, and int4 groups of 32, 64, 128 or a row."""
    import torch

    n, k = weight.out_features, weight.in_features
    group = weight.scheme.group or k
    repeats = max(1, group // STEP)
    second, offsets = _second(weight)
    parts = [weight.scale] if second is None else [weight.scale, second]
    exact = all(bool((part == part.half().float()).all()) for part in parts)
    each = [part.repeat_interleave(repeats, dim=1).view(n // STRIP, 2, 8, -1) for part in parts]
    scales = torch.stack([part.permute(0, 3, 2, 1) for part in each], 3).contiguous()
    step = max(STRIP, PACKED_AT_ONCE // k // STRIP * STRIP)
    return Weights(
        words=torch.cat([_words(values) for values in weight.values.split(step)]),
        scales=scales.half() if exact else scales,
        group=min(group, STEP),
        offsets=offsets,
    )


def _second(weight: QuantizedWeight) -> "tuple[Tensor | None, int]":
    """What is stored beside the scales, and how. AWQ and GPTQ have zero points: whole numbers,
    which f16 has where it does not have their products with scales."""
    import torch

    scale, offset = weight.scale, weight.offset
    if offset is None:
        return None, 0
    zero = torch.round(-offset / scale)
    whole = bool((zero.abs() <= 2048).all()) and bool((-scale * zero == offset).all())
    return (zero, 2) if whole else (offset, 1)


def _words(values: "Tensor") -> "Tensor":
    """u8 [n, K / 2] -> i32 [n / 16, K / 64, 128]"""
    import torch

    n, k = values.shape[0], values.shape[1] * 2
    # [strip, row // 8, row % 8, tile, half, lane % 4, word, pair of k, k]
    q = unpack_nibbles(values).view(n // 16, 2, 8, k // 64, 2, 4, 2, 2, 2)
    words = torch.zeros(n // 16, k // 64, 8, 4, 2, 2, dtype=torch.int32, device=q.device)
    for row in range(2):
        for pair in range(2):
            for second in range(2):
                nibbles = q[:, row, :, :, :, :, :, pair, second].permute(0, 2, 1, 4, 3, 5)
                words |= nibbles.int() << (4 * (row + 2 * pair) + 16 * second)
    return words.view(n // 16, k // 64, 128)
