"""Huge pages and memory nodes: what is asked of the system, and what it then does."""

import ctypes
import mmap
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from inferplane.hw import DeviceInfo, KVSpec, TorchDevice
from inferplane_xeon import memory
from inferplane_xeon.plugin import HEAD_MAJOR
from tests.hw.hosts import write

MIB = 1 << 20


@pytest.fixture
def area() -> Iterator[int]:
    """The address of 8 MiB that nobody has touched."""
    with mmap.mmap(-1, 8 * MIB, memory.PRIVATE) as mapped:
        view = ctypes.c_char.from_buffer(mapped)
        yield ctypes.addressof(view)
        del view


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("always [madvise] never\n", "madvise"),
        ("[always] madvise never\n", "always"),
        ("always madvise [never]\n", "never"),
    ],
)
def test_the_mode_of_huge_pages(text: str, mode: str, tmp_path: Path) -> None:
    root = write(tmp_path, {memory.MODE: text})
    assert memory.huge_pages(root) == mode
    assert (memory.describe(root).startswith("not used")) == (mode == "never")


def test_a_system_without_huge_pages(tmp_path: Path) -> None:
    assert memory.describe(tmp_path) == f"not used: {memory.MODE} says nothing"


def test_a_system_that_gives_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "gives_huge_pages", lambda: False)
    root = write(tmp_path, {memory.MODE: "[always] madvise never\n"})
    assert memory.describe(root).endswith("the system gave none when tried")


def advised(address: int) -> bool:
    """Whether the mapping at an address has been advised to have huge pages."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(" ", 1)[0]
        if "-" in head:
            low, high = (int(part, 16) for part in head.split("-"))
            found = low <= address < high
        elif found and head == "VmFlags:":
            return "hg" in line.split()
    raise AssertionError(f"no mapping at {address:#x}")


@pytest.mark.skipif(memory.huge_pages() == "", reason="the system has no huge pages")
def test_advice_reaches_the_system(area: int) -> None:
    assert not advised(area)
    assert memory.advise_huge(area + 5, 4 * MIB)
    assert advised(area + 4 * MIB)
    assert memory.gives_huge_pages() in (True, False)


def test_nodes_of_a_range(area: int) -> None:
    """Node 0 is everywhere, and is preferred or the only one of a round."""
    if memory.policy(area) is None or not memory.bind(area, MIB, (0,)):
        pytest.skip("the system lets nobody choose memory nodes")
    assert memory.policy(area) == memory.PREFERRED
    assert memory.policy(area + 2 * MIB) == 0
    assert memory.bind(area + 100, 4 * MIB, (0, 0))
    assert memory.policy(area + 2 * MIB) == memory.INTERLEAVE
    ctypes.memset(area, 1, 8 * MIB)


def test_a_range_without_a_whole_page_has_no_node(area: int) -> None:
    assert not memory.bind(area + 1, mmap.PAGESIZE, (0,))


def test_a_node_that_does_not_exist(area: int) -> None:
    assert not memory.bind(area, MIB, (1000,))


def test_large_tensors_are_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    huge: list[int] = []
    bound: list[tuple[int, tuple[int, ...]]] = []
    monkeypatch.setattr(memory, "advise_huge", lambda start, size: huge.append(size))
    monkeypatch.setattr(memory, "bind", lambda start, size, nodes: bound.append((size, nodes)))
    small, large = torch.empty(1000), torch.empty(MIB)
    assert memory.settle(small) is small and memory.settle(large) is large
    assert (huge, bound) == ([4 * MIB], [])
    monkeypatch.setattr(memory, "_nodes", (0, 1))
    memory.settle(large)
    assert bound == [(4 * MIB, (0, 1))]


def test_pages_of_the_kv_cache_are_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    device = TorchDevice(DeviceInfo(backend="xeon", torch_device="cpu", name="test"))
    spec = KVSpec(num_kv_heads=2, head_dim=64, dtype="bfloat16", page_size=16)
    sizes: list[int] = []
    monkeypatch.setattr(memory, "advise_huge", lambda start, size: sizes.append(size))
    assert HEAD_MAJOR.alloc(4, spec, device).shape == (2, 4, 2, 16, 64)
    assert sizes == []
    data = HEAD_MAJOR.alloc(5000, spec, device)
    assert sizes == [data.nbytes] == [2 * 5000 * 2 * 16 * 64 * 2]


FAULTS = """
import resource, sys, torch
from inferplane_xeon import memory

def work():
    tensors = [torch.empty(3 << 20, dtype=torch.uint8).fill_(1) for _ in range(8)]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if not memory.keep_freed():
    print("none")
    raise SystemExit
# what glibc does unasked depends on what happens to lie on the heap
memory.libc().mallopt(memory.MMAP_THRESHOLD, 1 << 20)
if sys.argv[1] == "keep":
    memory.keep_freed()
work()
before = faults()
for _ in range(5):
    work()
print((faults() - before) * resource.getpagesize() >> 20)
"""


def test_freed_memory_serves_the_next_step() -> None:
    def mebibytes(how: str) -> str:
        command = [sys.executable, "-c", FAULTS, how]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    kept = mebibytes("keep")
    if kept == "none":
        pytest.skip("the C library is not glibc")
    assert int(kept) < 60  # of 120 that are written
    assert int(mebibytes("return")) > 100  # the control
