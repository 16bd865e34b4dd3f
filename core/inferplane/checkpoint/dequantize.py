"""Unpacks the block formats of GGUF to float32. Bit for bit what the `gguf` package computes.

A block function gets packed blocks [n, bytes per block] and fills out [n, values per block]. Work
goes in chunks that fit a core's cache, so that nothing but the result is as large as the tensor.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferplane.checkpoint.gguf import TensorType

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

CHUNK_VALUES = 1 << 17
PARALLEL_VALUES = 1 << 21
"""tensors smaller than this are not worth waking threads for"""


def dequantize(
    raw: Bytes, kind: TensorType, out: Floats, order: NDArray[np.intp] | None = None
) -> None:
    """Fill `out` [rows, columns] from `raw` [rows, bytes per row]; row i of `out` is row
    order[i] of `raw` when an order is given."""
    unpack, block, size = UNPACK[kind.name], kind.block, kind.size
    if order is None:  # rows do not matter: one long line of blocks
        raw = raw.reshape(-1, size)
        out = out.reshape(-1, block)
    step = max(1, CHUNK_VALUES // out.shape[1])

    def chunk(start: int) -> None:
        part = out[start : start + step]
        packed = raw[start : start + step] if order is None else raw[order[start : start + step]]
        with np.errstate(all="ignore"):  # damaged scales give inf and nan, as everywhere else
            unpack(packed.reshape(-1, size), part.reshape(-1, block))

    in_chunks(chunk, range(0, len(out), step), out.size)


def in_chunks(work: Callable[[int], None], starts: range, values: int) -> None:
    """Call `work` with each start, on all cores if it is for many values: numpy releases the
    interpreter lock."""
    if values < PARALLEL_VALUES:
        for start in starts:
            work(start)
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(work, starts):
            pass


def half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of each block, [n, 1]."""
    return blocks[:, at : at + 2].view(np.float16).astype(np.float32)


def _f32(blocks: Bytes, out: Floats) -> None:
    out[:] = blocks.view(np.float32)


def _f16(blocks: Bytes, out: Floats) -> None:
    out[:] = blocks.view(np.float16)


def _bf16(blocks: Bytes, out: Floats) -> None:
    np.left_shift(blocks.view(np.uint16), 16, dtype=np.uint32, out=out.view(np.uint32))


def nibbles(packed: Bytes, out: Any) -> None:
    """Low nibbles to out[..., 0, :], high ones to out[..., 1, :]."""
    out[..., 0, :] = packed & 15
    out[..., 1, :] = packed >> 4


def _q4_0(blocks: Bytes, out: Floats) -> None:
    nibbles(blocks[:, 2:], out.reshape(-1, 2, 16))
    out -= 8
    out *= half(blocks, 0)


def _q4_1(blocks: Bytes, out: Floats) -> None:
    nibbles(blocks[:, 4:], out.reshape(-1, 2, 16))
    out *= half(blocks, 0)
    out += half(blocks, 2)


def _q5_0(blocks: Bytes, out: Floats) -> None:
    nibbles(blocks[:, 6:], out.reshape(-1, 2, 16))
    high = np.unpackbits(blocks[:, 2:6], axis=1, bitorder="little")  # [n, 32]
    out += high << 4
    out -= 16
    out *= half(blocks, 0)


def _q8_0(blocks: Bytes, out: Floats) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), half(blocks, 0), out=out)


def scales_k(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scale and minimum of the 8 groups of a K block, [n, 8] each; 6 bits each in 12 bytes:
    bytes 0-3 and 4-7 hold groups 0-3 and in their top bits those of 4-7, whose rest is in 8-11."""
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = np.concatenate([a & 63, (c & 15) | ((a >> 2) & 48)], axis=1)
    low = np.concatenate([b & 63, (c >> 4) | ((b >> 2) & 48)], axis=1)
    return half(blocks, 0) * scale, half(blocks, 2) * low


def _apply_k(blocks: Bytes, out: Floats) -> None:
    scale, low = scales_k(blocks)
    groups = out.reshape(-1, 8, 32)
    groups *= scale[:, :, None]
    groups -= low[:, :, None]


def _q4_k(blocks: Bytes, out: Floats) -> None:
    nibbles(blocks[:, 16:].reshape(-1, 4, 32), out.reshape(-1, 4, 2, 32))
    _apply_k(blocks, out)


def _q5_k(blocks: Bytes, out: Floats) -> None:
    nibbles(blocks[:, 48:].reshape(-1, 4, 32), out.reshape(-1, 4, 2, 32))
    groups = out.reshape(-1, 8, 32)
    high = blocks[:, 16:48]  # bit g of byte i belongs to value i of group g
    for group in range(8):
        groups[:, group] += ((high >> group) & 1) << 4
    _apply_k(blocks, out)


def _q6_k(blocks: Bytes, out: Floats) -> None:
    nibbles(blocks[:, :128].reshape(-1, 2, 64), out.reshape(-1, 2, 2, 64))
    groups = out.reshape(-1, 2, 4, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 32)
    for group in range(4):
        groups[:, :, group] += ((high >> (2 * group)) & 3) << 4
    out -= 32
    scale = half(blocks, 208) * blocks[:, 192:208].view(np.int8)  # [n, 16]
    parts = out.reshape(-1, 16, 16)
    parts *= scale[:, :, None]


UNPACK: dict[str, Callable[[Bytes, Floats], None]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
"""type -> block function"""
