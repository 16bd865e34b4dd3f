"""The architectures that come with inferplane: Hugging Face model_type -> class and its flags.

A family that differs only in flags is a row here, not a file of its own. Other packages add rows
through the entry point group `inferplane.models`.
"""

from typing import Any

Row = tuple[str, dict[str, Any]]
"""("module:Class", keyword arguments of the class)"""

LLAMA = "inferplane_models.llama:Llama"

QWEN = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}

ARCHITECTURES: dict[str, Row] = {
    "llama": (LLAMA, {}),
    "mistral": (LLAMA, {"windowed": True, "defaults": {"sliding_window": 4096}}),
    "qwen2": (LLAMA, {"qkv_bias": True, "windowed": True, "defaults": QWEN}),
    "qwen3": (LLAMA, {"head_norms": True, "windowed": True, "defaults": QWEN}),
    "gemma3_text": ("inferplane_models.gemma3:Gemma3", {}),
    "gemma3": ("inferplane_models.gemma3:Gemma3", {}),
}
