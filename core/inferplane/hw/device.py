"""What a backend tells about its hardware, and what a device must be able to do.

Required things first; `TorchDevice` (torch_device.py) implements all of it for any torch device.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from inferplane.hw.version import Version

if TYPE_CHECKING:
    from torch import Tensor

ShapePolicy = Literal["dynamic", "bucketed", "static"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendInfo:
    """Who a backend is. Built without importing torch or a vendor library."""

    name: str
    version: str
    devices: tuple[str, ...]
    """prefixes that --device accepts for this backend, the first is the preferred one"""
    api: tuple[Version, Version] = ((1, 0), (1, 0))
    """lowest and highest contract version that it was built for"""
    rank: int = 50
    """--device auto prefers the highest rank; processors without accelerator have 0"""
    docs_url: str = ""

    @property
    def is_accelerator(self) -> bool:
        return self.rank > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What is unusual about a device. The defaults describe a device that can do everything."""

    exact_host_lengths: bool = False
    """kernels need exact sequence lengths on the host, not upper bounds"""
    inplace: bool = True
    """tensors can be written in place; otherwise ops return new ones and KV handles are replaced"""
    int64: bool = True
    float64: bool = True
    memory: Literal["discrete", "unified", "host"] = "discrete"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """One device that a probe found."""

    backend: str
    ordinal: int = 0
    torch_device: str
    """e.g. "cpu" or "acme:0": where tensors live"""
    name: str
    arch: str = ""
    memory_bytes: int | None = None
    shape_policy: ShapePolicy = "dynamic"
    traits: Traits = field(default_factory=Traits)


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why a backend has no device here, and what would change that.

    Codes: no_hardware (nothing to repair: the machine has no such device), no_driver,
    no_library, no_permission, wrong_build, unsupported.
    """

    code: str
    reason: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Measured, not advertised, ceilings; for rooflines only."""

    bytes_per_second: float
    flops: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """Preferences of a backend. Data: core decides, and records who proposed what."""

    dtype: str | None = None
    page_size: int | None = None
    max_batch_tokens: int | None = None
    max_running: int | None = None
    kv_cache_bytes: int | None = None
    """size of the KV cache when the user gives none, in place of a fraction of the memory"""
    token_buckets: tuple[int, ...] = ()
    """padded sizes for devices whose shapes are bucketed or static"""
    mixed_buckets: tuple[tuple[int, int], ...] = ()
    """(tokens, sequences) of padded steps that prefill, on devices whose shapes are bucketed; a
    step takes the first that holds it, and larger ones have exact shapes and run eagerly"""
    int8_inputs: bool = False
    """weight-only int8 and int4 products are computed with inputs rounded to int8 per token"""
    record_fallbacks: bool = True
    """record steps also if they run a reference to which padding costs far more than a recording
    saves; otherwise such a model's steps have exact shapes and run eagerly"""
    max_programs: int | None = None
    """graphs to hold at most; steps of further shapes run eagerly. Default: no limit"""


class Event(Protocol):
    """A moment in the device's work."""

    def synchronize(self) -> None: ...
    def query(self) -> bool: ...


class Stream(Protocol):
    """An ordered queue of device work; use as a context manager to make it current."""

    def __enter__(self) -> object: ...
    def __exit__(self, *exc: object) -> object: ...
    def synchronize(self) -> None: ...


class Device(Protocol):
    """One opened device."""

    info: DeviceInfo

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes that this process may use."""

    def synchronize(self) -> None:
        """Wait for all work; raises DeviceError if the device failed."""

    def stream(self) -> Stream | None:
        """A new stream; None if work is done when a call returns."""

    def record(self) -> Event | None:
        """An event after all work submitted so far; None if that work is already done."""

    def host_buffer(self, elements: int, dtype: str) -> "Tensor":
        """A host tensor [elements], pinned where that makes copies asynchronous."""

    def workspace(self, key: str, nbytes: int) -> "Tensor":
        """Scratch u8[>= nbytes], the same memory for the same key; grows only before `freeze`."""

    def freeze(self) -> None:
        """Start-up is over: allocations of persistent memory from here on are errors."""

    def dtypes(self) -> Mapping[str, Literal["native", "emulated"]]:
        """Usable types of weights and activations."""

    def peak(self) -> Peak | None:
        """Ceilings, if the backend measured them."""
