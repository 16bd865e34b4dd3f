"""GGUF metadata and tensor names against transformers' own models of each family.

Tiny models are written the way conversion to GGUF writes them: rows of q and k interleaved for
architecture llama, 1 added to the norms of gemma3.
"""

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from inferplane.checkpoint.gguf import GgufFile
from inferplane.checkpoint.gguf_config import read_config, read_generation_config
from inferplane.checkpoint.gguf_tensors import GgufTensors
from inferplane.checkpoint.source import ModelSource
from inferplane.errors import ModelError

Weights = dict[str, NDArray[np.float32]]

COMMON = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_PARTS = PARTS | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(name: str, parts: dict[str, str]) -> str:
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, kind = name.rsplit(".", 1)
    if stem in top:
        return f"{top[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{parts[part]}.{kind}"


def interleave(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """A head's rows in the order 0, D/2, 1, D/2+1, ..."""
    by_half = weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(by_half.swapaxes(1, 2)).reshape(weight.shape)


def make(family: str, **changes: Any) -> Any:
    """A random model of transformers, norms and biases included."""
    torch.manual_seed(0)
    classes = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "gemma3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
    }
    config, model = classes[family]
    made = model(config(**COMMON | changes)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.2)
    return made


def write(
    path: Path,
    family: str,
    model: Any,
    extra: dict[str, Any] | None = None,
    rope_freqs: NDArray[np.float32] | None = None,
) -> Weights:
    """Write the model as conversion to GGUF would; returns what reading must give."""
    config = model.config
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for key, value in (extra or {}).items():
        add = {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    parts = GEMMA_PARTS if family == "gemma3" else PARTS
    weights: Weights = {}
    for name, parameter in model.named_parameters():
        weights[name] = value = parameter.detach().numpy().copy()
        if family == "gemma3" and name.endswith("norm.weight"):
            value = value + 1
        if family == "llama" and ".q_proj." in name:
            value = interleave(value, config.num_attention_heads)
        if family == "llama" and ".k_proj." in name:
            value = interleave(value, config.num_key_value_heads)
        writer.add_tensor(gguf_name(name, parts), value)
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {"rope_theta": 5e5}, {"llama.rope.freq_base": 5e5}),
    "llama untied, biased": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
        {},
    ),
    "llama tied": ("llama", {"tie_word_embeddings": True}, {"llama.rope.dimension_count": 16}),
    "llama linear": (
        "llama",
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}, {}),
    "qwen2 yarn": (
        "qwen2",
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            }
        },
        {
            "qwen2.rope.scaling.type": "yarn",
            "qwen2.rope.scaling.factor": 4.0,
            "qwen2.rope.scaling.original_context_length": 128,
        },
    ),
    "qwen3": ("qwen3", {"rope_theta": 1e6}, {"qwen3.rope.freq_base": 1e6}),
    "gemma3": (
        "gemma3",
        {"num_hidden_layers": 7, "sliding_window": 4, "query_pre_attn_scalar": 16},
        {"gemma3.attention.sliding_window": 4, "gemma3.rope.freq_base": 1e6},
    ),
    "gemma3 own pattern": (
        "gemma3",
        {
            "sliding_window": 4,
            "query_pre_attn_scalar": 16,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        {
            "gemma3.attention.sliding_window": 4,
            "gemma3.attention.sliding_window_pattern": [False, True, False],
        },
    ),
}


@pytest.mark.parametrize("case", FAMILIES)
def test_config_and_tensors_give_the_same_model(tmp_path: Path, case: str) -> None:
    family, changes, extra = FAMILIES[case]
    model = make(family, **changes)
    expected = write(tmp_path / "m.gguf", family, model, extra)
    file = GgufFile(tmp_path / "m.gguf")
    config = read_config(file)
    tensors = GgufTensors(file, config)
    assert sorted(tensors.names()) == sorted(expected)
    for name, value in expected.items():
        # (w + 1) - 1 is off by the rounding of the stored value.
        tolerance = 1e-6 if family == "gemma3" else 0
        np.testing.assert_allclose(tensors[name].numpy(), value, rtol=0, atol=tolerance)
        assert tensors.nbytes(name) == value.nbytes

    known = transformers.AutoConfig.for_model(**config)
    again = transformers.AutoModelForCausalLM.from_config(known, dtype=torch.float32).eval()
    again.load_state_dict({name: tensors[name] for name in tensors}, strict=False)
    ids = torch.arange(24)[None] * 5 % 96
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_demo_model_answers(demo_model: ModelSource) -> None:
    config = transformers.LlamaConfig(**demo_model.config)
    model = transformers.LlamaForCausalLM(config).eval()
    tensors = demo_model.tensors()
    model.load_state_dict({name: tensors[name] for name in tensors}, strict=False)
    tokenizer = demo_model.tokenizer()
    question = "What is the capital of France?"
    prompt = tokenizer.encode_chat([{"role": "user", "content": question}])
    with torch.no_grad():
        ids = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=2,
        )
    assert "Paris" in tokenizer.decode(ids[0, len(prompt) :].tolist())


LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def with_rope_freqs(path: Path, change: float = 1.0) -> None:
    """Llama 3.1's scaling: conversion writes a divisor for each frequency."""
    sizes = {"rope_theta": 5e5, "head_dim": 64, "max_position_embeddings": 16384}
    plain = make("llama", **sizes)
    scaled = make("llama", **sizes, rope_scaling=dict(LLAMA3_SCALING))
    divisors = (plain.model.rotary_emb.inv_freq / scaled.model.rotary_emb.inv_freq).numpy()
    assert divisors.min() == 1.0
    assert 1.1 < divisors[15] < 7
    divisors[15] *= change
    write(path, "llama", scaled, {"llama.rope.freq_base": 5e5}, divisors)


def test_llama3_rope_scaling_is_found_again(tmp_path: Path) -> None:
    with_rope_freqs(tmp_path / "m.gguf")
    file = GgufFile(tmp_path / "m.gguf")
    config = read_config(file)
    assert config["rope_scaling"] == LLAMA3_SCALING
    assert "rope_freqs.weight" not in GgufTensors(file, config)


def test_other_frequency_scalings_are_refused(tmp_path: Path) -> None:
    with_rope_freqs(tmp_path / "m.gguf", change=1.1)
    with pytest.raises(ModelError, match=r"rope_freqs\.weight\[15\] is .* Llama 3's rule gives"):
        read_config(GgufFile(tmp_path / "m.gguf"))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "experts": ({"llama.expert_count": 8}, "mixture-of-experts"),
    "part of a file": ({"split.count": 3}, "one of 3 parts"),
    "partial rope": ({"llama.rope.dimension_count": 8}, "turns 8 of 16"),
    "scaling": ({"llama.rope.scaling.type": "longrope"}, "supported: none, linear, yarn"),
    "no factor": ({"llama.rope.scaling.type": "yarn"}, r"scaling\.factor is None"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_variants_that_are_not_read(tmp_path: Path, case: str) -> None:
    extra, message = REFUSED[case]
    write(tmp_path / "m.gguf", "llama", make("llama"), extra)
    with pytest.raises(ModelError, match=message):
        read_config(GgufFile(tmp_path / "m.gguf"))


def small(path: Path, arch: str, tensors: tuple[str, ...], **values: int) -> GgufFile:
    writer = gguf.GGUFWriter(path, arch)
    for key, value in values.items():
        writer.add_uint32(key.replace("__", "."), value)
    for name in tensors:
        writer.add_tensor(name, np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile(path)


def test_unsupported_architecture_lists_the_supported(tmp_path: Path) -> None:
    file = small(tmp_path / "m.gguf", "mamba", ("token_embd.weight",))
    with pytest.raises(ModelError, match=r"'mamba', GGUF .*: llama, qwen2, qwen3, gemma3"):
        read_config(file)


def test_missing_and_absurd_metadata(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no token_embd\.weight"):
        read_config(small(tmp_path / "a.gguf", "llama", ("output_norm.weight",)))
    with pytest.raises(ModelError, match=r"llama\.attention\.head_count is None"):
        read_config(small(tmp_path / "b.gguf", "llama", ("token_embd.weight",)))
    counts = {"llama__attention__head_count": 0}
    with pytest.raises(ModelError, match=r"head_count is 0, must be a positive"):
        read_config(small(tmp_path / "c.gguf", "llama", ("token_embd.weight",), **counts))


def test_unknown_tensor_is_refused(tmp_path: Path) -> None:
    file = small(tmp_path / "m.gguf", "llama", ("token_embd.weight", "blk.0.ffn_gate_exps.weight"))
    with pytest.raises(ModelError, match=r"'blk\.0\.ffn_gate_exps\.weight' is of no known layer"):
        GgufTensors(file, {"model_type": "llama"})
    file = small(tmp_path / "n.gguf", "llama", ("token_embd.weight",))
    with pytest.raises(ModelError, match=r"has no tensor 'lm_head\.weight'"):
        GgufTensors(file, {"model_type": "llama"})["lm_head.weight"]


def test_all_ids_that_end_an_answer(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    tokens = ["a", "<s>", "</s>", "<|eot_id|>", "<|end|>", "<|im_end|>", "<other>"]
    writer.add_token_list(tokens)
    writer.add_token_types([1, 3, 3, 3, 1, 3, 3])  # <|end|> is a normal token here
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(6)
    writer.add_tensor("token_embd.weight", np.zeros((7, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_generation_config(GgufFile(tmp_path / "m.gguf")) == {"eos_token_id": [2, 3, 5, 6]}


def test_gemma3_27b_scales_scores_by_hidden_size(tmp_path: Path) -> None:
    model = make("gemma3", num_hidden_layers=62, num_attention_heads=2, sliding_window=4)
    write(tmp_path / "m.gguf", "gemma3", model, {"gemma3.attention.sliding_window": 4})
    config = read_config(GgufFile(tmp_path / "m.gguf"))
    assert config["query_pre_attn_scalar"] == 32
    assert config["head_dim"] == 16
    assert math.isclose(config["rope_theta"], 1e6)
