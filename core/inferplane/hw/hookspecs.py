"""The hooks of a backend or op pack: pluggy project `inferplane`.

A backend is a module named by an entry point of group `inferplane.backends` and implements the
first three. A package that only brings kernels is named in `inferplane.ops` and implements only
`op_impls`. Import vendor libraries inside hooks: every module is imported for a listing.
"""

# mypy: disable-error-code="empty-body"

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from inferplane.hw.device import BackendInfo, Device, DeviceInfo, Hints, Unavailable
    from inferplane.hw.graphs import Compiler, GraphBackend
    from inferplane.hw.host import HostThreads
    from inferplane.hw.kv import KVLayout
    from inferplane.hw.op import OpImpl

PROJECT = "inferplane"
spec = pluggy.HookspecMarker(PROJECT)
impl = pluggy.HookimplMarker(PROJECT)


@spec(firstresult=True)
def backend_info() -> "BackendInfo":
    """Required. Who this backend is; imports neither torch nor vendor libraries."""


@spec(firstresult=True)
def probe() -> "list[DeviceInfo] | Unavailable":
    """Required. The devices, or why there is none and how to mend that. Under 0.5 s; imports no
    torch and creates no device context."""


@spec(firstresult=True)
def create_device(info: "DeviceInfo", options: Mapping[str, Any]) -> "Device":
    """Required. Open one device; may import torch and vendor libraries. Raises DeviceError.

    `options`: "determinism", what the engine will ask of all ops ("run" or "batch"), for libraries
    that must know before they are first used; "threads", the user's --threads or None, for the hook
    `host_threads`; "cache", the path of a folder in which a backend may keep what it compiles,
    under its own name (absent: it keeps nothing). Unknown options are ignored."""


@spec
def op_impls(device: "Device") -> "Iterable[tuple[str, OpImpl]]":
    """(op or composite name, implementation) pairs for this device. Default: none, every op runs
    by reference. Called on op packs for devices that they do not own, too."""


@spec(firstresult=True)
def kv_layouts(device: "Device") -> "Iterable[KVLayout]":
    """Layouts beyond the canonical one. Default: none."""


@spec(firstresult=True)
def graphs(device: "Device") -> "GraphBackend | None":
    """How to record and replay steps. Default: every step runs eagerly."""


@spec
def compiler(device: "Device") -> "Compiler | None":
    """How to compile kernels before they are needed, many at a time. Called on op packs for devices
    that they do not own, too. Default: each is compiled when it is first called."""


@spec(firstresult=True)
def hints(device: "Device") -> "Hints | None":
    """Preferred sizes and types; core decides. Default: core's own."""


@spec(firstresult=True)
def host_threads(device: "Device") -> "HostThreads | None":
    """The threads of the host that the device computes with, as --threads asked in `create_device`.
    Core keeps its own work off the processors that they are bound to. Default: there are none, and
    --threads is an error."""


@spec(firstresult=True)
def diagnostics(device: "Device") -> "Mapping[str, str]":
    """Versions and facts for `inferplane devices` and `explain`. Default: nothing."""


MANDATORY = ("backend_info", "probe", "create_device")
OPTIONAL = ("kv_layouts", "graphs", "compiler", "hints", "host_threads", "diagnostics")
ALL = (*MANDATORY, "op_impls", *OPTIONAL)
