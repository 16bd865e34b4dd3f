"""Weights from files to the device by the ordinary loader, beside what the disk and the bus reach:
python ci/bench/gpu/loading.py --model llama3-8b --folder /some/disk

Writes a checkpoint of the model's shape with random values in several files, once. `cold`: after
the system was told to forget the files, which it does unless they are in use; `cached`: they are in
memory. The limit of a case is the slower of reading the same files by the same number of threads
and nothing else, measured in the same state, and of copies from pinned memory to the device.
"""

import argparse
import json
import os
import shutil
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from ceilings import seconds

from inferplane.checkpoint.source import FolderModel
from inferplane.checkpoint.staging import BUFFERS, PART, read_at
from inferplane.config import Config
from inferplane.plugins import Plugins
from inferplane.runner.load import construct
from inferplane.runner.prepare import Prepared, prepare
from models import COMMON, SHAPES

SHARD = 4 << 30


def tensors(config: dict[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes of a checkpoint, as its makers order them."""
    d, wide, vocab = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or d // heads
    yield "model.embed_tokens.weight", [vocab, d]
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield f"{layer}.input_layernorm.weight", [d]
        yield f"{layer}.post_attention_layernorm.weight", [d]
        for name, rows in (("q", heads), ("k", shared), ("v", shared)):
            yield f"{layer}.self_attn.{name}_proj.weight", [rows * head, d]
        if config["model_type"] == "qwen3":
            yield f"{layer}.self_attn.q_norm.weight", [head]
            yield f"{layer}.self_attn.k_norm.weight", [head]
        yield f"{layer}.self_attn.o_proj.weight", [d, heads * head]
        for name, shape in (("gate", [wide, d]), ("up", [wide, d]), ("down", [d, wide])):
            yield f"{layer}.mlp.{name}_proj.weight", shape
    yield "model.norm.weight", [d]
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", [vocab, d]


def write(folder: Path, config: dict[str, Any]) -> None:
    """config.json, shards of at most SHARD bytes, and their index."""
    shards: list[dict[str, Any]] = [{}]
    at = 0
    for name, shape in tensors(config):
        size = 2 * torch.Size(shape).numel()
        if at and at + size > SHARD:
            shards.append({})
            at = 0
        shards[-1][name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    values = torch.randn(32 << 20).mul_(0.02).bfloat16().view(torch.uint8).numpy().data
    places = {}
    for index, shard in enumerate(shards, 1):
        path = folder / f"model-{index:05}-of-{len(shards):05}.safetensors"
        header = json.dumps(shard).encode()
        left = max(tensor["data_offsets"][1] for tensor in shard.values())
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            while left:
                left -= file.write(values[:left])
            file.flush()
            os.fsync(file.fileno())  # pages that are to be written are not forgotten
        places |= dict.fromkeys(shard, path.name)
    index_file = folder / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps(config))


def forget(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(paths: list[Path]) -> None:
    """The ceiling: all bytes into a few buffers."""
    import numpy as np

    buffers = [np.ones(PART, np.uint8) for _ in range(BUFFERS)]
    parts = [(p, at) for p in paths for at in range(0, p.stat().st_size, PART)]
    files = {path: os.open(path, os.O_RDONLY) for path in paths}

    def work(lane: int) -> None:
        for path, at in parts[lane::BUFFERS]:
            count = min(PART, path.stat().st_size - at)
            read_at(files[path], path, at, buffers[lane][:count])

    with ThreadPoolExecutor(BUFFERS) as pool:
        list(pool.map(work, range(BUFFERS)))
    for file in files.values():
        os.close(file)


def timed(call: Any, *arguments: Any) -> float:
    begin = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - begin


def load(prepared: Prepared, source: FolderModel) -> None:
    construct(prepared, source, None)
    prepared.device.synchronize()


def bus(device: str, nbytes: int = 1 << 30) -> float:
    held = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(nbytes, dtype=torch.uint8, device=device)
    return nbytes / seconds(lambda: target.copy_(held, non_blocking=True), device, 5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llama3-8b", choices=SHAPES)
    parser.add_argument("--layers", type=int, help="instead of the model's: 4 have 3.8 GB")
    parser.add_argument("--folder", type=Path, required=True, help="for the checkpoint")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quantization", default="auto", help="as for serve")
    parser.add_argument("--keep", action="store_true", help="the files, for the next run")
    args = parser.parse_args()
    config = COMMON | SHAPES[args.model]
    config["num_hidden_layers"] = args.layers or config["num_hidden_layers"]
    folder: Path = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not (folder / "config.json").exists():
            took = timed(write, folder, config)
            print(f"written in {took:.1f} s")
        measure(args, folder, config)
    finally:
        if not args.keep:
            shutil.rmtree(folder)


def measure(args: argparse.Namespace, folder: Path, config: dict[str, Any]) -> None:
    paths = sorted(folder.glob("*.safetensors"))
    total = sum(path.stat().st_size for path in paths)
    source = FolderModel(args.model, folder, config, {})
    settings = Config(
        model=str(folder), device=args.device, quantization=args.quantization, max_model_len=4096
    )
    plugins = Plugins()
    device = prepare(settings, config, plugins).device.info
    copied = bus(device.torch_device)
    torch.get_device_module(device.torch_device).empty_cache()
    print(f"{device.name}: {total / 1e9:.2f} GB in {len(paths)} files, pinned copies "
          f"{copied / 1e9:.1f} GB/s")  # fmt: skip
    print(f"{'case':<10}{'seconds':>10}{'GB/s':>10}{'reads':>10}{'of limit':>10}")
    for case in ("cold", "cached"):
        if case == "cold":
            forget(paths)
        reads = total / timed(read_all, paths)
        if case == "cold":
            forget(paths)
        took = timed(load, prepare(settings, config, plugins), source)
        torch.get_device_module(device.torch_device).empty_cache()
        rate, limit = total / took, min(reads, copied)
        shown = f"{case:<10}{took:>10.2f}{rate / 1e9:>10.2f}{reads / 1e9:>10.2f}"
        print(f"{shown}{rate / limit:>10.0%}", flush=True)


if __name__ == "__main__":
    main()
