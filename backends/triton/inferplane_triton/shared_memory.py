"""How much shared memory a tile of a product takes, and tiles cut down to what a device has.

Triton keeps the loads of the steps to come in shared memory, and a kernel that needs more than the
device gives a program is refused when it is first launched. So the bytes are counted before; the
counts were compared with what Triton 3.6 reports for every tile in use (compile_shared.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from inferplane.hw import Device
from inferplane_triton.launch import Tile

BARRIERS = 4096
"""what a compiler for units with memory of their own (sm_100) adds, at most"""


@dataclass(frozen=True, slots=True)
class Operands:
    """What a step of a product reads."""

    w: float
    """bytes of a value of W"""
    x: int
    converted: bool = False
    """W becomes x's type in registers"""
    dots: int = 1
    """that a step's block of K is cut into"""


@dataclass(frozen=True, slots=True)
class Room:
    """Of one program."""

    bytes: int
    arch: str = ""

    @property
    def lasting(self) -> bool:
        """Matrix units read operands from shared memory while the next step begins."""
        return self.arch.startswith("sm_") and self.arch[3:] in ("90", "100", "101", "103", "110")

    @property
    def own_memory(self) -> bool:
        """Matrix units do not read W from registers."""
        return self.lasting and self.arch != "sm_90"


def room_of(device: Device) -> Room:
    """Without a compiler's device, as in Triton's interpreter, there is no limit."""
    import torch

    where = torch.device(device.info.torch_device)
    if where.type == "cpu":
        return Room(1 << 40, device.info.arch)
    return Room(_limit(where.index or 0), device.info.arch)


@lru_cache
def _limit(index: int) -> int:
    from triton.runtime import driver

    return int(driver.active.utils.get_device_properties(index)["max_shared_mem"])


def shared_bytes(cut: Tile, lines: int, operands: Operands, room: Room) -> int:
    """At most what a program with `lines` of x takes.

    A load that is ahead has `stages` buffers if a matrix unit reads it there while the next one
    arrives, else one less; one that goes through registers has one less everywhere.
    """
    w, x = cut.rows * cut.block * operands.w, lines * cut.block * operands.x
    part = (cut.rows + lines) * cut.block * operands.x // operands.dots
    more = cut.rows * cut.block * operands.x // operands.dots + BARRIERS if room.own_memory else 0
    if cut.stages == 1:
        loop = max(int(w), part)
    else:
        held = cut.stages if room.lasting else cut.stages - 1
        loop = int(w) * (cut.stages - 1 if operands.converted else held) + x * held
    return max(loop + more, 4 * cut.rows * lines)


def fitted(cut: Tile, rows: int, operands: Operands, room: Room) -> Tile:
    """The tile for up to `rows` of x with as many stages, and then lines, as there is room for."""
    while shared_bytes(cut, cut.m_pad(rows), operands, room) > room.bytes:
        if cut.stages > 1:
            cut = replace(cut, stages=cut.stages - 1)
        else:
            assert cut.most > 16, f"{cut} does not fit into {room}"
            cut = replace(cut, most=cut.most // 2)
    return cut


def fitting(operands: Operands, device: Device) -> Callable[[Tile, int], Tile]:
    """(tile, rows of x) -> a tile that the device has room for"""
    room = room_of(device)
    return lambda cut, rows: fitted(cut, rows, operands, room)
