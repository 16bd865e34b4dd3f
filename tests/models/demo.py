"""The demo model in transformers, with the weights that we read, and the configuration of Gemma 3
270M."""

from functools import cache, partial
from pathlib import Path

import torch
from transformers import Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from inferplane.checkpoint.source import ModelSource, open_model

TEXT = Path(__file__).parents[2] / "LICENSE"

GEMMA3_270M = partial(
    Gemma3TextConfig,
    vocab_size=262144,
    hidden_size=640,
    intermediate_size=2048,
    num_hidden_layers=18,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=256,
    query_pre_attn_scalar=256,
    sliding_window=512,
    max_position_embeddings=32768,
)


@cache
def smollm2() -> tuple[ModelSource, dict[str, torch.Tensor]]:
    source = open_model("smollm2")
    tensors = source.tensors()
    return source, {name: tensors[name].float() for name in tensors.names()}


def reference(dtype: torch.dtype) -> LlamaForCausalLM:
    """transformers with the very weights that we read, so that only the computation differs."""
    source, weights = smollm2()
    config = LlamaConfig(**source.config, attn_implementation="eager")
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    made = LlamaForCausalLM(config).to(dtype)
    made.load_state_dict(model.state_dict())
    return made.eval()


def english() -> list[int]:
    """More than 2,000 tokens of it."""
    ids = open_model("smollm2").tokenizer().encode(TEXT.read_text(), add_special_tokens=False)
    assert len(ids) > 2000
    return ids
