"""Where large tensors lie: huge pages, NUMA nodes, and what becomes of freed memory.

`settle` is called on memory that nobody has written yet; the policy is the process's, set once by
create_device. Every request is advice: where the system refuses (a container's filter of system
calls, no huge page left), memory is as it would have been, and `describe` says so.
"""

import ctypes
import mmap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from inferplane.hw.kv import KVSpec, StridedLayout

if TYPE_CHECKING:
    from torch import Tensor

    from inferplane.hw import Device

ROOT = Path("/")
MODE = "sys/kernel/mm/transparent_hugepage/enabled"
MBIND, GET_MEMPOLICY = 237, 239  # system calls of x86-64
PREFERRED, INTERLEAVE = 1, 3
OF_ADDRESS = 2  # MPOL_F_ADDR
SMALLEST = 256 << 10
"""bytes below which a tensor is left alone"""
SMALLEST_KV = 32 << 20
"""the same for the KV cache of a layer, which may stay unused: a huge page is 2 MiB"""
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt
KEPT = 256 << 20
"""freed bytes that the C library keeps for the next tensors of a step"""
LARGEST_KEPT = 32 << 20
"""bytes from which an allocation goes back to the system when it is freed; glibc takes no more"""
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
MASK_WORDS = 16
"""64-bit words in a set of nodes: 1024 nodes"""

_nodes: tuple[int, ...] = ()


@cache
def libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return library


def keep_freed() -> bool:
    """Let the tensors of a step lie where those of the last one did. Otherwise the C library gives
    them back, and each page of a new one costs a fault: a tenth of a prefill of 512 tokens. False
    where the C library is another than glibc."""
    mallopt = getattr(libc(), "mallopt", None)
    return mallopt is not None and bool(
        mallopt(TRIM_THRESHOLD, KEPT) and mallopt(MMAP_THRESHOLD, LARGEST_KEPT)
    )


def use_nodes(nodes: Sequence[int]) -> None:
    """Nodes for the memory that is settled from now on; none: as the system does it."""
    global _nodes
    _nodes = tuple(nodes)


def settle(tensor: "Tensor", smallest: int = SMALLEST) -> "Tensor":
    """The same tensor, its pages huge and in the right nodes as far as the system allows."""
    size = tensor.nbytes
    if size >= smallest:
        start = tensor.data_ptr()
        advise_huge(start, size)
        if _nodes:
            bind(start, size, _nodes)
    return tensor


def advise_huge(start: int, size: int) -> bool:
    """Ask for huge pages. Whole pages around the range, so that neighbours share them."""
    page = mmap.PAGESIZE
    low, high = start // page * page, -(-(start + size) // page) * page
    return bool(libc().madvise(low, high - low, mmap.MADV_HUGEPAGE) == 0)


def bind(start: int, size: int, nodes: Sequence[int]) -> bool:
    """Pages of the range that nobody has touched come from these nodes in turn, or from the only
    one as long as it has any."""
    page = mmap.PAGESIZE
    low, high = -(-start // page) * page, (start + size) // page * page
    if high <= low:
        return False
    mode = INTERLEAVE if len(nodes) > 1 else PREFERRED
    mask = (ctypes.c_ulong * MASK_WORDS)()
    for node in nodes:
        mask[node // 64] |= 1 << node % 64
    arguments = (ctypes.c_void_p(low), ctypes.c_ulong(high - low), ctypes.c_int(mode))
    width = ctypes.c_ulong(MASK_WORDS * 64)
    return bool(libc().syscall(MBIND, *arguments, mask, width, ctypes.c_uint(0)) == 0)


def huge_pages(root: Path = ROOT) -> str:
    """The system's mode: always, madvise (on request), never, or "" if it has none."""
    try:
        text = (root / MODE).read_text()
    except OSError:
        return ""
    return text.partition("[")[2].partition("]")[0]


def gives_huge_pages() -> bool:
    """Whether the system really gives them, tried with one."""
    size = 4 << 20
    with mmap.mmap(-1, size, PRIVATE) as area:
        view = ctypes.c_char.from_buffer(area)
        start = ctypes.addressof(view)
        advised = advise_huge(start, size)
        inside = -(-start // (2 << 20)) * (2 << 20)
        area[inside - start] = 1
        del view
        return advised and _is_huge(inside)


def _is_huge(address: int) -> bool:
    """Whether the mapping with an address has any huge page."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(" ", 1)[0]
        if "-" in head:
            low, high = (int(part, 16) for part in head.split("-"))
            found = low <= address < high
        elif found and head == "AnonHugePages:":
            return int(line.split()[1]) > 0
    return False


def describe(root: Path = ROOT) -> str:
    mode = huge_pages(root)
    if mode in ("", "never"):
        return f"not used: {MODE} says {mode or 'nothing'}"
    if not gives_huge_pages():
        return f"asked for weights and KV ({mode}), but the system gave none when tried"
    return f"used for weights and KV ({mode})"


def policy(address: int) -> int | None:
    """The memory policy's number at an address, or None if the system does not tell."""
    mode = ctypes.c_int()
    at = (ctypes.byref(mode), None, ctypes.c_ulong(0), ctypes.c_void_p(address))
    failed = libc().syscall(GET_MEMPOLICY, *at, ctypes.c_ulong(OF_ADDRESS))
    return None if failed else mode.value


def nodes_work() -> bool:
    """Whether the system lets this process choose nodes, tried with a page."""
    with mmap.mmap(-1, mmap.PAGESIZE, PRIVATE) as area:
        view = ctypes.c_char.from_buffer(area)
        done = bind(ctypes.addressof(view), mmap.PAGESIZE, _nodes)
        del view
        return done


class SettledLayout(StridedLayout):
    """Its pages are settled; see there."""

    def alloc(self, num_pages: int, spec: KVSpec, device: "Device") -> "Tensor":
        return settle(StridedLayout.alloc(self, num_pages, spec, device), SMALLEST_KV)
