"""The time of calls as a recorded step has it: many of them in one graph, replayed."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]


def replay_seconds(
    calls: Sequence[Call], torch_device: str, replays: int = 5, least: float = 0.0
) -> float:
    """Median time of one of `calls`, which are recorded one after the other: of at least `replays`
    replays and of `least` seconds. The CPU, which has no graphs, makes the calls themselves."""
    for call in calls[:2]:
        call()
    if torch.device(torch_device).type != "cuda":
        return _median(lambda: _by_clock(calls), replays, least) / len(calls)
    with torch.cuda.device(torch_device):
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # relaxed: libraries may load kernels while the stream is recorded
        with torch.cuda.graph(graph, capture_error_mode="relaxed"):
            for call in calls:
                call()
        graph.replay()
        torch.cuda.synchronize()
        return _median(lambda: _by_events(graph), replays, least) / len(calls)


def _by_clock(calls: Sequence[Call]) -> float:
    begin = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - begin


def _by_events(graph: torch.cuda.CUDAGraph) -> float:
    """Of the second of two replays, which the host launches while the device does the first."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _median(once: Callable[[], float], replays: int, least: float) -> float:
    times: list[float] = []
    end = time.perf_counter() + least
    while len(times) < replays or time.perf_counter() < end:
        times.append(once())
    return statistics.median(times)
