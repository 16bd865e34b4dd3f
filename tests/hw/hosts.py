"""Machines described as folders: their processors, cores and memory nodes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

Cores = Mapping[int, Sequence[Sequence[int]]]
"""memory node -> the processors of each of its physical cores"""

SMT: Cores = {0: [(0, 4), (1, 5), (2, 6), (3, 7)]}
TWO_SOCKETS: Cores = {0: [(0, 4), (1, 5)], 1: [(2, 6), (3, 7)]}


def host_files(nodes: Cores) -> dict[str, str]:
    files = {}
    for node, cores in nodes.items():
        cpus = sorted(cpu for core in cores for cpu in core)
        listed = ",".join(map(str, cpus))
        files[f"sys/devices/system/node/node{node}/cpulist"] = listed + "\n"
        for core in cores:
            for cpu in core:
                folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
                files[f"{folder}/thread_siblings_list"] = ",".join(map(str, core)) + "\n"
    return files


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
