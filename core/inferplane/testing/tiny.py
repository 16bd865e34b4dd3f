"""Tiny random models that exercise every part of a family, made without a checkpoint."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 99,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "dtype": "float32",
}

GEMMA3: dict[str, Any] = LLAMA | {
    "model_type": "gemma3_text",
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 16,
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "query_pre_attn_scalar": 16,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}

WIDE: dict[str, Any] = LLAMA | {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "head_dim": 64,
    "vocab_size": 4096,
    "max_position_embeddings": 4096,
}
"""sizes that kernels for large models take"""

QWEN3: dict[str, Any] = LLAMA | {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
}
"""the shapes of Qwen3-0.6B, four layers of it"""

CONFIGS = {"llama": LLAMA, "gemma3": GEMMA3, "wide": WIDE, "qwen3": QWEN3}


class TinyTensors(Mapping[str, "Tensor"]):
    """Named weights in memory; implements weights.TensorSource."""

    def __init__(self, tensors: "dict[str, Tensor]") -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> "Tensor":
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def names(self) -> list[str]:
        return list(self._tensors)

    def nbytes(self, name: str) -> int:
        return self._tensors[name].nbytes


@dataclass(slots=True)
class TinySource:
    """A checkpoint of one of CONFIGS with random weights; the same seed gives the same."""

    name: str
    seed: int = 0
    config: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.config = dict(CONFIGS[self.name])

    def tensors(self) -> TinyTensors:
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        made = {}
        for name, shape in shapes(self.config).items():
            spread = 0.1 if len(shape) == 1 else 1.5 / shape[-1] ** 0.5
            made[name] = torch.randn(shape, generator=generator) * spread
            if len(shape) == 1 and self.name != "gemma3":  # whose norms add 1 themselves
                made[name] += 1.0
        return TinyTensors(made)


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face names and shapes of the weights."""
    d, f, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    gemma = config["model_type"] == "gemma3_text"
    head_norms = config["model_type"] in ("gemma3_text", "qwen3")
    made = {"model.embed_tokens.weight": (config["vocab_size"], d), "model.norm.weight": (d,)}
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if gemma else []
    for index in range(config["num_hidden_layers"]):
        layer: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (heads * size, d),
            "self_attn.k_proj": (kv_heads * size, d),
            "self_attn.v_proj": (kv_heads * size, d),
            "self_attn.o_proj": (d, heads * size),
            "mlp.gate_proj": (f, d),
            "mlp.up_proj": (f, d),
            "mlp.down_proj": (d, f),
        }
        layer |= dict.fromkeys(norms, (d,))
        if head_norms:
            layer |= dict.fromkeys(["self_attn.q_norm", "self_attn.k_norm"], (size,))
        made |= {f"model.layers.{index}.{name}.weight": s for name, s in layer.items()}
    if not config["tie_word_embeddings"]:
        made["lm_head.weight"] = (config["vocab_size"], d)
    return made
