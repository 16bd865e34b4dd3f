"""The tensors of a GGUF file under their Hugging Face names and in Hugging Face's form: in float32,
or quantized as they are stored.

Two forms differ and are turned back: architecture llama stores the rows of q and k in the order
of interleaved rope, and gemma3 stores norm weights with the 1 already added.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from inferplane.checkpoint.gguf import GgufFile, TensorInfo
from inferplane.checkpoint.identity import identity
from inferplane.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from inferplane.hw.quantization import QuantizedWeight, Scheme

TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

GEMMA3_LAYER = LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

DERIVED = frozenset({"rope_freqs.weight"})
"""tensors that the config already tells"""


class GgufTensors:
    """Mapping from Hugging Face names to tensors; each is unpacked when it is asked for.
    Implements weights.QuantizedSource and weights.StoredSource."""

    def __init__(self, file: GgufFile, config: dict[str, Any]) -> None:
        self._file = file
        self._config = config
        self._gemma = config["model_type"] == "gemma3_text"
        layer = GEMMA3_LAYER if self._gemma else LAYER
        self._infos = {
            _hf_name(file, name, layer): info
            for name, info in file.tensors.items()
            if name not in DERIVED
        }

    def names(self) -> list[str]:
        return list(self._infos)

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def nbytes(self, name: str) -> int:
        """Size of what `self[name]` gives, which is float32 whatever the file has."""
        elements = 1
        for size in self._info(name).shape:
            elements *= size
        return elements * 4

    def __getitem__(self, name: str) -> "torch.Tensor":
        import numpy as np
        import torch

        from inferplane.checkpoint.dequantize import dequantize

        info = self._info(name)
        raw = self._rows(info)
        rows = len(raw)
        order = self._row_order(name, info)
        out = np.empty(info.shape, np.float32)
        if order is not None and len(info.shape) == 1:  # a bias: its entries are the rows
            raw, target = raw.reshape(len(order), -1), out.reshape(-1, 1)
        else:
            target = out.reshape(rows, info.shape[-1])
        dequantize(raw, info.type, target, order)
        if self._gemma and name.endswith("norm.weight"):
            out -= 1
        return torch.from_numpy(out)

    def identity(self) -> str | None:
        return identity([(self._file.path, self._file.state)])

    def release(self) -> None:
        self._file.release()

    def scheme(self, name: str) -> "Scheme | None":
        from inferplane.checkpoint.gguf_quantized import FORMS

        info = self._infos.get(name)
        stored = FORMS.get(info.type.name) if info is not None and len(info.shape) == 2 else None
        return stored.scheme if stored else None

    def quantized(self, name: str) -> "QuantizedWeight":
        from inferplane.checkpoint.gguf_quantized import repack

        info = self._info(name)
        return repack(self._rows(info), info.type, self._row_order(name, info))

    def _rows(self, info: TensorInfo) -> "NDArray[np.uint8]":
        """The packed bytes, [rows, bytes per row]"""
        import numpy as np

        size = info.shape[-1] // info.type.block * info.type.size
        return np.frombuffer(self._file.raw(info.name), np.uint8).reshape(-1, size)

    def _info(self, name: str) -> TensorInfo:
        if name not in self._infos:
            raise ModelError(f"{self._file.path} has no tensor {name!r}")
        return self._infos[name]

    def _row_order(self, name: str, info: TensorInfo) -> "NDArray[np.intp] | None":
        """Where each row of q or k lies in a file of architecture llama. Of a head of D rows the
        file has 0, D/2, 1, D/2+1, ... and neox rope wants 0, 1, 2, ..."""
        if self._config["model_type"] != "llama":
            return None
        if ".q_proj." in name:
            heads = self._config["num_attention_heads"]
        elif ".k_proj." in name:
            heads = self._config["num_key_value_heads"]
        else:
            return None
        import numpy as np

        rows = info.shape[0]
        if rows % (2 * heads) or (len(info.shape) == 1 and info.type.block != 1):
            raise ModelError(
                f"{self._file.path}: {info.name} has {rows} rows of type {info.type.name},"
                f" which {heads} heads cannot share"
            )
        by_head = np.arange(rows).reshape(heads, rows // heads // 2, 2)
        return by_head.swapaxes(1, 2).reshape(-1)


def _hf_name(file: GgufFile, name: str, layer: dict[str, str]) -> str:
    if name in TOP:
        return TOP[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in layer:
        raise ModelError(
            f"{file.path}: tensor {name!r} is of no known layer: the file holds a variant of its"
            " architecture that is not read"
        )
    return f"model.layers.{match[1]}.{layer[match[2]]}.{match[3]}"
