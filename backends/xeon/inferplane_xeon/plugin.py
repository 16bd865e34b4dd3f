"""x86 processors as a device: torch on the host, with kernels of our own for the hot ops."""

import os
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferplane.hw import (
    BackendInfo,
    Device,
    DeviceInfo,
    GraphBackend,
    Hints,
    HostThreads,
    KVLayout,
    TorchDevice,
    Traits,
    Unavailable,
    impl,
)
from inferplane.hw.host import Host, read_host, show_list
from inferplane.hw.probing import ROOT, installed_version
from inferplane_xeon import memory
from inferplane_xeon.memory import SettledLayout
from inferplane_xeon.placement import Placement, place

if TYPE_CHECKING:
    from inferplane.hw.op import OpImpl

NEEDED = {"avx2", "fma"}
BF16_ARCHS = ("amx", "avx512_bf16")
"""instruction sets that multiply bfloat16"""
MACHINES = ("x86_64", "amd64")
HEAD_MAJOR = SettledLayout(id="head_major", order="htd")
"""a head's tokens of a page lie together, so that attention reads whole pages front to back"""
BUCKETS = (*range(1, 9), *range(10, 33, 2), *range(40, 129, 8), *range(144, 257, 16))
"""sizes of recorded decode steps; padding costs up to a quarter below 10 rows, then a tenth"""
KV_BYTES = 4 << 30
"""KV cache when the user gives no size: enough for a host that has other work, too"""


@impl
def backend_info() -> BackendInfo:
    version = installed_version("inferplane-xeon") or "checkout"
    return BackendInfo(name="xeon", version=version, devices=("xeon", "cpu"), rank=0)


@impl
def probe() -> list[DeviceInfo] | Unavailable:
    return find(platform.machine(), ROOT)


def find(machine: str, root: Path = ROOT) -> list[DeviceInfo] | Unavailable:
    """The processor of a machine whose /proc lies under `root`."""
    if machine.lower() not in MACHINES:
        return Unavailable(
            "no_hardware",
            f"the kernels are for x86-64, this machine is {machine}",
            "nothing to do on another architecture",
        )
    facts = cpu_facts(root)
    flags = set(facts.get("flags", "").split())
    if not flags >= NEEDED:
        missing = ", ".join(sorted(NEEDED - flags))
        return Unavailable(
            "unsupported",
            f"the processor lacks {missing}",
            "use a processor from 2013 or later; in a virtual machine, pass the host's "
            "instruction sets through",
        )
    return [
        DeviceInfo(
            backend="xeon",
            torch_device="cpu",
            name=facts.get("model name", "x86-64 processor"),
            arch=arch(flags),
            shape_policy="bucketed",
            traits=Traits(memory="host"),
        )
    ]


def cpu_facts(root: Path) -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo."""
    facts: dict[str, str] = {}
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return facts
    for line in text.partition("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    return facts


def arch(flags: set[str]) -> str:
    """The best instruction set of ours that a processor with these flags runs."""
    if not flags >= {"avx512f", "avx512bw", "avx512vl", "avx512dq"}:
        return "avx2"
    if "avx512_vnni" not in flags:
        return "avx512"
    if "avx512_bf16" not in flags:
        return "avx512_vnni"
    return "amx" if flags >= {"amx_tile", "amx_bf16", "amx_int8"} else "avx512_bf16"


@impl
def create_device(info: DeviceInfo, options: Mapping[str, Any]) -> Device:
    let_torch_rest()
    import torch

    from inferplane.errors import DeviceError
    from inferplane_xeon import kernels

    host = read_host()
    placement = place(host, options.get("threads"), torch.get_num_threads())
    try:
        library = kernels.library()
    except ImportError as error:
        raise DeviceError(
            f"xeon: the compiled kernels cannot be loaded ({error}): "
            "reinstall with pip install --force-reinstall --no-deps inferplane-xeon"
        ) from error
    native = ("bfloat16", "float32") if info.arch in BF16_ARCHS else ("float32", "bfloat16")
    torch.set_num_threads(placement.threads)  # ops without a kernel of ours
    library.set_threads(placement.threads)
    library.bind(list(placement.cpus))
    memory.use_nodes(placement.nodes)
    memory.keep_freed()
    return XeonDevice(info, native, host, placement)


def let_torch_rest() -> None:
    """Torch's own threads spin for milliseconds after each operation that they shared, on the cores
    that the kernels' threads need (measured: a copy of 200 kB a step made decoding 20 % slower).
    OpenMP reads this when torch is loaded; who has loaded it before decides alone."""
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class XeonDevice(TorchDevice):
    """Remembers what was decided on its threads and memory."""

    def __init__(
        self, info: DeviceInfo, dtypes: tuple[str, ...], host: Host, placement: Placement
    ) -> None:
        super().__init__(info, dtypes)
        self.host = host
        self.placement = placement


@impl
def op_impls(device: Device) -> "Iterable[tuple[str, OpImpl]]":
    if device.info.backend != "xeon":
        return ()
    from inferplane_xeon import ipex
    from inferplane_xeon.ops import implementations

    return [*implementations(), *ipex.implementations()]


@impl
def kv_layouts(device: Device) -> Iterable[KVLayout]:
    return (HEAD_MAJOR,)


@impl
def graphs(device: Device) -> GraphBackend:
    from inferplane_xeon.tape import Tapes

    return Tapes()


@impl
def hints(device: Device) -> Hints:
    dtype = "bfloat16" if device.info.arch in BF16_ARCHS else "float32"
    return Hints(
        dtype=dtype,
        page_size=16,
        kv_cache_bytes=KV_BYTES,
        int8_inputs=True,
        token_buckets=BUCKETS,
        record_fallbacks=False,
    )


@impl
def host_threads(device: Device) -> HostThreads | None:
    if not isinstance(device, XeonDevice):
        return None
    made = device.placement
    return HostThreads(made.threads, made.reason, made.cpus)


@impl
def diagnostics(device: Device) -> Mapping[str, str]:
    from inferplane_xeon import kernels

    facts = {"instruction set": kernels.library().isa()}
    if kernels.library().isa() == "amx":
        facts["amx"] = kernels.TILES_NOTE
    if not isinstance(device, XeonDevice):
        return facts
    host, made = device.host, device.placement
    quota = "" if host.quota is None else f", a quota of {host.quota:g}"
    facts["processors"] = f"{show_list(host.cpus)} on {len(host.cores)} cores{quota}"
    facts["threads"] = f"{made.threads}: {made.reason}"
    facts["threads are bound"] = made.binding
    refused = made.nodes and not memory.nodes_work()
    facts["memory nodes"] = made.memory + (", but the system forbids it" if refused else "")
    facts["huge pages"] = memory.describe()
    return facts
