"""NVIDIA GPUs: the device. Kernels come from op packs; what they lack runs by reference."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inferplane.hw import (
    BackendInfo,
    Device,
    DeviceInfo,
    GraphBackend,
    Hints,
    OpImpl,
    TorchDevice,
    Unavailable,
    impl,
)
from inferplane.hw.probing import ROOT, installed_version, pci_devices, torch_build
from inferplane_cuda.compiler import Compiler
from inferplane_cuda.driver import DriverError, Gpu, gpus

NVIDIA = 0x10DE
DISPLAY = 0x03  # PCI base class of display controllers
OLDEST = 80
"""compute capability: Triton, whose kernels do most of the work, supports none before 8.0, and
bfloat16 begins there"""
BUCKETS = (1, 2, 4, *range(8, 65, 8), *range(80, 513, 16))
"""padded batch sizes of decode steps; each is one recorded graph"""
MIXED_BUCKETS = (
    *((tokens, 8) for tokens in (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024)),
    *((tokens, 64) for tokens in (128, 256, 512, 1024)),
    *((tokens, 256) for tokens in (512, 1024)),
)
"""(tokens, sequences) of recorded steps that prefill: below about 1,000 tokens the device is faster
than the host can launch one kernel after the other"""


@impl
def backend_info() -> BackendInfo:
    version = installed_version("inferplane-cuda") or "checkout"
    return BackendInfo(name="cuda", version=version, devices=("cuda",))


@impl
def probe() -> list[DeviceInfo] | Unavailable:
    return find()


def find(root: Path = ROOT) -> list[DeviceInfo] | Unavailable:
    cards = [d for d in pci_devices(NVIDIA, root) if d.kind >> 8 == DISPLAY]
    nodes = list((root / "dev").glob("nvidia[0-9]*"))
    try:
        found = gpus()
    except DriverError as error:
        if nodes:
            return Unavailable(
                "no_library",
                f"{nodes[0].name} exists, but {error}",
                "give the container the driver's utility libraries "
                "(NVIDIA_DRIVER_CAPABILITIES=compute,utility), or reinstall the driver",
            )
        if cards:
            return Unavailable(
                "no_driver",
                f"a GPU at PCI {cards[0].address}, but {error}",
                "install the NVIDIA driver; in a container, pass the GPU through",
            )
        return Unavailable(
            "no_hardware", f"no NVIDIA GPU: {error}", "nothing to do on a machine without one"
        )
    if not found:
        return Unavailable(
            "no_hardware",
            "the driver shows no GPU to this process",
            "check CUDA_VISIBLE_DEVICES and the container's GPU assignment",
        )
    devices = [_device(i, gpu) for i, gpu in enumerate(found) if not _too_old(gpu)]
    if not devices:
        return Unavailable(
            "unsupported",
            f"{found[0].name} is {found[0].arch}, older than sm_{OLDEST}",
            f"use a GPU of compute capability {OLDEST / 10} or newer (NVIDIA Ampere, 2020), "
            "or another --device",
        )
    return _wrong_torch() or devices


class CudaDevice(TorchDevice):
    """With the compiler of our own kernels."""

    def __init__(self, info: DeviceInfo, compiler: Compiler) -> None:
        super().__init__(info)
        self.compiler = compiler


@impl
def create_device(info: DeviceInfo, options: Mapping[str, Any]) -> Device:
    if options.get("determinism") == "batch":
        from inferplane_cuda import invariant

        invariant.prepare()
    cache = options.get("cache")
    return CudaDevice(info, Compiler(Path(cache) / "cuda" if cache else None))


@impl
def op_impls(device: Device) -> Iterable[tuple[str, OpImpl]]:
    if not isinstance(device, CudaDevice):
        return ()
    from inferplane_cuda import int4, invariant, scaled
    from inferplane_cuda.attention.fa3 import FlashAttention3
    from inferplane_cuda.attention.fa4 import FlashAttention4
    from inferplane_cuda.attention.flashinfer import FlashInfer
    from inferplane_cuda.linear import Linear, Logits

    kernels = int4.Kernels(device.compiler)
    return [
        ("attention.paged", FlashInfer()),
        ("attention.paged", FlashAttention3()),
        ("attention.paged", FlashAttention4()),
        ("linear", Linear()),
        ("linear", invariant.Linear()),
        ("linear", scaled.Linear()),
        ("linear", int4.Linear(device.compiler, kernels)),
        ("logits", Logits()),
        ("logits", invariant.Logits()),
        ("logits", scaled.Logits()),
        ("logits", int4.Logits(device.compiler, kernels)),
    ]


@impl
def graphs(device: Device) -> GraphBackend:
    from inferplane_cuda.graphs import CudaGraphs

    return CudaGraphs(device.info.torch_device)


@impl
def hints(device: Device) -> Hints:
    return Hints(
        dtype="bfloat16",
        page_size=16,
        max_batch_tokens=8192,
        token_buckets=BUCKETS,
        mixed_buckets=MIXED_BUCKETS,
    )


def _wrong_torch() -> Unavailable | None:
    build = torch_build()
    if build.get("cuda"):
        return None
    installed = build.get("__version__")
    return Unavailable(
        "wrong_build" if installed else "no_library",
        f"torch {installed} is built without CUDA" if installed else "torch is not installed",
        "install a CUDA build of torch: the PyTorch website's install selector, platform CUDA",
    )


def _too_old(gpu: Gpu) -> bool:
    """A GPU that does not tell what it is may be new."""
    number = gpu.arch.removeprefix("sm_")
    return number.isdecimal() and int(number) < OLDEST


def _device(ordinal: int, gpu: Gpu) -> DeviceInfo:
    return DeviceInfo(
        backend="cuda",
        ordinal=ordinal,
        torch_device=f"cuda:{ordinal}",
        name=gpu.name,
        arch=gpu.arch,
        memory_bytes=gpu.memory_bytes,
        shape_policy="bucketed",
    )
