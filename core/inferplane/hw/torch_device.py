"""A device through PyTorch's device-generic interface: what a day-one backend returns.

Accelerators use torch.get_device_module, torch.Stream and torch.Event; the CPU has its own
memory (limited by its control group) and no streams. Nothing newer than torch 2.8 is used.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from inferplane.errors import DeviceError
from inferplane.hw.device import DeviceInfo, Event, Peak, Stream
from inferplane.hw.host import host_memory

if TYPE_CHECKING:
    from torch import Tensor


class TorchDevice:
    """Implements `Device` for anything that torch can address by a device string."""

    def __init__(self, info: DeviceInfo, dtypes: tuple[str, ...] = ()) -> None:
        """`dtypes`: types that the hardware computes natively; default: the three usual ones.

        Raises DeviceError if torch cannot place a tensor there.
        """
        import torch

        self.info = info
        try:
            self._device = torch.device(info.torch_device)
            torch.zeros(1, device=self._device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise DeviceError(
                f"{info.backend}: torch {torch.__version__} cannot use {info.torch_device}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        self._is_cpu = self._device.type == "cpu"
        self._module: Any = None if self._is_cpu else torch.get_device_module(self._device)
        accelerator = torch.accelerator.current_accelerator()
        self._is_accelerator = accelerator is not None and accelerator.type == self._device.type
        self._workspaces: dict[str, Tensor] = {}
        self._frozen = False
        self._dtypes = dtypes or ("bfloat16", "float16", "float32")

    def memory(self) -> tuple[int, int]:
        if self._is_cpu:
            have = host_memory()
            return have.free, have.total
        if hasattr(self._module, "mem_get_info"):
            if hasattr(self._module, "empty_cache"):  # what torch keeps for later is free, too
                self._module.empty_cache()
            free, total = self._module.mem_get_info(self._device)
            return int(free), int(total)
        total = self.info.memory_bytes
        if total is None:
            raise DeviceError(
                f"{self.info.torch_device} does not tell its memory: backend {self.info.backend} "
                "must give memory_bytes in its probe"
            )
        used = getattr(self._module, "memory_allocated", lambda *_: 0)()
        return total - int(used), total

    def synchronize(self) -> None:
        import torch

        if self._is_cpu:
            return
        try:
            if self._is_accelerator:
                torch.accelerator.synchronize(self._device)
            else:
                self._module.synchronize()
        except RuntimeError as error:
            raise DeviceError(f"{self.info.torch_device} failed: {error}") from error

    def stream(self) -> Stream | None:
        import torch

        made: Any = None if self._is_cpu else torch.Stream(self._device)
        stream: Stream | None = made
        return stream

    def record(self) -> Event | None:
        import torch

        if self._is_cpu:
            return None
        event = torch.Event(self._device)
        if self._is_accelerator:  # by default it is the stream of the thread's current device
            event.record(torch.accelerator.current_stream(self._device))
        else:
            event.record()
        return event

    def host_buffer(self, elements: int, dtype: str) -> "Tensor":
        import torch

        kind = getattr(torch, dtype)
        if not self._is_cpu:
            try:
                return torch.zeros(elements, dtype=kind, pin_memory=True)
            except (RuntimeError, NotImplementedError):
                pass  # the device has no pinned memory: copies from pageable memory are right too
        return torch.zeros(elements, dtype=kind)

    def workspace(self, key: str, nbytes: int) -> "Tensor":
        import torch

        have = self._workspaces.get(key)
        if have is None or have.numel() < nbytes:
            if self._frozen:
                raise DeviceError(f"workspace {key!r} grew to {nbytes} bytes after start-up")
            have = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
            self._workspaces[key] = have
        return have

    def freeze(self) -> None:
        self._frozen = True

    def dtypes(self) -> Mapping[str, Literal["native", "emulated"]]:
        return dict.fromkeys(self._dtypes, "native")

    def peak(self) -> Peak | None:
        return None
