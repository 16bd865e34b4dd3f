"""Writes weights the way each quantized checkpoint format publishes them, value by value. Each
function gives the tensors of a module and the numbers that they stand for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Parts = dict[str, torch.Tensor]
Packed = tuple[Parts, torch.Tensor]
Matrix = NDArray[Any]

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


def words(values: Matrix, bits: int, columns: tuple[int, ...] | None = None) -> torch.Tensor:
    """Pack along the last dimension: value `columns[i]` of a word goes to bits i * `bits`."""
    per_word = 32 // bits
    order = columns or tuple(range(per_word))
    out = np.zeros((values.shape[0], -(-values.shape[1] // per_word)), np.uint32)
    for (row, column), value in np.ndenumerate(values):
        word, place = divmod(column, per_word)
        out[row, word] |= np.uint32(int(value) << (bits * order.index(place)))
    return torch.from_numpy(out.view(np.int32).copy())


def by_group(weight: torch.Tensor, group: int, bits: int, sym: bool) -> tuple[Matrix, ...]:
    """(unsigned values [N, K], float16 scales and integer zero points [N, K / group])"""
    n, k = weight.shape
    blocks = weight.double().numpy().reshape(n, -1, group if group > 0 else k)
    middle, top = 2 ** (bits - 1), 2**bits - 1
    if sym:
        scale = (np.abs(blocks).max(2) / (middle - 1)).astype(np.float16)
        zero = np.full(scale.shape, middle)
    else:
        low, high = np.minimum(blocks.min(2), 0), np.maximum(blocks.max(2), 0)
        scale = ((high - low) / top).astype(np.float16)
        zero = np.clip(np.round(-low / scale.astype(float)), 1, top).astype(int)
    values = np.round(blocks / scale[..., None].astype(float)) + zero[..., None]
    return np.clip(values, 0, top).astype(int).reshape(n, k), scale, zero


def meaning(values: Matrix, scale: Matrix, zero: Matrix | float) -> torch.Tensor:
    n, k = values.shape
    blocks = values.reshape(n, scale.shape[1], -1) - np.asarray(zero).reshape(*np.shape(zero), 1)
    return torch.from_numpy((blocks * scale[..., None].astype(float)).reshape(n, k))


def awq(weight: torch.Tensor, group: int = 32) -> Packed:
    values, scale, zero = by_group(weight, group, 4, sym=False)
    parts = {
        "qweight": words(values.T, 4, AWQ_COLUMNS),
        "qzeros": words(zero.T, 4, AWQ_COLUMNS),
        "scales": torch.from_numpy(scale.T.copy()),
    }
    return parts, meaning(values, scale, zero)


def gptq(
    weight: torch.Tensor, group: int = 32, bits: int = 4, sym: bool = True, first: bool = True
) -> Packed:
    values, scale, zero = by_group(weight, group, bits, sym)
    width = weight.shape[1]
    parts = {
        "qweight": words(values, bits).T.contiguous(),
        "qzeros": words((zero - 1 if first else zero).T, bits),
        "scales": torch.from_numpy(scale.T.copy()),
        "g_idx": torch.arange(width, dtype=torch.int32) // (group if group > 0 else width),
    }
    return parts, meaning(values, scale, zero)


def packed(weight: torch.Tensor, group: int = 32, bits: int = 4, sym: bool = True) -> Packed:
    """compressed-tensors, pack-quantized"""
    values, scale, zero = by_group(weight, group, bits, sym)
    parts = {
        "weight_packed": words(values, bits),
        "weight_scale": torch.from_numpy(scale).to(torch.bfloat16),
        "weight_shape": torch.tensor(weight.shape),
    }
    scale = parts["weight_scale"].float().numpy()
    if not sym:
        parts["weight_zero_point"] = words(zero.T, bits).T.contiguous()
    return parts, meaning(values, scale, zero)


def int8(weight: torch.Tensor) -> Packed:
    """compressed-tensors, int-quantized by channel"""
    scale = weight.abs().amax(1, keepdim=True) / 127
    values = (weight / scale).round().to(torch.int8)
    return {"weight": values, "weight_scale": scale}, values.double() * scale.double()


def fp8(
    weight: torch.Tensor,
    rows: int = 0,
    group: int = 0,
    name: str = "weight_scale",
    input_scale: float | None = None,
) -> Packed:
    """One scale (rows 0), one for each channel (rows 1), or for each block of rows x group."""
    n, k = weight.shape
    high, wide = rows or n, group or k
    scale = torch.zeros(-(-n // high), -(-k // wide))
    values = torch.zeros(n, k, dtype=torch.float8_e4m3fn)
    dense = torch.zeros(n, k, dtype=torch.float64)
    for i, j in np.ndindex(*scale.shape):
        block = (slice(i * high, (i + 1) * high), slice(j * wide, (j + 1) * wide))
        scale[i, j] = weight[block].abs().max() / 448
        values[block] = (weight[block] / scale[i, j]).to(torch.float8_e4m3fn)
        dense[block] = values[block].double() * float(scale[i, j])
    parts = {"weight": values, name: scale if rows else scale.reshape(())}
    if input_scale is not None:
        parts["input_scale"] = torch.tensor(input_scale)
    return parts, dense


def compressed(layout: str, weights: dict[str, Any], inputs: Any = None) -> dict[str, Any]:
    """A quantization_config"""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


INT4 = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True}
INT8 = {"type": "int", "num_bits": 8, "strategy": "channel", "symmetric": True}
FP8 = {"type": "float", "num_bits": 8, "strategy": "channel", "symmetric": True}
TOKEN8 = {"type": "int", "num_bits": 8, "strategy": "token", "dynamic": True, "symmetric": True}
TENSOR8 = {"type": "float", "num_bits": 8, "strategy": "tensor", "dynamic": False}
BLOCK8 = FP8 | {"strategy": "block", "block_structure": [128, 128]}
GROUP8 = {"type": "float", "num_bits": 8, "strategy": "group", "group_size": 128, "dynamic": True}

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
FP8_TENSOR = {"quant_method": "fp8", "activation_scheme": "dynamic"}
FP8_BLOCKS = FP8_TENSOR | {"weight_block_size": [128, 128]}

FORMATS: dict[str, tuple[dict[str, Any], Callable[[torch.Tensor], Packed]]] = {
    "awq": (AWQ, awq),
    "awq-row": (AWQ | {"group_size": -1}, lambda w: awq(w, -1)),
    "gptq": (GPTQ, gptq),
    "gptq-zeros": (GPTQ | {"sym": False}, lambda w: gptq(w, sym=False)),
    "gptq-v2": (
        GPTQ | {"sym": False, "checkpoint_format": "gptq_v2"},
        lambda w: gptq(w, sym=False, first=False),
    ),
    "gptq-row": (GPTQ | {"group_size": -1, "desc_act": True}, lambda w: gptq(w, -1)),
    "gptq-8-bits": (GPTQ | {"bits": 8, "sym": False}, lambda w: gptq(w, bits=8, sym=False)),
    "packed": (compressed("pack-quantized", INT4), packed),
    "packed-zeros": (
        compressed("pack-quantized", INT4 | {"symmetric": False}),
        lambda w: packed(w, sym=False),
    ),
    "packed-8-bits": (
        compressed("pack-quantized", INT8 | {"strategy": "group", "group_size": 64}),
        lambda w: packed(w, 64, bits=8),
    ),
    "int8": (compressed("int-quantized", INT8, TOKEN8), int8),
    "fp8-channel": (
        compressed("float-quantized", FP8, TOKEN8 | {"type": "float"}),
        lambda w: fp8(w, 1),
    ),
    "fp8-static": (
        compressed("float-quantized", FP8 | {"strategy": "tensor"}, TENSOR8),
        lambda w: fp8(w, input_scale=0.03),
    ),
    "fp8-weights": (compressed("float-quantized", FP8), lambda w: fp8(w, 1)),
    "fp8-blocks-compressed": (
        compressed("float-quantized", BLOCK8, GROUP8),
        lambda w: fp8(w, 128, 128),
    ),
    "fp8": (FP8_TENSOR, fp8),
    "fp8-static-tensor": (
        FP8_TENSOR | {"activation_scheme": "static"},
        lambda w: fp8(w, input_scale=0.03),
    ),
    "fp8-blocks": (FP8_BLOCKS, lambda w: fp8(w, 128, 128, "weight_scale_inv")),
}
"""name -> (quantization_config, packer of a weight)"""
