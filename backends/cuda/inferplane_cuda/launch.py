"""Launches of our own CUDA kernels through the driver's library, where they ask for it with
programmatic dependent launch: a kernel starts while the one before it ends."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from inferplane.errors import DeviceError

if TYPE_CHECKING:
    from torch import Tensor

SERIALIZATION = 6
"""CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION"""
SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"""


class _Value(ctypes.Union):
    _fields_ = (("pad", ctypes.c_char * 64), ("allowed", ctypes.c_int))


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", _Value))


class _Config(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint) for name in ("gx", "gy", "gz", "bx", "by", "bz", "shared")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


@cache
def _driver() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DeviceError(f"the driver's libcuda.so.1 cannot be loaded: {error}") from None


def _check(status: int, what: str) -> None:
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise DeviceError(
            f"{what}: {(text.value or b'CUDA error ' + str(status).encode()).decode()}"
        )


class Module:
    """Kernels of one cubin on one device; stays loaded as long as the process."""

    def __init__(self, cubin: bytes, device: str) -> None:
        import torch

        self._index = torch.device(device).index or 0
        self._handle = ctypes.c_void_p()
        with torch.cuda.device(self._index):
            loaded = _driver().cuModuleLoadData(ctypes.byref(self._handle), cubin)
        _check(loaded, "cuModuleLoadData")

    def kernel(
        self, name: str, threads: int, shared: int = 0, overlapped: bool = False
    ) -> "Kernel":
        """`shared` bytes of shared memory; `overlapped`: it waits itself for what it reads."""
        handle = ctypes.c_void_p()
        found = _driver().cuModuleGetFunction(ctypes.byref(handle), self._handle, name.encode())
        _check(found, f"cuModuleGetFunction {name}")
        _check(
            _driver().cuFuncSetAttribute(handle, SHARED, shared), f"{name}: {shared} bytes shared"
        )
        return Kernel(handle, self._index, name, threads, shared, overlapped)


@dataclass(frozen=True, slots=True)
class Kernel:
    handle: ctypes.c_void_p
    index: int
    """of the device"""
    name: str
    threads: int
    shared: int
    overlapped: bool

    def __call__(self, grid: tuple[int, int], arguments: "Sequence[Tensor | int | None]") -> None:
        """Tensors are passed as pointers, None as the null pointer and numbers as int. They stay
        alive at least until the stream is past the kernel if torch allocated them on it."""
        import torch

        held = [_argument(value) for value in arguments]
        at = (ctypes.c_void_p * len(held))(*map(ctypes.addressof, held))
        attribute = _Attribute(id=SERIALIZATION, value=_Value(allowed=1))
        config = _Config(
            *grid, 1, self.threads, 1, 1, self.shared,
            torch._C._cuda_getCurrentRawStream(self.index),
            ctypes.pointer(attribute), int(self.overlapped),
        )  # fmt: skip
        status = _driver().cuLaunchKernelEx(ctypes.byref(config), self.handle, at, None)
        _check(status, f"{self.name} over {grid} blocks")


def _argument(value: "Tensor | int | None") -> Any:
    if isinstance(value, int):
        return ctypes.c_int(value)
    return ctypes.c_void_p(None if value is None else value.data_ptr())
