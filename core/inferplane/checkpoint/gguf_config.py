"""Translates GGUF metadata to the layout of a Hugging Face config.json.

Knows the architectures llama (Mistral and SmolLM2 are written as llama too), qwen2, qwen3 and
gemma3. What the file does not say and the architecture fixes is filled in here.
"""

import math
from collections.abc import Callable
from typing import Any

from inferplane.checkpoint.gguf import GgufFile
from inferplane.errors import ModelError

Config = dict[str, Any]

GEMMA3_LOCAL_ROPE_THETA = 10000.0
GEMMA3_PATTERN = 6
"""every sixth layer of Gemma 3 sees everything, the others a window"""

END_OF_TURN = frozenset(
    "<|im_end|> <|eot_id|> <|eom_id|> <end_of_turn> <|end|> <|endoftext|> <|end_of_text|>".split()
)
"""control tokens that end an answer; many files name only one of theirs as the end"""

CONTROL = 3


def read_config(file: GgufFile) -> Config:
    """The config.json that this file's model would have."""
    arch = file.get("general.architecture")
    translate = ARCHITECTURES.get(arch)
    if translate is None:
        raise ModelError(
            f"{file.path} holds architecture {arch!r}, GGUF files are read for: "
            + ", ".join(ARCHITECTURES)
        )
    parts = file.get("split.count", 1)
    if parts != 1:
        raise ModelError(f"{file.path} is one of {parts} parts: merge them with llama-gguf-split")
    config = _common(file, arch)
    config |= translate(file, arch, config)
    return config


