"""TorchDevice on the CPU, and the memory of this process."""

from pathlib import Path

import pytest
import torch

from inferplane.errors import DeviceError
from inferplane.hw import DeviceInfo, TorchDevice, torch_device
from inferplane.hw.torch_device import host_memory


def cpu() -> TorchDevice:
    return TorchDevice(DeviceInfo(backend="test", torch_device="cpu", name="cpu"))


def test_the_cpu_has_neither_streams_nor_events() -> None:
    device = cpu()
    assert device.stream() is None
    assert device.record() is None
    device.synchronize()
    assert device.peak() is None
    assert set(device.dtypes()) >= {"float32", "bfloat16"}


def test_host_buffers() -> None:
    buffer = cpu().host_buffer(5, "int32")
    assert (buffer.shape, buffer.dtype, buffer.device.type) == ((5,), torch.int32, "cpu")


def test_a_workspace_keeps_its_memory_and_grows_only_at_start() -> None:
    device = cpu()
    first = device.workspace("a", 100)
    assert first.dtype == torch.uint8 and first.numel() >= 100
    assert device.workspace("a", 50) is first
    assert device.workspace("b", 50) is not first
    grown = device.workspace("a", 200)
    device.freeze()
    assert device.workspace("a", 150) is grown
    with pytest.raises(DeviceError, match="workspace 'a' grew to 300 bytes after start-up"):
        device.workspace("a", 300)
    with pytest.raises(DeviceError, match="workspace 'c'"):
        device.workspace("c", 1)


@pytest.mark.parametrize("name", ["meta:7x", "nonsense", "vulkan"])
def test_a_device_that_torch_cannot_use(name: str) -> None:
    with pytest.raises(DeviceError, match=f"acme: torch .* cannot use {name}"):
        TorchDevice(DeviceInfo(backend="acme", torch_device=name, name="Acme"))


def test_the_types_can_be_named() -> None:
    info = DeviceInfo(backend="test", torch_device="cpu", name="cpu")
    assert list(TorchDevice(info, dtypes=("float32",)).dtypes()) == ["float32"]


GIB = 2**30


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (10 * GIB, 16 * GIB)),
        ({"memory.max": "max", "memory.current": "5"}, (10 * GIB, 16 * GIB)),
        ({"memory.max": str(8 * GIB), "memory.current": str(3 * GIB)}, (5 * GIB, 8 * GIB)),
        ({"memory.max": str(12 * GIB), "memory.current": str(GIB)}, (10 * GIB, 12 * GIB)),
        ({"memory.max": str(99 * GIB), "memory.current": "5"}, (10 * GIB, 16 * GIB)),
        (
            {
                "memory/memory.limit_in_bytes": str(4 * GIB),
                "memory/memory.usage_in_bytes": str(GIB),
            },
            (3 * GIB, 4 * GIB),
        ),
    ],
)
def test_memory_is_the_smallest_of_machine_and_control_group(
    files: dict[str, str],
    expected: tuple[int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = {"proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemAvailable: {10 * 2**20} kB\n"}
    for name, text in (machine | {f"sys/fs/cgroup/{k}": v for k, v in files.items()}).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(torch_device, "Path", lambda p: tmp_path / str(p).lstrip("/"))
    assert host_memory() == expected


def test_memory_of_this_machine() -> None:
    free, total = cpu().memory()
    assert 0 < free <= total
