"""Compiles attention as it would be launched for the conformance specs and larger heads, as
compile_shared.py does the products: no kernel may take more shared memory than the device has."""

import sys
from dataclasses import replace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget

from inferplane.hw import DeviceInfo, Reject, TorchDevice
from inferplane.hw.ops import TABLE
from inferplane.testing.op_run import Built
from inferplane.testing.ops import conformance_cases
from inferplane_triton import attention
from inferplane_triton.kernels import attention as kernels
from inferplane_triton.shared_memory import Room
from tests.backends.triton.compile_shared import Launched

HEADS = ((32, 8, 128), (16, 8, 128), (8, 4, 256))
"""(queries, keys, width): Llama 3 8B, Qwen3 0.6B, Gemma 3 4B"""


class Compiled(Launched):
    def count(self, given: dict[str, Any], options: dict[str, Any]) -> int:
        return self.room.bytes


def specs() -> list[Any]:
    """Not float32, which is for tests and takes long to compile"""
    made = conformance_cases("attention.paged", ("bfloat16",))
    plain = next(s for s in made if not s.window and not s.sinks)
    for heads, shared, width in HEADS:
        kv = replace(plain.kv, num_kv_heads=shared, head_dim=width)
        made += [replace(plain, num_heads=heads, kv=kv, tree=tree) for tree in (False, True)]
    return made


def build(target: GPUTarget, room: Room) -> None:
    device = TorchDevice(DeviceInfo(backend="test", torch_device="cpu", name="", arch=room.arch))
    replaced: Any = attention
    replaced.core_count = lambda device: 132
    watched = [
        Compiled(getattr(kernels, name), target, room) for name in ("tiled", "split", "merge")
    ]
    for one in watched:
        setattr(kernels, one.kernel.__name__, one)
    for spec in specs():
        impl = attention.PagedAttention()
        if isinstance(impl.supports(spec, device), Reject):
            continue
        built = Built("attention.paged", impl, spec, device)
        inputs = TABLE["attention.paged"].inputs(spec, 1)
        built(inputs)
        decode = replace(inputs["batch"], max_q=1, max_kv=4096)
        built(inputs | {"batch": decode})
    for one in watched:
        used = max(used for used, _ in one.seen.values())
        print(one.kernel.__name__, len(one.seen), used)


if __name__ == "__main__":
    backend, arch, width, limit = sys.argv[1:]
    number = int(arch) if arch.isdecimal() else arch
    name = f"sm_{arch}" if backend == "cuda" else arch
    with torch.inference_mode():
        build(GPUTarget(backend, number, int(width)), Room(int(limit), name))
