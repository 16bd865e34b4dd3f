"""TorchDevice on the CPU, and the memory of this process."""

import pytest
import torch

from inferplane.errors import DeviceError
from inferplane.hw import DeviceInfo, TorchDevice


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


def test_memory_of_this_machine() -> None:
    free, total = cpu().memory()
    assert 0 < free <= total
