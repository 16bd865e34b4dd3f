"""What a start sets aside before the rest becomes KV cache."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inferplane.config import Config
from inferplane.errors import ConfigError
from inferplane.hw import DeviceInfo, Hints
from inferplane.hw.host import HostMemory
from inferplane.runner import memory
from inferplane.runner.memory import recorded_tokens, step_bytes
from inferplane.testing.null import SETTINGS, NullDevice
from inferplane.testing.tiny import TinySource
from tests.devices.engines import open_null

INFO = DeviceInfo(backend="null", torch_device="cpu", name="n", shape_policy="bucketed")
HINTS = Hints(token_buckets=(1, 8, 64, 512), mixed_buckets=((128, 8), (96, 16)))
MODEL = {"hidden_size": 4, "intermediate_size": 10, "vocab_size": 100}


@pytest.mark.parametrize(
    ("config", "info", "hints", "tokens"),
    [
        ({}, {}, HINTS, 128),
        ({"max_running": 512}, {}, HINTS, 512),
        ({}, {}, replace(HINTS, mixed_buckets=()), 64),
        ({"disable_graphs": True}, {}, HINTS, 0),
        ({}, {"shape_policy": "dynamic"}, HINTS, 0),
        ({}, {}, Hints(), 0),
    ],
)
def test_recordings_have_memory_of_their_own(
    config: dict[str, int], info: dict[str, str], hints: Hints, tokens: int
) -> None:
    device = NullDevice(replace(INFO, **info), SETTINGS["bucketed"])  # type: ignore[arg-type]
    settings = Config(model="m", **({"max_running": 64} | config))  # type: ignore[arg-type]
    assert recorded_tokens(settings, device, hints) == tokens


def test_a_step_needs_activations_and_logits() -> None:
    config = Config(model="m", dtype="bfloat16", max_running=8)
    assert step_bytes(MODEL, config, 0) == 0
    assert step_bytes(MODEL, config, 32) == 32 * (32 + 30) * 2 + 3 * 8 * 100 * 4


class Full(TorchDispatchMode):
    """The memory of a device in which another program leaves room for three tensors."""

    left = 3

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.empty.memory_format and made.device.type != "meta":
            self.left -= 1
            if self.left < 0:
                raise torch.OutOfMemoryError("out of memory. Tried to allocate 2.00 MiB.")
        return made


def test_memory_that_runs_out_while_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check before it has found enough."""
    full = Full()  # type: ignore[no-untyped-call]
    stored = TinySource("llama").tensors()
    free = {3: 3 << 30, -1: 9}
    monkeypatch.setattr(NullDevice, "memory", lambda _: (free[full.left], 4 << 30))
    monkeypatch.setattr(memory, "host_memory", lambda: HostMemory(0, 0))
    monkeypatch.setattr(memory, "_gib", str)
    with pytest.raises(ConfigError) as error, full:
        open_null("llama", SETTINGS["dynamic"], load_format="dummy")
    assert str(error.value) == (
        f"llama does not fit the memory of null device: 9 of {4 << 30} are free; memory ran out "
        f"while weights were loaded, which need {sum(map(stored.nbytes, stored.names()))} in all "
        "and more while they are converted; choose a smaller model, --quantization int8 or int4, "
        "or end other programs"
    )
