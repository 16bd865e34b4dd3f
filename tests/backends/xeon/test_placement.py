"""Where threads and memory go on machines of all kinds, and on this one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inferplane.errors import ConfigError
from inferplane.hw.host import Core, Host, read_host
from inferplane_xeon.placement import MOST_THREADS, place
from tests.hw.hosts import SMT, TWO_SOCKETS, Cores, host_files, write


def plain(cores: int, quota: float | None = None) -> Host:
    return Host(cores=tuple(Core((cpu,)) for cpu in range(cores)), quota=quota)


def smt(cores: int, quota: float | None = None) -> Host:
    return Host(cores=tuple(Core((c, c + cores)) for c in range(cores)), quota=quota)


def hybrid() -> Host:
    fast = [Core((0, 1)), Core((2, 3))]
    return Host(cores=(*fast, *(Core((cpu,), fast=False) for cpu in range(4, 8))))


@pytest.mark.parametrize(
    ("host", "threads", "reason"),
    [
        (plain(1), 1, "one per physical core"),
        (plain(2), 2, "one per physical core"),
        (smt(1), 1, "one per physical core"),
        (smt(4), 4, "one per physical core"),
        (plain(7), 7, "one per physical core"),
        (plain(8), 7, "one per physical core but one, left to other processes"),
        (smt(8), 8, "one per physical core"),
        (hybrid(), 2, "one per fast core"),
        (smt(4, quota=1.5), 1, "the control group's quota of 1.5 processors"),
        (smt(4, quota=0.5), 1, "the control group's quota of 0.5 processors"),
        (smt(4, quota=3), 3, "the control group's quota of 3 processors"),
        (smt(4, quota=6), 4, "one per physical core"),
        (plain(400), MOST_THREADS, "one per physical core but one, left to other processes"),
    ],
)
def test_the_number_of_threads(host: Host, threads: int, reason: str) -> None:
    made = place(host)
    assert (made.threads, made.reason) == (threads, reason)


def test_torch_may_have_been_given_fewer() -> None:
    assert place(smt(4), torch_threads=2).threads == 2
    assert "OMP_NUM_THREADS" in place(smt(4), torch_threads=2).reason
    assert place(smt(4), torch_threads=8).threads == 4
    assert (place(smt(4), 3, torch_threads=1).threads, place(smt(4), 3).reason) == (3, "user")


@pytest.mark.parametrize(
    ("host", "asked", "words"),
    [
        (plain(2), 3, "--threads 3: this process may run on 2 processors (0-1): ask for at most 2"),
        (plain(1), 2, "may run on 1 processor (0): ask for at most 1"),
        (smt(4), 9, "may run on 8 processors (0-7): ask for at most 8"),
        (smt(4, quota=1.5), 3, "quota of 1.5 processors from its control group: ask for at most 2"),
        (plain(2, quota=8), 3, "may run on 2 processors"),
        (plain(400), 300, "can have 256 threads at most: ask for at most 256"),
    ],
)
def test_more_threads_than_the_process_may_use(host: Host, asked: int, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        place(host, asked)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("host", "asked", "cpus", "words"),
    [
        (smt(4), None, (0, 1, 2, 3), "to 4 processors (0-3), one each; the API process keeps to 4"),
        (smt(4), 6, (0, 1, 2, 3, 4, 5), "the API process keeps to 2 processors (6-7)"),
        (smt(4), 8, (), "every processor computes"),
        (smt(4), 3, (), "fewer threads than cores"),
        (smt(4, quota=4), None, (), "a quota does not say which"),
        (smt(4, quota=8), None, (0, 1, 2, 3), "one each"),
        (plain(2), None, (), "every processor computes"),
        (plain(1), None, (), "one thread"),
        (plain(9), None, tuple(range(8)), "the API process keeps to 1 processor (8)"),
        (hybrid(), None, (0, 2), "the API process keeps to 6 processors (1,3-7)"),
        (hybrid(), 6, (0, 2, 4, 5, 6, 7), "the API process keeps to 2 processors (1,3)"),
    ],
)
def test_binding(host: Host, asked: int | None, cpus: tuple[int, ...], words: str) -> None:
    made = place(host, asked)
    assert made.cpus == cpus
    assert words in made.binding


def read(tmp_path: Path, more: dict[str, str], cpus: range, nodes: Cores = TWO_SOCKETS) -> Host:
    files = host_files(nodes)
    return read_host(write(tmp_path, files | more), cpus)


CPUSET = {"sys/fs/cgroup/cpuset.cpus.effective": "0-1\n"}


@pytest.mark.parametrize(
    ("more", "nodes", "words"),
    [
        ({}, (0, 1), "weights and KV interleaved over nodes 0-1"),
        (CPUSET, (0,), "weights and KV preferably in node 0 of 0-1"),
        ({"proc/self/status": "Mems_allowed_list:\t0\n"}, (), "one: nothing to do"),
    ],
)
def test_memory_nodes(
    more: dict[str, str], nodes: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    made = place(read(tmp_path, more, range(8)))
    assert (made.nodes, made.memory) == (nodes, words)


def test_one_node(tmp_path: Path) -> None:
    made = place(read(tmp_path, CPUSET, range(8), SMT))
    assert (made.threads, made.nodes, made.memory) == (2, (), "one: nothing to do")


def in_a_process(code: str) -> str:
    """Threads and policies are the process's: another one is tried out."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # torch's threads are not ours
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


