"""GGUF blocks as quantized weights: the same numbers as the `gguf` package, bit for bit."""

import gguf
import numpy as np
import pytest

from inferplane.checkpoint import dequantize as blocks
from inferplane.checkpoint.gguf import TENSOR_TYPES, TensorType
from inferplane.checkpoint.gguf_quantized import FORMS, repack
from inferplane.hw.quantization import dequantize
from tests.core.checkpoint.test_checkpoint_dequantize import blocks as random_blocks
from tests.core.checkpoint.test_checkpoint_dequantize import by_gguf, same_bits

KINDS = [kind for kind in TENSOR_TYPES.values() if kind.block > 1]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_random_blocks_bit_for_bit(kind: TensorType, rows: int) -> None:
    raw = random_blocks(kind, rows, 1024, seed=rows)
    order = np.random.default_rng(1).permutation(rows)
    plain, turned = repack(raw, kind), repack(raw, kind, order)
    expected = by_gguf(raw, kind)
    assert same_bits(dequantize(plain, "float32").numpy(), expected)
    assert same_bits(dequantize(turned, "float32").numpy(), expected[order])
    assert plain.scale.shape == plain.scheme.scale_shape(rows, 1024)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q8_0"])
def test_weights_that_the_package_quantized(name: str) -> None:
    weight = np.random.default_rng(0).normal(size=(33, 256)).astype(np.float32)
    raw = gguf.quantize(weight, gguf.GGMLQuantizationType[name])
    kind = next(k for k in KINDS if k.name == name)
    back = dequantize(repack(raw, kind), "float32").numpy()
    assert np.array_equal(back, by_gguf(raw, kind))
    assert np.abs(back - weight).max() < 0.5


def test_large_tensors_in_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = next(k for k in KINDS if k.name == "Q6_K")
    raw = random_blocks(kind, 600, 1024)
    expected = repack(raw, kind)
    monkeypatch.setattr(blocks, "PARALLEL_VALUES", 1)
    made = repack(raw, kind)
    assert made.values.equal(expected.values)
    assert same_bits(made.scale.numpy(), expected.scale.numpy())


def test_every_packed_type_has_a_form() -> None:
    assert set(FORMS) == {kind.name for kind in KINDS}
