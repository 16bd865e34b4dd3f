"""Runs the tiny models on the CPU and on the stranger, and prints both answers as JSON.

A program of its own, because a torch device cannot be unregistered:
python stranger.py BUILD_FOLDER NAME
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from inferplane.hw import BackendInfo, Device, DeviceInfo, TorchDevice, impl
from inferplane.plugins import Plugins
from inferplane.testing.workload import Answer, requests, serve, tiny_engine

SOURCE = Path(__file__).with_suffix(".cpp")
COUNTERS = ("fallbacks", "copies_in", "copies_out", "events_0", "events_1")


def register(folder: str, name: str) -> None:
    """Compile the device and tell torch its name and its device module."""
    import torch
    from torch.utils.cpp_extension import load

    load(
        "stranger",
        [str(SOURCE)],
        extra_cflags=["-O1"],
        build_directory=folder,
        is_python_module=False,
    )
    ops = torch.ops.stranger
    module = ModuleType(f"torch.{name}")
    facts: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: ops.current(),
        "set_device": lambda device: ops.select(torch.device(device).index),
        "synchronize": lambda *_: None,
        "_is_in_bad_fork": lambda: False,
        "manual_seed_all": lambda seed: None,
    }
    vars(module).update(facts)
    torch.utils.rename_privateuse1_backend(name)
    torch._register_device_module(name, module)


class Backend:
    def __init__(self, name: str) -> None:
        self.name = name

    @impl
    def backend_info(self) -> BackendInfo:
        return BackendInfo(name=self.name, version="1", devices=(self.name,))

    @impl
    def probe(self) -> list[DeviceInfo]:
        where = [self.name, f"{self.name}:1"] if self.name != "cpu" else ["cpu"]
        return [
            DeviceInfo(
                backend=self.name,
                ordinal=i,
                torch_device=place,
                name=place,
                memory_bytes=2**30,
            )
            for i, place in enumerate(where)
        ]

    @impl
    def create_device(self, info: DeviceInfo, options: Mapping[str, Any]) -> Device:
        return TorchDevice(info)


def answers(model: str, name: str, device: str, **config: Any) -> tuple[dict[str, Answer], int]:
    """What an engine on the device answers, and how many steps it keeps in flight."""
    plugins = Plugins()
    plugins.register(name, Backend(name))
    engine = tiny_engine(model, plugins, device, **config)
    return serve(engine, requests()[:6])[0], engine.loaded.depth


def compare(model: str, name: str, device: str, **config: Any) -> dict[str, Any]:
    import torch

    ops = torch.ops.stranger
    before = [ops.counter(i) for i in range(len(COUNTERS))]
    expected, _ = answers(model, "cpu", "cpu", **config)
    moved = [ops.counter(i) - n for i, n in enumerate(before)]
    got, depth = answers(model, name, device, **config)
    counted = [ops.counter(i) - n for i, n in enumerate(before)]
    return {
        "tokens": {k: a.tokens for k, a in got.items()},
        "expected": {k: a.tokens for k, a in expected.items()},
        "logprob_error": max(
            abs(mine.logprob - theirs.logprob)
            for k, a in expected.items()
            for mine, theirs in zip(got[k].logprobs, a.logprobs, strict=True)
        ),
        "depth": depth,
        "on_cpu": dict(zip(COUNTERS, moved, strict=True)),
        "on_device": dict(zip(COUNTERS, counted, strict=True)),
    }


def main(folder: str, name: str) -> None:
    register(folder, name)
    result = {
        "llama": compare("llama", name, name),
        "gemma3": compare("gemma3", name, f"{name}:1"),
        "deterministic": compare("llama", name, name, enable_deterministic_inference=True),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