@pytest.fixture
def two_processors(library: object) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors")


START = """
import os, torch
from pathlib import Path
from inferplane_xeon import kernels
before = set(os.listdir("/proc/self/task"))
def run():
    x = torch.ones(4, 64)
    packed = kernels.pack_linear(torch.ones(2000, 64))
    return kernels.linear(x, packed, torch.empty(4, 2000))
def workers():
    found = {int(t) for t in set(os.listdir("/proc/self/task")) - before}
    return sorted(sorted(os.sched_getaffinity(t)) for t in found)
library = kernels.library()
allowed = sorted(os.sched_getaffinity(0))
before = set(os.listdir("/proc/self/task"))
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.usefixtures("two_processors")
def test_workers_are_bound(when: str) -> None:
    """Whether they run yet or not; and let go again. The caller stays where it is."""
    code = START + "library.set_threads(2)\n"
    bind = "library.bind([allowed[0], allowed[1]])\n"
    code += "run()\n" + bind if when == "after" else bind + "run()\n"
    code += """
assert workers() in ([allowed[1:2]], [allowed[:1]]), workers()  # it may have made way
assert sorted(os.sched_getaffinity(0)) == allowed
for _ in range(1000):  # it may be about to make way once more
    library.bind(allowed[:2])
    library.bind([])
    if workers() == [allowed]:
        break
else:
    raise AssertionError(workers())
assert bool((run() == 64).all())
"""
    in_a_process(code)


@pytest.mark.usefixtures("two_processors")
def test_a_worker_bound_to_the_callers_processor_stops_nobody() -> None:
    """It makes way, and the results are right."""
    code = (
        START
        + """
os.sched_setaffinity(0, allowed[:1])
library.set_threads(2)
library.bind([allowed[1], allowed[0]])
for _ in range(2000):
    assert bool((run() == 64).all())
    if workers() == [allowed[1:2]]:
        break
else:
    raise AssertionError(workers())
"""
    )
    in_a_process(code)


def test_processors_that_cannot_be(library: object) -> None:
    code = """
from inferplane_xeon import kernels
for wrong in ([-1], [5000], [0] * 5000, ["x"]):
    try:
        kernels.library().bind(wrong)
    except (ValueError, TypeError):
        continue
    raise AssertionError(wrong)
"""
    in_a_process(code)


def test_made_for_this_machine(library: object) -> None:
    """The device says what was decided, and --threads is refused before anything is loaded."""
    from inferplane.hw import DeviceInfo
    from inferplane_xeon import kernels, plugin

    info = DeviceInfo(backend="xeon", torch_device="cpu", name="test", arch="avx2")
    with pytest.raises(ConfigError, match="--threads 4096: this process"):
        plugin.create_device(info, {"threads": 4096})
    device = plugin.create_device(info, {"threads": 1})
    threads = plugin.host_threads(device)
    assert threads is not None
    assert (threads.count, threads.reason, threads.cpus) == (1, "user", ())
    assert kernels.library().threads() == 1
    facts = plugin.diagnostics(device)
    assert facts["threads"] == "1: user"
    assert ("amx" in facts) == (kernels.library().isa() == "amx")
    assert set(facts) - {"amx"} == {
        "instruction set",
        "processors",
        "threads",
        "threads are bound",
        "memory nodes",
        "huge pages",
    }
