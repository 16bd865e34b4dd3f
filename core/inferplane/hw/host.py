"""What this process may use of the machine that it runs on: processors, memory and their limits.

Reads files only; paths are relative to `root`, so that tests describe a machine as a folder.
Control groups of both versions count, those around the process's own included.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path("/")
GROUPS = "sys/fs/cgroup"
PROCESSORS = "sys/devices/system/cpu"
NODES = "sys/devices/system/node"


@dataclass(frozen=True, slots=True)
class Core:
    """A physical core: its processors that this process may use, lowest first."""

    cpus: tuple[int, ...]
    fast: bool = True
    """not one of the slower cores of a machine that has two kinds"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Processors and memory nodes that this process may use."""

    cores: tuple[Core, ...]
    """fast ones first, then by number"""
    quota: float | None = None
    """processors' worth of time that the control group allows; None: no limit"""
    nodes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """memory node -> the processors of `cores` that it belongs to"""

    @property
    def cpus(self) -> frozenset[int]:
        return frozenset(cpu for core in self.cores for cpu in core.cpus)


@dataclass(frozen=True, slots=True)
class HostThreads:
    """The threads of the host that a device computes with, for the hook `host_threads`."""

    count: int
    reason: str
    """who or what decided the count"""
    cpus: tuple[int, ...] = ()
    """the processor that each is bound to, that of the engine's own thread first; empty: the
    system places them"""


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes that this process may use; `limit` says what makes them fewer than the machine has."""

    free: int
    total: int
    limit: str = ""


def read_host(root: Path = ROOT, affinity: Iterable[int] | None = None) -> Host:
    """`affinity`: processors that the system lets this process run on; default: asks it."""
    allowed = set(os.sched_getaffinity(0) if affinity is None else affinity)
    for text in (
        _text(root / PROCESSORS / "online"),
        _first("cpuset", ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"), root),
    ):
        allowed = allowed & parse_list(text) or allowed
    slow = _slow(allowed, root)
    siblings = {
        frozenset(parse_list(_text(_topology(root, cpu))) & allowed or {cpu}) for cpu in allowed
    }
    cores = [Core(tuple(sorted(group)), fast=not group <= slow) for group in siblings]
    return Host(
        cores=tuple(sorted(cores, key=lambda core: (not core.fast, core.cpus))),
        quota=_quota(root),
        nodes=dict(_nodes(allowed, root)),
    )


def parse_list(text: str) -> set[int]:
    """ "0-3,8" -> {0, 1, 2, 3, 8}"""
    found: set[int] = set()
    for part in text.replace("\n", ",").split(","):
        low, _, high = part.strip().partition("-")
        if low:
            found |= set(range(int(low), int(high or low) + 1))
    return found


def show_list(numbers: Iterable[int]) -> str:
    """{0, 1, 2, 3, 8} -> "0-3,8" """
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def control_groups(controller: str, root: Path = ROOT) -> list[Path]:
    """The folders of this process's control groups for a controller, innermost first, of both
    versions. A container that sees only its own part of the tree finds its limits at the top."""
    found: dict[Path, None] = {}
    for line in ["0::/", f"0:{controller}:/", *_text(root / "proc/self/cgroup").splitlines()]:
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for top in ("",) if not names else (names, controller):
            for depth in range(len(parts), -1, -1):
                found[(root / GROUPS / top).joinpath(*parts[:depth])] = None
    return sorted((p for p in found if p.is_dir()), key=lambda p: -len(p.parts))


def host_memory(root: Path = ROOT) -> HostMemory:
    """The smallest of the machine's memory and of what the control groups leave. Files that the
    system would drop from its cache count as free, as they do for the machine."""
    facts = dict(line.split(":", 1) for line in _text(root / "proc/meminfo").splitlines())
    free, machine = (int(facts[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
    total, limited = machine, ""
    names = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for folder in control_groups("memory", root):
        for limit_file, usage_file, dropped in names:
            text = _text(folder / limit_file).strip()
            if not text or text == "max" or int(text) >= machine:
                continue
            stat = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines())
            used = int(_text(folder / usage_file) or 0) - int(stat.get(dropped, 0))
            free = min(free, int(text) - max(used, 0))
            if int(text) < total:
                total, limited = int(text), f"{limit_file} of the control group"
    return HostMemory(max(free, 0), total, limited)


def keep_off(cpus: Iterable[int], threads: Iterable[int] = (0,)) -> None:
    """Move threads (ids; 0: the calling one, and what it starts from now on) to other processors
    than these, where they may use any other."""
    taken = set(cpus)
    for thread in threads if taken else ():
        try:
            rest = os.sched_getaffinity(thread) - taken
            if rest:
                os.sched_setaffinity(thread, rest)
        except OSError:
            pass  # the thread has ended, or the system forbids it: it may stay where it is


def give_way(thread: int = 0) -> None:
    """Let a thread (its id; 0: the calling one, and what it starts from now on) run only in time
    that all others leave. There is no way back without a privilege. Linux compares threads within
    a session only ("autogroups")."""
    try:
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    except OSError:  # forbidden, as some containers do
        os.setpriority(os.PRIO_PROCESS, thread, 19)


def own_threads() -> list[int]:
    """The ids of all threads of this process."""
    return [int(entry) for entry in os.listdir("/proc/self/task")]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _first(controller: str, names: Iterable[str], root: Path) -> str:
    """The first of these files that says anything, from the innermost group on."""
    texts = (_text(folder / name) for folder in control_groups(controller, root) for name in names)
    return next((text for text in texts if text.strip()), "")


def _topology(root: Path, cpu: int) -> Path:
    return root / PROCESSORS / f"cpu{cpu}/topology/thread_siblings_list"


def _slow(cpus: set[int], root: Path) -> set[int]:
    """The processors of the slower kind, where there are two."""
    slow = parse_list(_text(root / "sys/devices/cpu_atom/cpus")) & cpus
    texts = {cpu: _text(root / PROCESSORS / f"cpu{cpu}/cpu_capacity") for cpu in cpus}
    capacity = {cpu: int(text) for cpu, text in texts.items() if text.strip()}
    best = max(capacity.values(), default=0)
    slow |= {cpu for cpu, value in capacity.items() if value < best}
    return slow if slow != cpus else set()


def _quota(root: Path) -> float | None:
    """The smallest quota of the control groups, in processors."""
    found = []
    for folder in control_groups("cpu", root):
        text = _text(folder / "cpu.max") or " ".join(
            _text(folder / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        )
        quota, _, period = text.strip().partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _nodes(cpus: set[int], root: Path) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Nodes with memory that this process may use."""
    status = _text(root / "proc/self/status").splitlines()
    usable = next((s.split(":")[1] for s in status if s.startswith("Mems_allowed_list:")), "")
    allowed, filled = parse_list(usable), parse_list(_text(root / NODES / "has_memory"))
    for folder in sorted((root / NODES).glob("node[0-9]*"), key=lambda f: int(f.name[4:])):
        node = int(folder.name[4:])
        if (not allowed or node in allowed) and (not filled or node in filled):
            yield node, tuple(sorted(parse_list(_text(folder / "cpulist")) & cpus))
