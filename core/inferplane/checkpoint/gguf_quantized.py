"""Turns the block formats of GGUF into quantized weights without dequantizing them.

Values keep their bits, scales are multiplied out to float32: what comes out stands for exactly the
numbers that dequantize.py computes. A block function fills the values [n, values per block] as
plain integers, and scales and offsets [n, groups per block].
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inferplane.checkpoint.dequantize import (
    CHUNK_VALUES,
    Bytes,
    Floats,
    half,
    in_chunks,
    nibbles,
    scales_k,
)
from inferplane.checkpoint.gguf import TensorType
from inferplane.hw.quantization import QuantizedWeight, Scheme

Integers = NDArray[np.int8]
Fill = Callable[[Bytes, Integers, Floats, Floats], None]


@dataclass(frozen=True, slots=True)
class BlockForm:
    """What a block type becomes."""

    scheme: Scheme
    fill: Fill


def repack(raw: Bytes, kind: TensorType, order: NDArray[np.intp] | None = None) -> QuantizedWeight:
    """Rows [N, bytes per row] of a type in FORMS; row i comes from raw[order[i]] if an order is
    given. Works in chunks that fit a core's cache."""
    import torch

    form = FORMS[kind.name]
    scheme = form.scheme
    rows, blocks = raw.shape[0], raw.shape[1] // kind.size
    columns = blocks * kind.block
    packed = scheme.weight == "int4"
    values = np.empty((rows, columns // 2 if packed else columns), np.uint8 if packed else np.int8)
    scale = np.empty((rows, columns // scheme.group), np.float32)
    offset = np.empty_like(scale) if scheme.asymmetric else None
    unused = np.empty((0, kind.block // scheme.group), np.float32)
    step = max(1, CHUNK_VALUES // columns)

    def chunk(start: int) -> None:
        part = slice(start, min(start + step, rows))
        some = raw[part] if order is None else raw[order[part]]
        count = len(some) * blocks
        plain = np.empty((count, kind.block), np.int8)
        groups = (count, kind.block // scheme.group)
        with np.errstate(all="ignore"):  # damaged scales give inf and nan, as everywhere else
            form.fill(
                some.reshape(count, kind.size),
                plain,
                scale[part].reshape(groups),
                unused if offset is None else offset[part].reshape(groups),
            )
        if packed:
            pairs = plain.reshape(len(some), -1, 2).view(np.uint8)
            values[part] = pairs[..., 0] | (pairs[..., 1] << 4)
        else:
            values[part] = plain.reshape(len(some), columns)

    in_chunks(chunk, range(0, rows, step), rows * columns)
    return QuantizedWeight(
        scheme=scheme,
        values=torch.from_numpy(values),
        scale=torch.from_numpy(scale),
        offset=None if offset is None else torch.from_numpy(offset),
    )


def _q4_0(blocks: Bytes, values: Integers, scale: Floats, offset: Floats) -> None:
    nibbles(blocks[:, 2:], values.reshape(-1, 2, 16))
    scale[:] = half(blocks, 0)


def _q4_1(blocks: Bytes, values: Integers, scale: Floats, offset: Floats) -> None:
    nibbles(blocks[:, 4:], values.reshape(-1, 2, 16))
    scale[:] = half(blocks, 0)
    offset[:] = half(blocks, 2)


def _q5_0(blocks: Bytes, values: Integers, scale: Floats, offset: Floats) -> None:
    nibbles(blocks[:, 6:], values.reshape(-1, 2, 16))
    high = np.unpackbits(blocks[:, 2:6], axis=1, bitorder="little").view(np.int8)
    values += (high << 4) - 16
    scale[:] = half(blocks, 0)


def _q8_0(blocks: Bytes, values: Integers, scale: Floats, offset: Floats) -> None:
    values[:] = blocks[:, 2:].view(np.int8)
    scale[:] = half(blocks, 0)


def _k(blocks: Bytes, scale: Floats, offset: Floats) -> None:
    steps, low = scales_k(blocks)
    scale[:] = steps
    np.negative(low, out=offset)


def _q4_k(blocks: Bytes, values: Integers, scale: Floats, offset: Floats) -> None:
    nibbles(blocks[:, 16:].reshape(-1, 4, 32), values.reshape(-1, 4, 2, 32))
    _k(blocks, scale, offset)


def _q5_k(blocks: Bytes, values: Integers, scale: Floats, offset: Floats) -> None:
    nibbles(blocks[:, 48:].reshape(-1, 4, 32), values.reshape(-1, 4, 2, 32))
    groups, high = values.reshape(-1, 8, 32), blocks[:, 16:48].view(np.int8)
    for group in range(8):
        groups[:, group] += ((high >> group) & 1) << 4
    _k(blocks, scale, offset)


def _q6_k(blocks: Bytes, values: Integers, scale: Floats, offset: Floats) -> None:
    nibbles(blocks[:, :128].reshape(-1, 2, 64), values.reshape(-1, 2, 2, 64))
    groups = values.reshape(-1, 2, 4, 32)
    high = blocks[:, 128:192].view(np.int8).reshape(-1, 2, 32)
    for group in range(4):
        groups[:, :, group] += ((high >> (2 * group)) & 3) << 4
    values -= 32
    np.multiply(half(blocks, 208), blocks[:, 192:208].view(np.int8), out=scale)


INT4 = Scheme(weight="int4", group=32)
INT4_OFFSET = Scheme(weight="int4", group=32, asymmetric=True)
INT8 = Scheme(weight="int8", group=32)

FORMS = {
    "Q4_0": BlockForm(INT4, _q4_0),
    "Q4_1": BlockForm(INT4_OFFSET, _q4_1),
    "Q4_K": BlockForm(INT4_OFFSET, _q4_k),
    "Q5_0": BlockForm(INT8, _q5_0),
    "Q8_0": BlockForm(INT8, _q8_0),
    "Q5_K": BlockForm(Scheme(weight="int8", group=32, asymmetric=True), _q5_k),
    "Q6_K": BlockForm(Scheme(weight="int8", group=16), _q6_k),
}
"""block types that have a scheme; the others are floats"""
