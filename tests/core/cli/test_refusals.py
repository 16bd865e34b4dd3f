"""What cannot work is refused before a weight is read, with numbers and what to change."""

from pathlib import Path
from typing import Any

import pytest

from inferplane.checkpoint.safetensors import SafetensorsTensors
from inferplane.config import Config
from inferplane.errors import ConfigError
from inferplane.hw import DeviceInfo, HostThreads, TorchDevice, torch_device
from inferplane.hw.host import HostMemory
from inferplane.offline import Engine
from inferplane.runner import memory
from inferplane.runner.build import choose_threads
from tests.core.offline.tiny_model import WEIGHTS

MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: object, name: str) -> None:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(SafetensorsTensors, "__getitem__", read)


def refusal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, have: HostMemory, **settings: Any
) -> str:
    for module in (torch_device, memory):
        monkeypatch.setattr(module, "host_memory", lambda: have)
    with pytest.raises(ConfigError) as error:
        Engine(str(folder), device="plain", **settings)
    return str(error.value)


@pytest.mark.parametrize("settings", [{}, {"kv_cache_tokens": 4096}])
def test_memory_too_small_for_the_model(
    settings: dict[str, Any],
    tiny_folder: Path,
    backends: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    have = HostMemory(16 * MIB, 64 * MIB, "memory.max of the control group")
    text = refusal(tiny_folder, monkeypatch, have, max_batch_tokens=8192, **settings)
    limit = "0.06 GiB (memory.max of the control group)"
    assert f"{tiny_folder} does not fit the memory of Plain One: 0.02 GiB of {limit} are" in text
    assert f"weights need {WEIGHTS / 2**30:.2f} GiB, a step needs 0." in text
    for what in ("--quantization int8 or int4", "--max-batch-tokens (8192)", "--max-running (256)"):
        assert what in text
    assert text.endswith(f"or raise the limit of {limit}")


def test_a_machine_without_a_limit_and_a_model_that_is_small_already(
    tiny_folder: Path, backends: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have = HostMemory(MIB, 64 * MIB)
    text = refusal(tiny_folder, monkeypatch, have, quantization="int8")
    assert "--quantization" not in text and "limit" not in text


def test_cache_that_does_not_fit(
    tiny_folder: Path, backends: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have = HostMemory(1024 * MIB, 2048 * MIB)
    text = refusal(tiny_folder, monkeypatch, have, kv_cache_tokens=10**8)
    assert text.startswith("--kv-cache-tokens 100000000 needs ")


def test_threads_for_a_device_that_has_none(tiny_folder: Path, backends: Path) -> None:
    with pytest.raises(ConfigError, match="--threads 2: Plain One does not compute with threads"):
        Engine(str(tiny_folder), device="plain", threads=2)


def test_threads_that_the_device_chose() -> None:
    device = TorchDevice(DeviceInfo(backend="test", torch_device="cpu", name="cpu"))
    config = Config(model="m")
    assert choose_threads(config, None, device) is config
    chosen = choose_threads(config, HostThreads(3, "one per core"), device)
    assert (chosen.threads, chosen.chosen_by) == (3, {"threads": "one per core"})
    asked = Config(model="m", threads=2)
    assert choose_threads(asked, HostThreads(2, "user"), device) is asked
