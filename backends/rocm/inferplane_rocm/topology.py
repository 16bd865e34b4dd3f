"""The GPUs in the kernel driver's topology, in the order in which the runtime numbers them."""

from dataclasses import dataclass
from pathlib import Path

DEVICE_HEAPS = ("1", "2")  # visible and invisible to the host


@dataclass(frozen=True, slots=True)
class Node:
    arch: str
    memory_bytes: int | None
    unique_id: str


def gpu_nodes(root: Path) -> list[Node]:
    """Nodes with compute units. One that this container may not use has unreadable properties."""
    folders = (root / "sys/class/kfd/kfd/topology/nodes").glob("[0-9]*")
    found = []
    for folder in sorted(folders, key=lambda f: int(f.name)):
        values = _properties(folder / "properties")
        if int(values.get("simd_count", "0")) > 0:
            unique_id = f"GPU-{int(values.get('unique_id', '0')):016x}"
            version = int(values.get("gfx_target_version", "0"))
            found.append(Node(_arch(version), _memory(folder), unique_id))
    return found


def _arch(version: int) -> str:
    """90402 is gfx942, 90010 is gfx90a: two decimal digits each, the last two written in hex."""
    major, minor, step = version // 10000, version // 100 % 100, version % 100
    return f"gfx{major}{minor:x}{step:x}"


def _memory(folder: Path) -> int | None:
    banks = [_properties(bank / "properties") for bank in (folder / "mem_banks").glob("*")]
    sizes = [int(b["size_in_bytes"]) for b in banks if b.get("heap_type") in DEVICE_HEAPS]
    return sum(sizes) or None


def _properties(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(maxsplit=1) for line in lines)
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
