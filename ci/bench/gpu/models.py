"""Shapes of the models that the benchmarks run with random weights."""

from typing import Any

from inferplane.errors import ModelError

COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama3-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
    "qwen3-8b": {
        "model_type": "qwen3",
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "head_dim": 128,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    },
}


class Shape:
    """A checkpoint that has a configuration and no weights: for --load-format dummy."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.config = COMMON | SHAPES[name]

    def tensors(self) -> Any:
        raise ModelError(f"{self.name} has no weights: use --load-format dummy")


WIDTHS = {"fp8": 1.0, "fp8-block": 1.0, "int8": 1.0, "int4": 0.5 + 4 / 128}
"""--quantization -> bytes of a weight with its share of scales; the head stays in bf16"""


def weight_bytes(config: dict[str, Any], width: float = 2.0) -> int:
    """Bytes of weights that a decode step reads: all but the embedding table, which is read by
    row; a tied one is read as the head. `width`: of a weight outside the head."""
    d, F, layers = (
        config["hidden_size"],
        config["intermediate_size"],
        config["num_hidden_layers"],
    )
    head = config.get("head_dim") or d // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    layer = d * (q + 2 * kv) + q * d + 3 * d * F
    return int(width * layers * layer + 2 * config["vocab_size"] * d)


def kv_bytes(config: dict[str, Any], tokens: int, width: int = 2) -> int:
    """Bytes of keys and values of so many tokens."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    per_layer = 2 * config["num_key_value_heads"] * head
    return int(config["num_hidden_layers"] * per_layer * tokens * width)
