"""Gemma 3, text (Gemma Team, arXiv 2503.19786): five layers with a sliding window to one with full
attention, each kind with its own rotary base; norms before and after each block."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inferplane.errors import ModelError
from inferplane.hw import ForwardBatch
from inferplane.layers import (
    Attention,
    Builder,
    Embedding,
    Head,
    LayerCache,
    Linear,
    NormLinear,
    NormMLP,
    NormWeight,
    RMSNorm,
)
from inferplane_models.rope import rope_spec

if TYPE_CHECKING:
    from torch import Tensor


DEFAULTS = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131_072,
    "hidden_activation": "gelu_pytorch_tanh",
}
"""what the files of the larger models leave out"""


def layer_types(config: dict[str, Any]) -> list[str]:
    layers = int(config["num_hidden_layers"])
    pattern = int(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern", 6))
    made = [
        "full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)
    ]
    return list(config.get("layer_types") or made)


def per_layer_rope(config: dict[str, Any]) -> dict[str, Any]:
    """Files before transformers 5 keep the two bases in fields of their own."""
    if config.get("rope_parameters"):
        return config
    scaling = config.get("rope_scaling") or {}
    full = {"rope_type": "default"} | scaling | {"rope_theta": config.get("rope_theta", 1e6)}
    local = {"rope_type": "default", "rope_theta": config.get("rope_local_base_freq", 1e4)}
    return config | {"rope_parameters": {"full_attention": full, "sliding_attention": local}}


def one_plus(config: dict[str, Any], build: Builder, name: str, dim: int) -> NormWeight:
    """Norms multiply by 1 + weight, and round once."""
    epsilon = float(config["rms_norm_eps"])
    return NormWeight(build, name, dim, epsilon, offset=1.0, cast_first=False)


class Layer:
    def __init__(self, config: dict[str, Any], build: Builder, index: int, kind: str) -> None:
        name, dim = f"model.layers.{index}", int(config["hidden_size"])
        heads, kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
        size = int(config["head_dim"])

        def norm(where: str, width: int) -> NormWeight:
            return one_plus(config, build, f"{name}.{where}", width)

        self.qkv = NormLinear(
            build,
            norm("input_layernorm", dim),
            [f"{name}.self_attn.{x}_proj" for x in "qkv"],
            [heads * size, kv_heads * size, kv_heads * size],
            bias=bool(config.get("attention_bias")),
        )
        self.attention = Attention(
            build,
            index,
            heads,
            rope_spec(config, size, build.max_model_len, build.dtype, kind),
            scale=float(config["query_pre_attn_scalar"]) ** -0.5,
            window=int(config["sliding_window"]) if kind == "sliding_attention" else 0,
            softcap=float(config.get("attn_logit_softcapping") or 0.0),
            head_norms=(norm("self_attn.q_norm", size), norm("self_attn.k_norm", size)),
        )
        self.out = Linear(build, f"{name}.self_attn.o_proj", heads * size, dim)
        self.post_attention_norm = RMSNorm(build, norm("post_attention_layernorm", dim))
        self.mlp = NormMLP(
            build,
            norm("pre_feedforward_layernorm", dim),
            f"{name}.mlp",
            int(config["intermediate_size"]),
            "gelu_tanh",
        )
        self.post_mlp_norm = RMSNorm(build, norm("post_feedforward_layernorm", dim))

    def forward(
        self, x: "Tensor", residual: "Tensor | None", batch: ForwardBatch
    ) -> "tuple[Tensor, Tensor]":
        """x [T, d] is what the previous block adds to the residual stream [T, d]."""
        qkv, residual = self.qkv(x, residual)
        x = self.post_attention_norm(self.out(self.attention(qkv, batch)))
        x, residual = self.mlp(x, residual)
        return self.post_mlp_norm(x), residual


class Gemma3:
    def __init__(self, config: dict[str, Any], build: Builder) -> None:
        dim, vocab = int(config["hidden_size"]), int(config["vocab_size"])
        self.embedding = Embedding(build, "model.embed_tokens", vocab, dim, scale=dim**0.5)
        self.layers = [Layer(config, build, i, kind) for i, kind in enumerate(layer_types(config))]
        self.norm = RMSNorm(build, one_plus(config, build, "model.norm", dim))
        softcap = float(config.get("final_logit_softcapping") or 0.0)
        tied = self.embedding if config.get("tie_word_embeddings", True) else None
        self.logits = Head(build, "lm_head", vocab, dim, tied, softcap)

    @staticmethod
    def settings(config: dict[str, Any]) -> dict[str, Any]:
        """The text part of a vision-language configuration, with what its file leaves out.
        ModelError for what this file does not compute."""
        shared = {name: config[name] for name in ("dtype", "torch_dtype") if name in config}
        text = DEFAULTS | shared | config.get("text_config", config)
        if text["hidden_activation"] != "gelu_pytorch_tanh":
            raise ModelError(
                f"hidden_activation {text['hidden_activation']!r} is not supported, only "
                "'gelu_pytorch_tanh' is"
            )
        if text.get("use_bidirectional_attention"):
            raise ModelError("use_bidirectional_attention is not supported: attention is causal")
        return per_layer_rope(text)

    @staticmethod
    def stored_name(name: str, stored: Sequence[str]) -> str:
        """Vision-language checkpoints, new and old, keep the text weights under other names."""
        new, old = name.replace("model.", "model.language_model.", 1), f"language_model.{name}"
        return next((found for found in (name, new, old) if found in stored), name)

    @staticmethod
    def caches(config: dict[str, Any]) -> list[LayerCache]:
        window = int(config["sliding_window"])
        return [
            LayerCache(
                num_kv_heads=int(config["num_key_value_heads"]),
                head_dim=int(config["head_dim"]),
                window=window if kind == "sliding_attention" else 0,
            )
            for kind in layer_types(config)
        ]

    def forward(self, batch: ForwardBatch) -> "Tensor":
        x, residual = self.embedding(batch.token_ids), None
        for layer in self.layers:
            x, residual = layer.forward(x, residual, batch)
        assert residual is not None
        return self.norm.add(x, residual)[0]
