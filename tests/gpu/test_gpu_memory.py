"""Too little memory on the real device: an error with the numbers and what to change, before
anything is loaded; also where another process has taken a part."""

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ci.bench.gpu.models import Shape, weight_bytes

from inferplane.config import Config
from inferplane.engine import open_engine
from inferplane.errors import ConfigError
from inferplane.hw import Device
from inferplane.plugins import Plugins

pytestmark = pytest.mark.gpu

GIB = 2**30
HELD = 2
"""GiB that another process takes"""
HOLD = """
import sys, torch
held = torch.ones({bytes}, dtype=torch.uint8, device="{device}")
print("held" if int(held[-1]) == 1 else "not held", flush=True)
sys.stdin.read()
"""


def refusal(backend: str, layers: int = 2, **settings: Any) -> str:
    source = Shape("llama3-8b")
    source.config = source.config | {"num_hidden_layers": layers}
    values: dict[str, Any] = {"dtype": "bfloat16", "load_format": "dummy", "max_running": 32}
    with pytest.raises(ConfigError) as error:
        open_engine(Config(model="big", device=backend, **(values | settings)), source, Plugins())
    print(error.value)
    return str(error.value)


def gib(text: str, pattern: str) -> float:
    found = re.search(pattern, text)
    assert found is not None, (pattern, text)
    return float(found[1])


def allocated(device: Device) -> int:
    module = torch.get_device_module(device.info.torch_device)
    return int(getattr(module, "memory_allocated", lambda: 0)())


def layers_beyond(device: Device) -> int:
    """So many that their weights do not fit."""
    config = Shape("llama3-8b").config
    one, two = (weight_bytes(config | {"num_hidden_layers": n}) for n in (1, 2))
    return device.memory()[1] // (two - one) + 1


def test_weights_that_do_not_fit(backend: str, device: Device) -> None:
    before = allocated(device)
    text = refusal(backend, layers_beyond(device))
    assert text.startswith(f"big does not fit the memory of {device.info.name}: ")
    total = device.memory()[1] / GIB
    assert gib(text, r"GiB of ([\d.]+) GiB") == pytest.approx(total, abs=0.1)
    assert gib(text, r"weights need ([\d.]+) GiB") > total - 1
    for flag in ("--quantization int8 or int4", "--max-batch-tokens", "--memory-fraction"):
        assert flag in text
    assert allocated(device) == before


def test_a_cache_that_does_not_fit(backend: str, device: Device) -> None:
    """8,192 bytes a token in two layers."""
    tokens = device.memory()[1] // 8192
    text = refusal(backend, kv_cache_tokens=tokens)
    assert text.startswith(f"--kv-cache-tokens {tokens} needs ")
    assert gib(text, r"memory, ([\d.]+) GiB are free: lower it") < device.memory()[1] / GIB


@pytest.fixture
def taken(device: Device) -> Iterator[None]:
    code = HOLD.format(bytes=HELD * GIB, device=device.info.torch_device)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "held\n"
        yield
        other.stdin.close()


@pytest.mark.usefixtures("taken")
def test_a_part_is_taken_by_another_process(backend: str, device: Device) -> None:
    text = refusal(backend, layers_beyond(device))
    free, total = gib(text, r": ([\d.]+) GiB of"), gib(text, r"GiB of ([\d.]+) GiB")
    assert free < total - HELD + 0.1
    assert "end other programs" in text
