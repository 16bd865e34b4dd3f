"""What a process may use of its host, read from folders that describe machines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inferplane.hw.host import (
    control_groups,
    host_memory,
    keep_off,
    parse_list,
    read_host,
    show_list,
)
from tests.hw.hosts import SMT, TWO_SOCKETS, host_files, write

GIB = 2**30


@pytest.mark.parametrize("text", ["", "0", "0-3", "0-3,8,10-11", "0,2,4"])
def test_lists_of_processors(text: str) -> None:
    assert show_list(parse_list(text + "\n")) == text


def test_no_folders_at_all(tmp_path: Path) -> None:
    host = read_host(tmp_path, {0, 1})
    assert [core.cpus for core in host.cores] == [(0,), (1,)]
    assert (host.quota, host.nodes) == (None, {})


def test_siblings_are_one_core(tmp_path: Path) -> None:
    host = read_host(write(tmp_path, host_files(SMT)), range(8))
    assert [core.cpus for core in host.cores] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert all(core.fast for core in host.cores)
    assert host.nodes == {0: tuple(range(8))}


def test_half_of_a_core_is_a_core(tmp_path: Path) -> None:
    host = read_host(write(tmp_path, host_files(SMT)), {0, 1, 4})
    assert [core.cpus for core in host.cores] == [(0, 4), (1,)]


def test_two_sockets(tmp_path: Path) -> None:
    host = read_host(write(tmp_path, host_files(TWO_SOCKETS)), range(8))
    assert [core.cpus for core in host.cores] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert host.nodes == {0: (0, 1, 4, 5), 1: (2, 3, 6, 7)}


def test_nodes_are_those_that_the_process_may_use_and_that_have_memory(tmp_path: Path) -> None:
    files = host_files(TWO_SOCKETS) | {"proc/self/status": "Name:\tx\nMems_allowed_list:\t1\n"}
    assert set(read_host(write(tmp_path / "a", files), range(8)).nodes) == {1}
    files = host_files(TWO_SOCKETS) | {"sys/devices/system/node/has_memory": "0\n"}
    assert set(read_host(write(tmp_path / "b", files), range(8)).nodes) == {0}


@pytest.mark.parametrize(
    "files",
    [
        {"sys/devices/cpu_atom/cpus": "4-7\n", "sys/devices/cpu_core/cpus": "0-3\n"},
        {f"sys/devices/system/cpu/cpu{n}/cpu_capacity": str(1024 - n // 4 * 400) for n in range(8)},
    ],
)
def test_slow_cores_come_last(files: dict[str, str], tmp_path: Path) -> None:
    pairs = [(0, 1), (2, 3), (4,), (5,), (6,), (7,)]
    host = read_host(write(tmp_path, host_files({0: pairs}) | files), range(8))
    assert [(core.cpus, core.fast) for core in host.cores] == [
        *(((low, low + 1), True) for low in (0, 2)),
        *(((cpu,), False) for cpu in (4, 5, 6, 7)),
    ]


def test_only_slow_cores_are_not_slow(tmp_path: Path) -> None:
    files = host_files(SMT) | {"sys/devices/cpu_atom/cpus": "0-7\n"}
    assert all(core.fast for core in read_host(write(tmp_path, files), range(8)).cores)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000", "cpu.max": "9 1"}, 2.0),
        ({"a/b/cpu.max": "50000 100000", "a/cpu.max": "200000 100000"}, 0.5),
        ({"cpu/c/cpu.cfs_quota_us": "300000", "cpu/c/cpu.cfs_period_us": "100000"}, 3.0),
    ],
)
def test_the_smallest_quota(files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    files["proc/self/cgroup"] = "4:cpu,cpuacct:/c\n3:memory:/m\n0::/a/b\n"
    assert read_host(write(tmp_path, files), {0, 1}).quota == quota


@pytest.mark.parametrize(
    "name", ["cpuset.cpus.effective", "cpuset/cpuset.cpus", "cpuset/d/cpuset.effective_cpus"]
)
def test_a_cpuset(name: str, tmp_path: Path) -> None:
    files = host_files(SMT) | {f"sys/fs/cgroup/{name}": "0-1\n", "proc/self/cgroup": "7:cpuset:/d"}
    assert read_host(write(tmp_path, files), range(8)).cpus == {0, 1}


def test_processors_that_are_off(tmp_path: Path) -> None:
    files = host_files(SMT) | {"sys/devices/system/cpu/online": "0-3\n"}
    assert read_host(write(tmp_path, files), range(8)).cpus == {0, 1, 2, 3}


def test_groups_from_the_inside_out(tmp_path: Path) -> None:
    """Also when the container sees only its own part, so that its path leads nowhere."""
    files = {"proc/self/cgroup": "3:memory:/docker/x\n0::/../pod/y\n"}
    files |= {f"sys/fs/cgroup/{name}/f": "" for name in ("memory", "pod/y")}
    found = control_groups("memory", write(tmp_path, files))
    assert [str(p.relative_to(tmp_path / "sys/fs/cgroup")) for p in found] == [
        "pod/y",
        "memory",
        "pod",
        ".",
    ]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (10 * GIB, 16 * GIB)),
        ({"memory.max": "max", "memory.current": "5"}, (10 * GIB, 16 * GIB)),
        ({"memory.max": str(8 * GIB), "memory.current": str(3 * GIB)}, (5 * GIB, 8 * GIB)),
        ({"memory.max": str(12 * GIB), "memory.current": str(GIB)}, (10 * GIB, 12 * GIB)),
        ({"memory.max": str(99 * GIB), "memory.current": "5"}, (10 * GIB, 16 * GIB)),
        ({"memory.max": str(GIB), "memory.current": str(2 * GIB)}, (0, GIB)),
        (
            {
                "memory/memory.limit_in_bytes": str(4 * GIB),
                "memory/memory.usage_in_bytes": str(GIB),
            },
            (3 * GIB, 4 * GIB),
        ),
        (
            {
                "memory/in/memory.limit_in_bytes": str(4 * GIB),
                "memory/in/memory.usage_in_bytes": str(3 * GIB),
                "memory/in/memory.stat": f"cache 7\ntotal_inactive_file {2 * GIB}\n",
            },
            (3 * GIB, 4 * GIB),
        ),
        (
            {
                "a/memory.max": str(4 * GIB),
                "a/memory.current": str(3 * GIB),
                "a/memory.stat": f"anon 1\ninactive_file {GIB}\n",
                "memory.max": str(6 * GIB),
                "memory.current": str(5 * GIB),
            },
            (1 * GIB, 4 * GIB),
        ),
    ],
)
def test_memory_is_the_smallest_of_machine_and_control_groups(
    files: dict[str, str], expected: tuple[int, int], tmp_path: Path
) -> None:
    machine = {
        "proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemAvailable: {10 * 2**20} kB\n",
        "proc/self/cgroup": "5:memory:/in\n0::/a\n",
    }
    files = machine | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    found = host_memory(write(tmp_path, files))
    assert (found.free, found.total) == expected
    assert ("control group" in found.limit) == (found.total < 16 * GIB)


def test_this_machine() -> None:
    host = read_host()
    assert host.cpus and host.cpus <= os.sched_getaffinity(0)
    assert 0 < host_memory().free <= host_memory().total


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_keeping_off_processors() -> None:
    """In a process of its own, whose later threads start where the first one is."""
    code = """
import os, threading
from inferplane.hw.host import keep_off, own_threads
before = os.sched_getaffinity(0)
first = min(before)
keep_off([])
keep_off(before)  # nothing else is left
assert os.sched_getaffinity(0) == before
keep_off([first], own_threads())
seen = []
thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
thread.start()
thread.join()
assert os.sched_getaffinity(0) == seen[0] == before - {first}, seen
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_thread_that_has_ended_is_left_alone() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    keep_off([0], [ended.pid])
