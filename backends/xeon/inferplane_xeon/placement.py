"""How many threads compute, on which processors, and in which memory nodes weights and KV lie.

Decided from what `inferplane.hw.host` reads; touches nothing, so that it can be shown before
anything is loaded.
"""

from dataclasses import dataclass

from inferplane.errors import ConfigError
from inferplane.hw.host import Host, show_list

MOST_THREADS = 256
"""csrc/threads.cpp"""
CORES_TO_SPARE = 8
"""from this many cores on, one is left to the API process where no other processor is"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """`cpus`: where each thread is bound, the caller's first; empty: the system places them."""

    threads: int
    reason: str
    cpus: tuple[int, ...]
    binding: str
    nodes: tuple[int, ...]
    memory: str


def place(host: Host, asked: int | None = None, torch_threads: int | None = None) -> Placement:
    """`asked`: --threads. `torch_threads`: a bound on the automatic number, as OMP_NUM_THREADS and
    torch.set_num_threads set it. ConfigError if more is asked than this process may use."""
    if asked is not None:
        _check(asked, host)
    whole, reason = _whole(host)
    count = whole
    if asked is not None:
        count, reason = asked, "user"
    else:
        if host.quota is not None and host.quota < count:
            count = max(1, int(host.quota))
            reason = f"the control group's quota of {host.quota:g} processors"
        if torch_threads is not None and torch_threads < count:
            count, reason = torch_threads, "OMP_NUM_THREADS, or what torch was set to"
    order = _order(host)
    chosen = tuple(order[:count])
    cpus, binding = _bind(host, chosen, whole)
    nodes, memory = _memory(host, frozenset(chosen))
    return Placement(
        threads=count, reason=reason, cpus=cpus, binding=binding, nodes=nodes, memory=memory
    )


def _check(asked: int, host: Host) -> None:
    most, why = len(host.cpus), f"may run on {_processors(host.cpus)}"
    if host.quota is not None and host.quota < most:
        most = max(1, -int(-host.quota // 1))
        why = f"has a quota of {host.quota:g} processors from its control group"
    if most > MOST_THREADS:
        most, why = MOST_THREADS, f"can have {MOST_THREADS} threads at most"
    if asked > most:
        raise ConfigError(
            f"--threads {asked}: this process {why}: ask for at most {most}, leave the option out, "
            "or give the process more (taskset, cpuset, cpu quota)"
        )


def _whole(host: Host) -> tuple[int, str]:
    """How many threads use all of the host, and why so many."""
    fast = [core for core in host.cores if core.fast]
    if len(fast) < len(host.cores):
        count, reason = len(fast), "one per fast core"
    elif len(host.cpus) == len(fast) >= CORES_TO_SPARE:
        count, reason = len(fast) - 1, "one per physical core but one, left to other processes"
    else:
        count, reason = len(fast), "one per physical core"
    return min(count, MOST_THREADS), reason


def _order(host: Host) -> list[int]:
    """Processors in the order in which they get threads: one of each core first, fast cores before
    slow ones."""
    depth = max(len(core.cpus) for core in host.cores)
    rounds = range(depth)
    return [core.cpus[i] for i in rounds for core in host.cores if i < len(core.cpus)]


def _bind(host: Host, chosen: tuple[int, ...], whole: int) -> tuple[tuple[int, ...], str]:
    """Threads are bound only where that cannot make things worse: all cores are ours to use, for
    two programs that both bind to the first cores share these while others idle; and a processor
    is left for the rest of the program, for a bound thread cannot make way."""
    if len(chosen) == 1:
        return (), "none: one thread"
    if host.quota is not None and host.quota < len(host.cpus):
        return (), "none: a quota does not say which processors are ours"
    if len(chosen) < whole:
        return (), "none: fewer threads than cores, the others may be taken"
    spare = host.cpus - set(chosen)
    if not spare:
        return (), "none: every processor computes, and threads must be able to make way"
    return chosen, (
        f"to {_processors(chosen)}, one each; the API process keeps to {_processors(spare)}"
    )


def _memory(host: Host, chosen: frozenset[int]) -> tuple[tuple[int, ...], str]:
    """Weights and KV are read by all threads: spread over the nodes that compute, every memory
    channel is used whoever reads."""
    if len(host.nodes) < 2:
        return (), "one: nothing to do"
    near = tuple(node for node, cpus in host.nodes.items() if chosen & set(cpus))
    if not near:
        return (), f"{len(host.nodes)}: none holds a computing processor, the system chooses"
    if len(near) == 1:
        return near, f"weights and KV preferably in node {near[0]} of {show_list(host.nodes)}"
    return near, f"weights and KV interleaved over nodes {show_list(near)}"


def _processors(cpus: frozenset[int] | tuple[int, ...]) -> str:
    return f"{len(cpus)} processor{'s' if len(cpus) != 1 else ''} ({show_list(cpus)})"
