"""Quantized safetensors checkpoints against numbers that the test packs itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from inferplane.checkpoint.quantized import configured_scheme, find_format
from inferplane.checkpoint.source import open_model
from inferplane.errors import ModelError
from inferplane.hw.quantization import Scheme, dequantize
from inferplane.weights import CheckpointWeights, QuantizedSource
from tests.core.checkpoint.packing import (
    AWQ,
    FORMATS,
    FP8,
    FP8_TENSOR,
    GPTQ,
    INT4,
    INT8,
    TENSOR8,
    TOKEN8,
    Parts,
    awq,
    compressed,
    fp8,
    gptq,
    packed,
)

NAME = "model.layers.0.mlp.up_proj"
N, K = 136, 192


def weight(n: int = N, k: int = K) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(n))


def source(folder: Path, settings: dict[str, Any], parts: Parts) -> QuantizedSource:
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings}))
    dense = {"lm_head.weight": torch.ones(4, 4), f"{NAME}.bias": torch.ones(N)}
    save_file(dense | {f"{NAME}.{k}": v for k, v in parts.items()}, folder / "model.safetensors")
    found = open_model(str(folder)).tensors()
    assert isinstance(found, QuantizedSource)
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_a_weight_means_what_was_packed(name: str, tmp_path: Path) -> None:
    settings, pack = FORMATS[name]
    parts, meant = pack(weight())
    tensors = source(tmp_path, settings, parts)
    assert sorted(tensors.names()) == ["lm_head.weight", f"{NAME}.bias", f"{NAME}.weight"]
    read = tensors.quantized(f"{NAME}.weight")
    assert read.scheme == tensors.scheme(f"{NAME}.weight")
    assert read.scheme == configured_scheme({"quantization_config": settings})(f"{NAME}.weight")
    assert tensors.scheme("lm_head.weight") is None
    assert (read.out_features, read.in_features) == (N, K)
    assert (dequantize(read, "float64") - meant).abs().max() <= 1e-6 * meant.abs().max()
    dense = tensors[f"{NAME}.weight"]
    assert (dense - meant).abs().max() <= 1e-6 * meant.abs().max()
    assert tensors.nbytes(f"{NAME}.weight") == sum(p.nbytes for p in parts.values())


SCHEMES: dict[str, Scheme] = {
    "awq": Scheme(weight="int4", group=32, asymmetric=True),
    "gptq-row": Scheme(weight="int4"),
    "packed-8-bits": Scheme(weight="int8", group=64),
    "int8": Scheme(weight="int8", activation="int8"),
    "fp8-static": Scheme(
        weight="float8_e4m3fn", rows=0, activation="float8_e4m3fn", static=True
    ),
    "fp8-weights": Scheme(weight="float8_e4m3fn"),
    "fp8-blocks": Scheme(
        weight="float8_e4m3fn",
        rows=128,
        group=128,
        activation="float8_e4m3fn",
        activation_group=128,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMES)
def test_schemes_of_formats(name: str) -> None:
    found = find_format({"quantization_config": FORMATS[name][0]})
    assert found is not None
    assert found.scheme(NAME) == SCHEMES[name]


def test_static_input_scales_are_read(tmp_path: Path) -> None:
    for name in ("fp8-static", "fp8-static-tensor"):
        settings, pack = FORMATS[name]
        read = source(tmp_path, settings, pack(weight())[0]).quantized(f"{NAME}.weight")
        assert read.input_scale is not None
        assert read.input_scale.tolist() == [pytest.approx(0.03)]


def test_weights_are_taken_as_stored_or_rounded_again(tmp_path: Path) -> None:
    parts, meant = awq(weight())
    weights = CheckpointWeights(source(tmp_path, AWQ, parts), "bfloat16", "cpu")
    name, shape = f"{NAME}.weight", (N, K)
    stored = weights.scheme(name)
    assert stored is not None
    assert weights.take(name, shape).dtype == torch.bfloat16
    wide = Scheme(weight="int8", group=16, asymmetric=True, activation="int8")
    for scheme in (stored, wide):
        kept = weights.take_quantized(name, shape, scheme)
        assert kept.scheme == scheme
        assert (dequantize(kept, "float64") - meant).abs().max() < 1e-5
    rounded = weights.take_quantized(name, shape, Scheme(weight="int8"))
    error = (dequantize(rounded, "float64") - meant).abs()
    assert 1e-4 < error.max() < meant.abs().max() / 200
    with pytest.raises(ModelError, match=r"shape \[136, 192\], the configuration wants \[192, 136"):
        weights.take_quantized(name, (K, N), stored)
    assert weights.unused() == ["lm_head.weight", f"{NAME}.bias"]


def test_groups_and_exceptions_of_compressed_tensors() -> None:
    settings = compressed("pack-quantized", INT4)
    settings["ignore"] = ["lm_head", "re:.*self_attn.*"]
    settings["config_groups"]["group_1"] = {
        "targets": ["re:.*down_proj$"],
        "weights": INT8,
        "input_activations": TOKEN8,
        "format": "int-quantized",
    }
    found = find_format({"text_config": {"quantization_config": settings}})
    assert found is not None
    assert found.scheme(NAME) == Scheme(weight="int4", group=32)
    down = found.scheme("model.layers.0.mlp.down_proj")
    assert down == Scheme(weight="int8", activation="int8")
    assert found.scheme("model.layers.0.self_attn.q_proj") is None
    assert find_format({"model_type": "llama"}) is None
    listed = configured_scheme({"quantization_config": FP8_TENSOR | {
        "modules_to_not_convert": ["model.layers.1", "gate_proj"]
    }})  # fmt: skip
    assert listed("model.layers.1.mlp.up_proj.weight") is None
    assert listed("model.layers.10.mlp.up_proj.weight") is not None
    assert listed("model.layers.0.mlp.gate_proj.weight") is None
    assert listed("model.embed_tokens.weight") is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "bitsandbytes"}, ["'bitsandbytes'", "awq", "gptq", "GGUF"]),
        ({}, ["None", "fp8"]),
        (AWQ | {"version": "gemv"}, ["version 'gemv'", "'gemm'"]),
        (AWQ | {"bits": 3}, ["bits 3", "4"]),
        (AWQ | {"group_size": 48}, ["group_size 48", "128"]),
        (AWQ | {"zero_point": False}, ["zero_point False"]),
        (GPTQ | {"bits": 2}, ["bits 2", "4, 8"]),
        (GPTQ | {"group_size": 7}, ["group_size 7"]),
        (GPTQ | {"checkpoint_format": "marlin"}, ["checkpoint_format 'marlin'"]),
        (FP8_TENSOR | {"activation_scheme": None}, ["activation_scheme None", "'dynamic'"]),
        (FP8_TENSOR | {"fmt": "e5m2"}, ["fmt 'e5m2'"]),
        (FP8_TENSOR | {"weight_block_size": [128]}, ["weight_block_size [128]"]),
        (compressed("marlin-24", INT4), ["format marlin-24", "pack-quantized"]),
        (compressed("pack-quantized", INT4 | {"num_bits": 3}), ["int, 3 bits"]),
        (compressed("pack-quantized", INT4 | {"group_size": None}), ["group_size None"]),
        (compressed("int-quantized", INT8, TOKEN8 | {"num_bits": 4}), ["input_activations"]),
        (compressed("float-quantized", FP8, TENSOR8 | {"symmetric": False}), ["symmetric"]),
        (compressed("int-quantized", INT8) | {"sparsity_config": {"x": 1}}, ["sparsity_config"]),
        (compressed("int-quantized", INT8) | {"config_groups": None}, ["config_groups"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_settings_that_are_not_read(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        find_format({"quantization_config": settings | {"x": 0}})
    for word in words:
        assert word in str(caught.value), caught.value


def bad(parts: Parts, **changes: torch.Tensor | None) -> Parts:
    made = dict(parts) | {k: v for k, v in changes.items() if v is not None}
    return {k: v for k, v in made.items() if k not in changes or changes[k] is not None}


SYM = gptq(weight())[0]
SHUFFLED = SYM["g_idx"].flip(0).contiguous()
ZEROS = packed(weight(), sym=False)[0]


@pytest.mark.parametrize(
    ("settings", "parts", "words"),
    [
        (AWQ, bad(awq(weight())[0], scales=None), "has no model.layers.0.mlp.up_proj.scales"),
        (AWQ, bad(awq(weight())[0], qweight=torch.ones(4)), "float32 [4], not an int32 matrix"),
        (AWQ, awq(weight(), 64)[0], "its scales have shape [136, 3]"),
        (AWQ | {"group_size": 128}, awq(weight(), 64)[0], "groups of 128 do not divide"),
        (GPTQ, bad(SYM, g_idx=SHUFFLED), "desc_act"),
        (GPTQ, gptq(weight(), sym=False)[0], "zero points are not 8"),
        (GPTQ | {"sym": False}, bad(SYM, scales=torch.ones(2, N)), "136, 6] zero points for"),
        (
            compressed("pack-quantized", INT4 | {"symmetric": False}),
            bad(ZEROS, weight_zero_point=None),
            "has no model.layers.0.mlp.up_proj.weight_zero_point",
        ),
        (
            compressed("pack-quantized", INT4),
            bad(ZEROS, weight_shape=torch.tensor([7, K])),
            "weight_shape says 7",
        ),
        (
            compressed("pack-quantized", INT4),
            bad(ZEROS, weight_g_idx=torch.arange(K).flip(0)),
            "actorder",
        ),
        (compressed("pack-quantized", INT4) | {"ignore": [NAME]}, ZEROS, "exempts it"),
        (FP8_TENSOR, bad(fp8(weight())[0], weight=weight()), "float32 [136, 192], not a float8"),
        (FP8_TENSOR, fp8(weight(), 1)[0], "its scales have shape [136, 1]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_weights(
    settings: dict[str, Any], parts: Parts, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as caught:
        source(tmp_path, settings, parts).quantized(f"{NAME}.weight")
    assert NAME in str(caught.value)
    assert words in str(caught.value)
