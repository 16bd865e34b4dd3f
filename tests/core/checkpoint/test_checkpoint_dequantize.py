"""Unpacking of GGUF blocks, bit for bit against the `gguf` package."""

import tracemalloc

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from inferplane.checkpoint.dequantize import PARALLEL_VALUES, UNPACK, dequantize
from inferplane.checkpoint.gguf import TENSOR_TYPES, TensorType

TYPES = list(TENSOR_TYPES.values())


def blocks(kind: TensorType, rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    size = columns // kind.block * kind.size
    return np.random.default_rng(seed).integers(0, 256, (rows, size), dtype=np.uint8)


def by_gguf(raw: NDArray[np.uint8], kind: TensorType) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return gguf.dequantize(raw, gguf.GGMLQuantizationType[kind.name])


def same_bits(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    nan = np.isnan(b)  # random scales are often nan, whose payload is nobody's concern
    return bool(np.array_equal(np.isnan(a), nan)) and bool(
        np.array_equal(a[~nan].view(np.uint32), b[~nan].view(np.uint32))
    )


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_random_blocks_bit_for_bit(kind: TensorType, rows: int) -> None:
    raw = blocks(kind, rows, 1024, seed=rows)
    out = np.empty((rows, 1024), np.float32)
    dequantize(raw, kind, out)
    assert same_bits(out, by_gguf(raw, kind))
    assert np.isfinite(out).mean() > 0.5


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_sizes_are_those_of_the_format(kind: TensorType) -> None:
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.name]] == (kind.block, kind.size)
    assert TENSOR_TYPES[gguf.GGMLQuantizationType[kind.name].value] is kind
    assert kind.name in UNPACK


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_row_order(kind: TensorType) -> None:
    raw = blocks(kind, 600, 512)
    order = np.random.default_rng(1).permutation(600)
    out = np.empty((600, 512), np.float32)
    dequantize(raw, kind, out, order)
    assert same_bits(out, by_gguf(raw, kind)[order])


def test_large_tensor_in_parallel_without_a_second_copy() -> None:
    kind = next(t for t in TYPES if t.name == "Q4_K")
    rows = 2 * PARALLEL_VALUES // 1024
    raw = blocks(kind, rows, 1024)
    expected = by_gguf(raw, kind)
    tracemalloc.start()
    try:
        out = np.empty((rows, 1024), np.float32)
        dequantize(raw, kind, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert same_bits(out, expected)
    assert peak < 2 * out.nbytes
