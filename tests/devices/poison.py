"""An engine that a token breaks in the middle of serving, in process or as the engine process of a
test: `python -m tests.devices.poison DIRECTORY`, where --device is

failing     the op raises what torch raises for a device that failed, and so does all that follows
null        the op raises an error that leaves the device whole
any other   an index far outside the embedding table: real accelerators fail at that
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from inferplane.config import Config
from inferplane.engine import EngineCore, open_engine
from inferplane.errors import DeviceError
from inferplane.hw import BackendInfo, Bound, Device, DeviceInfo, OpImpl, Support, TorchDevice, impl
from inferplane.hw.ops import TABLE
from inferplane.ipc import engine_process
from inferplane.messages import Submit
from inferplane.plugins import OPS, Plugins
from inferplane.sampling_params import SamplingParams
from inferplane.testing.null import NullBackend
from inferplane.testing.tiny import TinySource

POISON = 13
FAR = 2**28
ASSERTION = "CUDA error: device-side assert triggered"


class FailingDevice(TorchDevice):
    """Once it has failed, nothing works any more."""

    failed = False

    def synchronize(self) -> None:
        if self.failed:
            raise DeviceError(f"{self.info.torch_device} failed: {ASSERTION}")


class PoisonedEmbedding:
    name = "poisoned.embedding"

    def supports(self, spec: Any, device: Device) -> Support:
        return Support(priority=99, invariance="batch", notes="of a test")

    def build(self, spec: Any, ctx: Any) -> Bound:
        inner, device = TABLE["embedding"].reference.build(spec, ctx).run, ctx.device

        def run(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            if isinstance(device, FailingDevice) and bool((ids == POISON).any()):
                device.failed = True
                raise torch.AcceleratorError(ASSERTION)
            found: torch.Tensor = inner(ids + (ids == POISON) * FAR, weight)
            return found

        return Bound(run=run)


class Pack:
    """The op pack: `Plugins().register("poison", Pack, OPS)`."""

    @staticmethod
    @impl
    def op_impls(device: Device) -> Iterable[tuple[str, OpImpl]]:
        return [("embedding", PoisonedEmbedding())]


class FailingBackend:
    @staticmethod
    @impl
    def backend_info() -> BackendInfo:
        return BackendInfo(name="failing", version="1", devices=("failing",), rank=0)

    @staticmethod
    @impl
    def probe() -> list[DeviceInfo]:
        return [DeviceInfo(backend="failing", torch_device="cpu", name="a device that fails")]

    @staticmethod
    @impl
    def create_device(info: DeviceInfo, options: Mapping[str, Any]) -> Device:
        return FailingDevice(info)


def poisoned(device: str, **settings: Any) -> EngineCore:
    plugins = Plugins()
    plugins.register("failing", FailingBackend)
    plugins.register("null", NullBackend())
    plugins.register("poison", Pack, OPS)
    values: dict[str, Any] = {"dtype": "float32", "max_running": 8, "kv_cache_tokens": 2048}
    config = Config(model="llama", device=device, **(values | settings))
    return open_engine(config, TinySource("llama"), plugins)


def ask(name: str, prompt: list[int], count: int = 400) -> Submit:
    """A request that never draws the poison by itself."""
    return Submit(
        request_id=name,
        prompt=prompt,
        params=SamplingParams(temperature=0.0, logit_bias={POISON: -100.0}, ignore_eos=True),
        stop_ids=[],
        max_tokens=count,
        seed=0,
    )


def _build(config: Config, progress: Any) -> EngineCore:
    return poisoned(config.device)


def _drive(device: str) -> None:
    """Serve in this process until the device fails: the next line is the last of its life."""
    core = poisoned(device)
    for index in range(3):
        core.handle(ask(f"r{index}", [1, 2, 3 + index]))
    steps = tokens = 0
    while True:
        tokens += sum(len(output.tokens) for output in core.step())  # type: ignore[union-attr]
        steps += 1
        if steps == 20:
            print(f"{tokens} tokens before the poison", flush=True)
            core.handle(ask("poison", [1, POISON]))


if __name__ == "__main__":
    if sys.argv[1] == "--drive":
        _drive(sys.argv[2])
    engine_process.main(_build)
