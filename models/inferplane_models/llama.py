"""Llama and the families that differ from it in flags: Mistral, Qwen2, Qwen3, SmolLM2.

Pre-norm decoder with grouped-query attention, rotary embedding and a gated feed-forward
(Touvron et al., arXiv 2302.13971; Dubey et al., arXiv 2407.21783).
"""

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


def head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def windows(config: dict[str, Any], windowed: bool) -> list[int]:
    """The sliding window of each layer, 0 for full attention."""
    layers, window = int(config["num_hidden_layers"]), int(config.get("sliding_window") or 0)
    if not windowed or not config.get("use_sliding_window", True):
        return [0] * layers
    kinds = config.get("layer_types")
    if kinds:
        return [window if kind == "sliding_attention" else 0 for kind in kinds]
    first = int(config.get("max_window_layers") or 0)
    return [window if layer >= first else 0 for layer in range(layers)]


class Layer:
    def __init__(
        self,
        config: dict[str, Any],
        build: Builder,
        index: int,
        window: int,
        bias: bool,
        norms: bool,
    ) -> None:
        name, dim, size = f"model.layers.{index}", int(config["hidden_size"]), head_dim(config)
        heads, kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])

        def norm(where: str, width: int) -> NormWeight:
            return NormWeight(build, f"{name}.{where}", width, float(config["rms_norm_eps"]))

        self.qkv = NormLinear(
            build,
            norm("input_layernorm", dim),
            [f"{name}.self_attn.{x}_proj" for x in "qkv"],
            [heads * size, kv_heads * size, kv_heads * size],
            bias=bias,
        )
        head_norms = None
        if norms:
            head_norms = norm("self_attn.q_norm", size), norm("self_attn.k_norm", size)
        self.attention = Attention(
            build,
            index,
            heads,
            rope_spec(config, size, build.max_model_len, build.dtype),
            scale=size**-0.5,
            window=window,
            head_norms=head_norms,
        )
        self.out = Linear(
            build,
            f"{name}.self_attn.o_proj",
            heads * size,
            dim,
            bias=bool(config.get("attention_bias")),
        )
        self.mlp = NormMLP(
            build,
            norm("post_attention_layernorm", dim),
            f"{name}.mlp",
            int(config["intermediate_size"]),
        )

    def forward(
        self, x: "Tensor", residual: "Tensor | None", batch: ForwardBatch
    ) -> "tuple[Tensor, Tensor]":
        """x [T, d] is what the previous block adds to the residual stream [T, d]."""
        qkv, residual = self.qkv(x, residual)
        return self.mlp(self.out(self.attention(qkv, batch)), residual)


class Llama:
    def __init__(
        self,
        config: dict[str, Any],
        build: Builder,
        *,
        qkv_bias: bool = False,
        head_norms: bool = False,
        windowed: bool = False,
        **_: Any,
    ) -> None:
        dim, vocab = int(config["hidden_size"]), int(config["vocab_size"])
        self.embedding = Embedding(build, "model.embed_tokens", vocab, dim)
        bias = qkv_bias or bool(config.get("attention_bias"))
        self.layers = [
            Layer(config, build, i, window, bias, head_norms)
            for i, window in enumerate(windows(config, windowed))
        ]
        last = NormWeight(build, "model.norm", dim, float(config["rms_norm_eps"]))
        self.norm = RMSNorm(build, last)
        tied = self.embedding if config.get("tie_word_embeddings") else None
        self.logits = Head(build, "lm_head", vocab, dim, tied)

    @staticmethod
    def settings(
        config: dict[str, Any], *, defaults: dict[str, Any] | None = None, **_: Any
    ) -> dict[str, Any]:
        """With the family's defaults. ModelError for what this file does not compute."""
        made = (defaults or {}) | config
        if made.get("num_key_value_heads") is None:
            made["num_key_value_heads"] = config.get("num_attention_heads")
        if made.get("hidden_act", "silu") not in ("silu", "swish"):
            raise ModelError(f"hidden_act {made['hidden_act']!r} is not supported, only 'silu' is")
        if made.get("mlp_bias"):
            raise ModelError("mlp_bias is not supported: feed-forward layers have no bias here")
        return made

    @staticmethod
    def caches(config: dict[str, Any], *, windowed: bool = False, **_: Any) -> list[LayerCache]:
        heads, dim = int(config["num_key_value_heads"]), head_dim(config)
        return [
            LayerCache(num_kv_heads=heads, head_dim=dim, window=window)
            for window in windows(config, windowed)
        ]

    def forward(self, batch: ForwardBatch) -> "Tensor":
        x, residual = self.embedding(batch.token_ids), None
        for layer in self.layers:
            x, residual = layer.forward(x, residual, batch)
        assert residual is not None
        return self.norm.add(x, residual)[0]
