"""GGUF files of bf16 weights, in llama.cpp's environment:

write_gguf.py FOLDER OUT.gguf       a Hugging Face folder of the qwen3 kind, without vocabulary
write_gguf.py IN.gguf OUT.gguf TYPE  another type by llama.cpp's quantizer: BF16 Q8_0 Q4_0 Q4_1
"""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

TYPES = {
    "BF16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1,
}


def quantize(source: str, target: str, kind: str) -> None:
    """Values that are quantized already are taken as they are and quantized again."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = TYPES[kind], True, 2
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), params):
        raise SystemExit(f"llama.cpp did not quantize {source}")


def tensors(path: Path) -> dict[str, Any]:
    """The bits of a safetensors file whose values are all bf16: name -> u16 of its shape."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r", offset=8 + size)
    found = {}
    for name, info in header.items():
        if info["dtype"] != "BF16":
            raise SystemExit(f"{name} is {info['dtype']}, must be BF16")
        begin, end = info["data_offsets"]
        found[name] = data[begin:end].view(np.uint16).reshape(info["shape"])
    return found


def write(folder: Path, target: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "qwen3":
        raise SystemExit(f"{config['model_type']} is not written as GGUF, only qwen3 is")
    writer = gguf.GGUFWriter(target, "qwen3")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(TYPES["BF16"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    for name, bits in tensors(folder / "model.safetensors").items():
        stored = names.get_name(name, try_suffixes=(".weight",))
        if bits.ndim == 1:  # norms are float32 there
            writer.add_tensor(stored, (bits.astype(np.uint32) << 16).view(np.float32))
        else:
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(stored, bits.view(np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) == 4:
        quantize(*sys.argv[1:])
    else:
        write(Path(sys.argv[1]), sys.argv[2])
