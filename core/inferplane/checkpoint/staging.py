"""The way of weights to a device with memory of its own: threads read parts of a tensor into pinned
host buffers, from which they are copied while the next parts are read.

The buffers are a ring of fixed size, so the host never holds more of a checkpoint than that. Knows
no file format.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferplane.errors import ModelError
from inferplane.hw.device import Device, Event

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PART = 8 << 20
"""bytes of a buffer: large enough that calls cost nothing, small enough that all threads have a
part of one tensor"""
BUFFERS = 16
"""and as many threads: reads of a disk want to be many at a time"""

Fill = Callable[[Any, int], None]
"""(u8 array of the host to fill, the first byte of the tensor that belongs there)"""


@dataclass(slots=True)
class Buffer:
    """A pinned buffer, and when the device has read it."""

    memory: "Tensor"
    read: Event | None = None


class Staging:
    """Brings tensors to one device. Used by one thread at a time; close it to end its threads."""

    def __init__(self, device: Device, total: int, part: int = PART) -> None:
        """`total`: bytes that will be brought, for which fewer buffers may do."""
        self._device = device
        self._part = part
        count = max(1, min(BUFFERS, -(-total // part)))
        self._ring = deque(Buffer(device.host_buffer(part, "uint8")) for _ in range(count))
        self._threads = ThreadPoolExecutor(count, "weights")
        self._files: dict[Path, int] = {}

    def read(self, path: Path, offset: int, dtype: "torch.dtype", shape: Sequence[int]) -> "Tensor":
        """A tensor of a file, on the device. ModelError if the file cannot be read or ends."""
        if path not in self._files:
            try:
                self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise ModelError(f"{path} cannot be read: {error}") from error
        file = self._files[path]
        return self._bring(dtype, shape, lambda to, start: read_at(file, path, offset + start, to))

    def send(self, tensor: "Tensor") -> "Tensor":
        """A copy on the device of a tensor of the host."""
        import torch

        if tensor.device.type != "cpu":
            return tensor.to(self._device.info.torch_device)
        held = tensor.contiguous().view(-1).view(torch.uint8).numpy()

        def fill(to: Any, start: int) -> None:
            to[:] = held[start : start + len(to)]

        return self._bring(tensor.dtype, tensor.shape, fill)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for buffer in self._ring:
            if buffer.read is not None:
                buffer.read.synchronize()
        self._ring.clear()
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def _bring(self, dtype: "torch.dtype", shape: Sequence[int], fill: Fill) -> "Tensor":
        import torch

        made = torch.empty(tuple(shape), dtype=dtype, device=self._device.info.torch_device)
        nbytes = math.prod(shape) * dtype.itemsize
        target = made.view(-1).view(torch.uint8) if nbytes else made
        under_way: deque[tuple[Future[None], Buffer, int]] = deque()
        try:
            for start in range(0, nbytes, self._part):
                if not self._ring:
                    self._copy(target, *under_way.popleft())
                buffer = self._ring.popleft()
                if buffer.read is not None:
                    buffer.read.synchronize()
                memory = buffer.memory.numpy()[: min(self._part, nbytes - start)]
                under_way.append((self._threads.submit(fill, memory, start), buffer, start))
            while under_way:
                self._copy(target, *under_way.popleft())
        finally:  # an error or an interrupt leaves no thread that still fills a buffer
            wait([future for future, _, _ in under_way])
            self._ring.extend(buffer for _, buffer, _ in under_way)
        return made

    def _copy(self, target: "Tensor", filled: "Future[None]", buffer: Buffer, start: int) -> None:
        """Launch the copy of a part once it is read."""
        self._ring.append(buffer)
        filled.result()
        part = target[start : start + self._part]
        part.copy_(buffer.memory[: len(part)], non_blocking=True)
        buffer.read = self._device.record()


def read_at(file: int, path: Path, offset: int, to: Any) -> None:
    """Fill a u8 array of the host from a file."""
    view, done = memoryview(to), 0
    while done < len(view):
        try:
            count = os.preadv(file, [view[done:]], offset + done)
        except OSError as error:
            raise ModelError(f"{path} cannot be read at byte {offset + done}: {error}") from error
        if count == 0:
            raise ModelError(
                f"{path} ends at byte {offset + done}, a tensor needs {len(view) - done} more: it "
                "is truncated or being written; fetch it again"
            )
        done += count
