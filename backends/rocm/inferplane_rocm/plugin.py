"""AMD GPUs: the device. Kernels come from op packs; what they lack runs by reference."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inferplane.hw import BackendInfo, Device, DeviceInfo, TorchDevice, Unavailable, impl
from inferplane.hw.probing import (
    ROOT,
    installed_version,
    pci_devices,
    torch_build,
    usable,
    visible,
)
from inferplane_rocm.topology import Node, gpu_nodes

if TYPE_CHECKING:
    from pathlib import Path

AMD = 0x1002
DISPLAY, ACCELERATOR = 0x03, 0x12  # PCI base classes; compute cards use the second
NARROWED_BY = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")


@impl
def backend_info() -> BackendInfo:
    version = installed_version("inferplane-rocm") or "checkout"
    return BackendInfo(name="rocm", version=version, devices=("rocm",))


@impl
def probe() -> list[DeviceInfo] | Unavailable:
    return find()


def find(root: "Path" = ROOT) -> list[DeviceInfo] | Unavailable:
    driver = root / "dev/kfd"
    if not driver.exists():
        return _no_driver(root)
    if not usable(driver):
        return Unavailable(
            "no_permission",
            "/dev/kfd cannot be opened by this user",
            "add the user to the group that owns it (usually render), then log in again",
        )
    nodes = gpu_nodes(root)
    if not nodes:
        return Unavailable(
            "no_hardware",
            "the kernel driver is loaded but lists no GPU",
            "nothing to do on a machine without an AMD GPU; in a container, pass /dev/dri through",
        )
    # Each variable numbers the devices that the one before it left.
    for variable in NARROWED_BY[:1], NARROWED_BY[1:]:
        ids = [node.unique_id for node in nodes]
        nodes = [nodes[i] for i in visible(len(nodes), *variable, ids=ids)]
    if not nodes:
        return Unavailable(
            "no_hardware", f"{' or '.join(NARROWED_BY)} hides all GPUs", "unset the variable"
        )
    return _wrong_torch() or [_device(ordinal, node) for ordinal, node in enumerate(nodes)]


@impl
def create_device(info: DeviceInfo, options: Mapping[str, Any]) -> Device:
    return TorchDevice(info)


def _no_driver(root: "Path") -> Unavailable:
    cards = [d for d in pci_devices(AMD, root) if d.kind >> 8 in (DISPLAY, ACCELERATOR)]
    if cards:
        return Unavailable(
            "no_driver",
            f"a GPU at PCI {cards[0].address}, but /dev/kfd does not exist",
            "load the amdgpu kernel driver; in a container, pass --device /dev/kfd "
            "--device /dev/dri",
        )
    return Unavailable(
        "no_hardware",
        "no AMD GPU: /dev/kfd does not exist",
        "nothing to do on a machine without one",
    )


def _wrong_torch() -> Unavailable | None:
    build = torch_build()
    if build.get("hip"):
        return None
    installed = build.get("__version__")
    return Unavailable(
        "wrong_build" if installed else "no_library",
        f"torch {installed} is built without ROCm" if installed else "torch is not installed",
        "install a ROCm build of torch: the PyTorch website's install selector, platform ROCm",
    )


def _device(ordinal: int, node: Node) -> DeviceInfo:
    return DeviceInfo(
        backend="rocm",
        ordinal=ordinal,
        torch_device=f"cuda:{ordinal}",  # torch's name for HIP devices
        name=f"AMD GPU {node.arch}",
        arch=node.arch,
        memory_bytes=node.memory_bytes,
    )
