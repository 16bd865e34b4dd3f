"""Google TPUs through torch-tpu or torch-xla. Day one: the device only; every op runs by
reference."""

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from inferplane.errors import DeviceError
from inferplane.hw import (
    BackendInfo,
    Device,
    DeviceInfo,
    TorchDevice,
    Traits,
    Unavailable,
    impl,
)
from inferplane.hw.probing import ROOT, PciDevice, installed_version, pci_devices, usable

if TYPE_CHECKING:
    from pathlib import Path

GOOGLE = 0x1AE0
CHIPS = {0x27: "v3", 0x56: "v4", 0x5E: "v4", 0x62: "v5p", 0x63: "v5e", 0x6F: "v6e", 0x76: "v7"}
EXTENSIONS = {"torch-tpu": "tpu:0", "torch-xla": "xla:0"}
"""distribution -> its name of the device, in order of preference"""
TRAITS = Traits(float64=False)


@impl
def backend_info() -> BackendInfo:
    version = installed_version("inferplane-tpu") or "checkout"
    return BackendInfo(name="tpu", version=version, devices=("tpu",))


@impl
def probe() -> list[DeviceInfo] | Unavailable:
    return find()


def find(root: "Path" = ROOT) -> list[DeviceInfo] | Unavailable:
    # The vendor id alone is not enough: Google's network and storage functions have it, too.
    chips = [d for d in pci_devices(GOOGLE, root) if d.device in CHIPS]
    if not chips:
        return Unavailable(
            "no_hardware", "no TPU on the PCI bus", "nothing to do on a machine without one"
        )
    nodes = _nodes(root)
    if not nodes:
        return Unavailable(
            "no_driver",
            f"a TPU at PCI {chips[0].address}, but neither /dev/accel0 nor /dev/vfio/0 exists",
            "in a container, pass the device files through (docker run --privileged)",
        )
    if not all(usable(node) for node in nodes):
        return Unavailable(
            "no_permission",
            f"/{nodes[0].relative_to(root)} cannot be opened by this user",
            "run as a user that may open the TPU's device files, or change their group",
        )
    extension = next((e for e in EXTENSIONS if installed_version(e)), None)
    if extension is None:
        return Unavailable(
            "no_library",
            "neither torch-tpu nor torch-xla is installed",
            "pip install torch-tpu (Python 3.12 or newer)",
        )
    if installed_version("libtpu") is None:
        return Unavailable("no_library", "libtpu is not installed", "pip install libtpu")
    # One process drives one chip, and the runtime binds it to the first: more need more ranks.
    return [_device(chips[0], EXTENSIONS[extension])]


@impl
def create_device(info: DeviceInfo, options: Mapping[str, Any]) -> Device:
    try:
        _load_extension(info.torch_device)
    except (ImportError, OSError, RuntimeError) as error:
        raise DeviceError(
            f"tpu: the torch extension for {info.torch_device} cannot be loaded: {error}: check "
            "that torch, the extension and libtpu are of releases that belong together"
        ) from error
    return TorchDevice(info)


def _load_extension(torch_device: str) -> None:
    """Import what makes torch know the device; the launcher keeps torch from doing so itself."""
    if torch_device.startswith("xla"):
        importlib.import_module("torch_xla")
        return
    for entry in entry_points(group="torch.backends", name="torch_tpu"):
        entry.load()()


def _nodes(root: "Path") -> list["Path"]:
    """Chips up to v4 have a driver of their own, later ones go through VFIO."""
    return sorted((root / "dev").glob("accel[0-9]*")) or sorted((root / "dev/vfio").glob("[0-9]*"))


def _device(chip: PciDevice, torch_device: str) -> DeviceInfo:
    return DeviceInfo(
        backend="tpu",
        torch_device=torch_device,
        name=f"TPU {CHIPS[chip.device]}",
        arch=CHIPS[chip.device],
        shape_policy="bucketed",
        traits=TRAITS,
    )
