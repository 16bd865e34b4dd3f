"""Huawei Ascend NPUs through torch-npu and CANN. Day one: the device only; every op runs by
reference."""

import importlib
from collections.abc import Mapping
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
from inferplane.hw.probing import (
    ROOT,
    installed_version,
    pci_devices,
    torch_build,
    usable,
    visible,
)
from inferplane_ascend.toolkit import library_problem

if TYPE_CHECKING:
    from pathlib import Path

HUAWEI = 0x19E5
ACCELERATOR = 0x12  # PCI base class of processing accelerators
TRAITS = Traits(exact_host_lengths=True, float64=False)


@impl
def backend_info() -> BackendInfo:
    version = installed_version("inferplane-ascend") or "checkout"
    return BackendInfo(name="ascend", version=version, devices=("ascend", "npu"))


@impl
def probe() -> list[DeviceInfo] | Unavailable:
    return find()


def find(root: "Path" = ROOT) -> list[DeviceInfo] | Unavailable:
    nodes = sorted((root / "dev").glob("davinci[0-9]*"))
    if not nodes:
        return _no_driver(root)
    manager = root / "dev/davinci_manager"
    if not manager.exists():
        return Unavailable(
            "no_driver",
            f"/dev/{nodes[0].name} exists, but not /dev/davinci_manager",
            "in a container, pass /dev/davinci_manager, /dev/devmm_svm and /dev/hisi_hdc through",
        )
    if not usable(manager) or not all(usable(node) for node in nodes):
        return Unavailable(
            "no_permission",
            "the /dev/davinci* files cannot be opened by this user",
            "add the user to the group that owns them (usually HwHiAiUser), then log in again",
        )
    ordinals = visible(len(nodes), "ASCEND_RT_VISIBLE_DEVICES")
    if not ordinals:
        return Unavailable(
            "no_hardware", "ASCEND_RT_VISIBLE_DEVICES hides all NPUs", "unset the variable"
        )
    problem = library_problem(root) or _wrong_torch()
    return problem or [_device(i) for i in range(len(ordinals))]


@impl
def create_device(info: DeviceInfo, options: Mapping[str, Any]) -> Device:
    try:
        importlib.import_module("torch_npu")  # makes torch know the device "npu"
    except (ImportError, OSError, RuntimeError) as error:
        raise DeviceError(
            f"ascend: torch-npu cannot be imported: {error}: source the set_env.sh of CANN, and "
            "check that torch, torch-npu and CANN are of releases that belong together"
        ) from error
    return TorchDevice(info)


def _no_driver(root: "Path") -> Unavailable:
    cards = [d for d in pci_devices(HUAWEI, root) if d.kind >> 8 == ACCELERATOR]
    if cards:
        return Unavailable(
            "no_driver",
            f"an NPU at PCI {cards[0].address}, but no /dev/davinci0",
            "install the Ascend driver; in a container, pass --device /dev/davinci0",
        )
    return Unavailable(
        "no_hardware",
        "no Ascend NPU: /dev/davinci0 does not exist",
        "nothing to do on a machine without one",
    )


def _wrong_torch() -> Unavailable | None:
    """torch-npu is built for one release of torch."""
    extension, torch = installed_version("torch-npu"), torch_build().get("__version__")
    if torch is None:
        return Unavailable("no_library", "torch is not installed", "pip install torch")
    wanted = ".".join(torch.split("+")[0].split(".")[:2])
    if extension is None:
        return Unavailable(
            "no_library", "torch-npu is not installed", f"pip install 'torch-npu=={wanted}.*'"
        )
    if extension.split(".")[:2] != wanted.split("."):
        return Unavailable(
            "wrong_build",
            f"torch-npu {extension} does not fit torch {torch}",
            f"pip install 'torch-npu=={wanted}.*'",
        )
    return None


def _device(ordinal: int) -> DeviceInfo:
    return DeviceInfo(
        backend="ascend",
        ordinal=ordinal,
        torch_device=f"npu:{ordinal}",
        name="Ascend NPU",
        traits=TRAITS,
    )