def read_generation_config(file: GgufFile) -> Config:
    """All ids that end an answer; GGUF has no sampling defaults."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = {file.get(f"tokenizer.ggml.{key}") for key in keys}
    tokens = file.get("tokenizer.ggml.tokens", [])
    types = file.get("tokenizer.ggml.token_type", [])
    for i, (token, kind) in enumerate(zip(tokens, types, strict=False)):
        if kind == CONTROL and token in END_OF_TURN:
            ids.add(i)
    return {"eos_token_id": sorted(i for i in ids if i is not None)}


def need(file: GgufFile, key: str, *kinds: type) -> Any:
    """A metadata value that must be there, of one of these types (int) and positive."""
    value: Any = file.get(key)
    if type(value) not in (kinds or (int,)) or not value > 0:
        raise ModelError(f"{file.path}: metadata {key} is {value!r}, must be a positive number")
    return value


def _common(file: GgufFile, arch: str) -> Config:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{file.path} has no token_embd.weight matrix: it is not a language model")
    if file.get(f"{arch}.expert_count", 0):
        raise ModelError(f"{file.path}: mixture-of-experts models are not read from GGUF files")
    heads = need(file, f"{arch}.attention.head_count")
    hidden = need(file, f"{arch}.embedding_length")
    if f"{arch}.attention.key_length" in file:
        head_dim = need(file, f"{arch}.attention.key_length")
    else:
        head_dim = hidden // heads
    rotated = file.get(f"{arch}.rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise ModelError(
            f"{file.path}: rope turns {rotated} of {head_dim} values of a head, which is not read"
        )
    key_heads = f"{arch}.attention.head_count_kv"
    eps = need(file, f"{arch}.attention.layer_norm_rms_epsilon", float)
    config: Config = {
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": need(file, f"{arch}.feed_forward_length"),
        "num_hidden_layers": need(file, f"{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": need(file, key_heads) if key_heads in file else heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        # Stored as float32; a config.json has the short decimal that it came from.
        "rms_norm_eps": float(f"{eps:.7g}"),
        "rope_theta": float(file.get(f"{arch}.rope.freq_base", 10000.0)),
        "rope_scaling": _rope_scaling(file, arch),
        "max_position_embeddings": need(file, f"{arch}.context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "torch_dtype": "bfloat16",
    }
    for name in ("bos", "eos", "pad"):
        value = file.get(f"tokenizer.ggml.{'padding' if name == 'pad' else name}_token_id")
        config[f"{name}_token_id"] = value
    return config


def _rope_scaling(file: GgufFile, arch: str) -> Config | None:
    if "rope_freqs.weight" in file.tensors:
        return _llama3_scaling(file, arch)
    kind = file.get(f"{arch}.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ModelError(f"{file.path}: rope scaling {kind!r}, supported: none, linear, yarn")
    scaling: Config = {
        "rope_type": kind,
        "factor": float(need(file, f"{arch}.rope.scaling.factor", int, float)),
    }
    if kind == "yarn":
        key = f"{arch}.rope.scaling.original_context_length"
        if key in file:
            scaling["original_max_position_embeddings"] = need(file, key)
        for name in ("beta_fast", "beta_slow"):
            value = file.get(f"{arch}.rope.scaling.yarn_{name}")
            if value is not None:
                scaling[name] = float(value)
    return scaling


def _llama3_scaling(file: GgufFile, arch: str) -> Config:
    """Llama 3.1 onwards: the file holds the divisor of each frequency, from which the settings
    are found again. They are recomputed and compared, so that a different rule is an error."""
    info = file.tensors["rope_freqs.weight"]
    if info.type.name != "F32":
        raise ModelError(f"{file.path}: rope_freqs.weight is {info.type.name}, must be F32")
    divisors = file.raw("rope_freqs.weight").cast("f").tolist()
    scaling: Config = {
        "rope_type": "llama3",
        "factor": round(max(divisors), 4),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    theta = float(file.get(f"{arch}.rope.freq_base", 10000.0))
    for i, found in enumerate(divisors):
        wavelength = 2 * math.pi * theta ** (i / len(divisors))
        # Between the two limits the inverse divisors are blended linearly in 8192 / wavelength.
        blend = min(1.0, max(0.0, (8192 / wavelength - 1.0) / (4.0 - 1.0)))
        expected = 1 / ((1 - blend) / scaling["factor"] + blend)
        if not math.isclose(found, expected, rel_tol=1e-3):
            raise ModelError(
                f"{file.path}: rope_freqs.weight[{i}] is {found:g}, Llama 3's rule gives"
                f" {expected:g}: other frequency scalings are not read from GGUF files"
            )
    return scaling


def _llama(file: GgufFile, arch: str, config: Config) -> Config:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    }


def _qwen2(file: GgufFile, arch: str, config: Config) -> Config:
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": False,
    }


def _qwen3(file: GgufFile, arch: str, config: Config) -> Config:
    return {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "use_sliding_window": False,
    }


def _gemma3(file: GgufFile, arch: str, config: Config) -> Config:
    layers = config["num_hidden_layers"]
    pattern = file.get("gemma3.attention.sliding_window_pattern", GEMMA3_PATTERN)
    if isinstance(pattern, list):
        local = [bool(value) for value in pattern]
    else:
        local = [(i + 1) % pattern != 0 for i in range(layers)]
    if len(local) != layers:
        raise ModelError(f"{file.path}: sliding_window_pattern has {len(local)} of {layers} layers")
    # The 27B alone scales scores by hidden_size / heads instead of head_dim; files do not say.
    wide = layers == 62
    scalar = config["hidden_size"] // config["num_attention_heads"] if wide else config["head_dim"]
    local_theta = file.get("gemma3.rope.freq_base_swa", GEMMA3_LOCAL_ROPE_THETA)
    # The architecture's own base, which old files leave out, is not that of the others.
    theta = float(file.get("gemma3.rope.freq_base", 1_000_000.0))
    return {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_act": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": scalar,
        "rope_theta": theta,
        "rope_local_base_freq": float(local_theta),
        "sliding_window": need(file, "gemma3.attention.sliding_window"),
        "layer_types": ["sliding_attention" if x else "full_attention" for x in local],
        "attn_logit_softcapping": file.get("gemma3.attn_logit_softcapping"),
        "final_logit_softcapping": file.get("gemma3.final_logit_softcapping"),
    }


ARCHITECTURES: dict[str, Callable[[GgufFile, str, Config], Config]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
}
"""GGUF architecture -> what it adds to the common fields"""
