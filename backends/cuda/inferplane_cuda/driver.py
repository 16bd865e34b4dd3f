"""The GPUs that the driver shows to this process, through its management library (NVML).

The management library creates no device context, and a process may fork after using it; the CUDA
driver library allows neither. Limit: numbers here are in PCI order, CUDA's are fastest first, so
with different GPUs in one machine the names may be swapped unless CUDA_DEVICE_ORDER=PCI_BUS_ID.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LIBRARY = "libnvidia-ml.so.1"
NAME_BYTES = 96


class DriverError(Exception):
    """The management library is missing or refuses to work."""


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    arch: str
    memory_bytes: int | None


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def gpus() -> list[Gpu]:
    """In the order in which CUDA numbers them here. Raises DriverError."""
    with _library() as nvml:
        return [_describe(nvml, handle) for handle in _handles(nvml)]


@contextmanager
def _library() -> Iterator[ctypes.CDLL]:
    try:
        nvml = ctypes.CDLL(LIBRARY)
    except OSError:
        raise DriverError(f"{LIBRARY} cannot be loaded") from None
    nvml.nvmlErrorString.restype = ctypes.c_char_p
    status = nvml.nvmlInit_v2()
    if status:
        raise DriverError(f"nvmlInit: {nvml.nvmlErrorString(status).decode()}")
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _handles(nvml: ctypes.CDLL) -> list[ctypes.c_void_p]:
    """As CUDA reads its variable: numbers or unique ids; the first invalid entry ends the list."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        count = ctypes.c_uint()
        status = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        if status:
            raise DriverError(f"nvmlDeviceGetCount: {nvml.nvmlErrorString(status).decode()}")
        entries = [str(i) for i in range(count.value)]
    else:
        entries = [entry.strip() for entry in chosen.split(",")]
    handles = []
    for entry in entries:
        handle = ctypes.c_void_p()
        if entry.isdecimal():
            status = nvml.nvmlDeviceGetHandleByIndex_v2(
                ctypes.c_uint(int(entry)), ctypes.byref(handle)
            )
        else:
            status = nvml.nvmlDeviceGetHandleByUUID(entry.encode(), ctypes.byref(handle))
        if status:
            break
        handles.append(handle)
    return handles


def _describe(nvml: ctypes.CDLL, handle: ctypes.c_void_p) -> Gpu:
    name = ctypes.create_string_buffer(NAME_BYTES)
    unnamed = nvml.nvmlDeviceGetName(handle, name, ctypes.c_uint(NAME_BYTES))
    major, minor = ctypes.c_int(), ctypes.c_int()
    no_arch = nvml.nvmlDeviceGetCudaComputeCapability(
        handle, ctypes.byref(major), ctypes.byref(minor)
    )
    memory = _Memory()
    no_memory = nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    return Gpu(
        name="NVIDIA GPU" if unnamed else name.value.decode(),
        arch="" if no_arch else f"sm_{major.value}{minor.value}",
        memory_bytes=None if no_memory else memory.total,
    )
