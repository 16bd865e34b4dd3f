"""The probe of the cuda backend against a stand-in of the management library, and a real GPU."""

import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from inferplane.hw import Unavailable
from tests.backends.machines import pci, plugin, pretend_torch, unavailable, write

pytestmark = pytest.mark.usefixtures("bare_environment")


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml_stand_in.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


@pytest.fixture
def cuda(nvml: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr("inferplane_cuda.driver.LIBRARY", str(nvml))
    module = plugin("cuda")
    pretend_torch(monkeypatch, module, __version__="2.13.0+cu130", cuda="13.0")
    return module


def test_cuda_lists_what_the_driver_shows(cuda: ModuleType, tmp_path: Path) -> None:
    first, second = cuda.find(tmp_path)
    assert (first.torch_device, first.name, first.arch) == ("cuda:0", "Stand-in 0", "sm_90")
    assert first.memory_bytes == 80 << 30
    assert (second.ordinal, second.torch_device, second.arch) == (1, "cuda:1", "sm_91")
    assert second.memory_bytes is None


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ("1", ["Stand-in 1"]),
        ("1,0", ["Stand-in 1", "Stand-in 0"]),
        ("GPU-b", ["Stand-in 1"]),
        ("0,7,1", ["Stand-in 0"]),
    ],
)
def test_cuda_numbers_devices_as_the_vendor_does(
    cuda: ModuleType,
    chosen: str,
    names: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    found = cuda.find(tmp_path)
    assert [d.name for d in found] == names
    assert [d.torch_device for d in found] == [f"cuda:{i}" for i in range(len(names))]


@pytest.mark.parametrize("chosen", ["", "-1"])
def test_cuda_hidden_by_the_variable(
    cuda: ModuleType, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    found = unavailable(cuda.find(tmp_path))
    assert found.code == "no_hardware"
    assert "CUDA_VISIBLE_DEVICES" in found.fix


def test_cuda_too_old(cuda: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named with what it is; a newer GPU beside it keeps its number."""
    monkeypatch.setenv("STAND_IN_OLD", "3")
    found = unavailable(cuda.find(tmp_path))
    assert (found.code, found.reason) == ("unsupported", "Stand-in 0 is sm_60, older than sm_80")
    assert "compute capability 8.0 or newer" in found.fix
    monkeypatch.setenv("STAND_IN_OLD", "1")
    (newer,) = cuda.find(tmp_path)
    assert (newer.ordinal, newer.torch_device, newer.arch) == (1, "cuda:1", "sm_91")


def test_cuda_driver_not_loaded(
    cuda: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_NO_DRIVER", "1")
    found = unavailable(cuda.find(write(tmp_path, pci(0x10DE, 0x2330, 0x0302))))
    assert found.code == "no_driver"
    assert "Driver Not Loaded" in found.reason


def test_cuda_container_without_the_management_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inferplane_cuda.driver.LIBRARY", "libnone.so")
    found = unavailable(plugin("cuda").find(write(tmp_path, {"dev/nvidia0": ""})))
    assert found.code == "no_library"
    assert "NVIDIA_DRIVER_CAPABILITIES" in found.fix


def test_cuda_needs_its_build_of_torch(
    cuda: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_torch(monkeypatch, cuda, __version__="2.13.0+cpu", cuda=None)
    found = unavailable(cuda.find(tmp_path))
    assert found.code == "wrong_build"
    assert "2.13.0+cpu" in found.reason
    pretend_torch(monkeypatch, cuda)
    assert unavailable(cuda.find(tmp_path)).code == "no_library"


@pytest.mark.gpu
def test_the_gpu_of_this_machine() -> None:
    import torch

    found = plugin("cuda").probe()
    if isinstance(found, Unavailable):
        pytest.skip(found.reason)
    assert len(found) == torch.cuda.device_count()
    device = plugin("cuda").create_device(found[0], {})
    assert found[0].name == torch.cuda.get_device_name(0)
    free, total = device.memory()
    assert 0 < free <= total <= (found[0].memory_bytes or 0)
    ones = torch.ones(8, 8, device=found[0].torch_device)
    assert (ones @ ones).sum().item() == 512
    device.synchronize()
