"""Tiny configurations of every family that we serve, odd sizes on purpose."""

from typing import Any

from transformers import (
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 307
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def rope(kind: str, theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **more}


def llama(**changes: Any) -> PretrainedConfig:
    return LlamaConfig(**(SIZES | changes))


def gemma3(**changes: Any) -> PretrainedConfig:
    """Window and full layers in a pattern of 3; theta of both kinds as in the real models."""
    sizes = SIZES | {"num_hidden_layers": 6, "num_key_value_heads": 1, "head_dim": 24}
    sizes |= {"sliding_window": 20, "sliding_window_pattern": 3, "query_pre_attn_scalar": 24}
    return Gemma3TextConfig(**(sizes | {"tie_word_embeddings": True} | changes))


FAMILIES: dict[str, PretrainedConfig] = {
    "llama": llama(),
    "llama-tied-wide-heads": llama(head_dim=24, tie_word_embeddings=True, num_key_value_heads=1),
    "llama-biased": llama(attention_bias=True, rms_norm_eps=1e-2),
    "llama-llama3-rope": llama(
        rope_parameters=rope(
            "llama3",
            5e5,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        )
    ),
    "llama-linear-rope": llama(rope_parameters=rope("linear", factor=4.0)),
    "llama-yarn-rope": llama(
        max_position_embeddings=512,
        rope_parameters=rope("yarn", factor=8.0, original_max_position_embeddings=64),
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=21, head_dim=16),
    "qwen2": Qwen2Config(**(SIZES | {"tie_word_embeddings": True})),
    "qwen2-windowed": Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=19, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**SIZES, head_dim=24),
    "qwen3-biased": Qwen3Config(**SIZES, head_dim=24, attention_bias=True),
    "gemma3": gemma3(),
    "gemma3-softcap-linear-rope": gemma3(
        final_logit_softcapping=4.0,
        rope_parameters={
            "full_attention": rope("linear", 1e6, factor=8.0),
            "sliding_attention": rope("default"),
        },
    ),
}
