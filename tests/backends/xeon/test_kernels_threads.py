"""The kernels' threads: every item done once, from any caller, also after a fork."""

import os
import threading
from types import ModuleType

import torch
from torch import Tensor

from inferplane_xeon import kernels


def job() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(4, 300, generator=draw)
    weight = torch.randn(2000, 300, generator=draw)
    return x, kernels.pack_linear(weight)


def test_more_threads_than_cores(threads: ModuleType) -> None:
    x, packed = job()
    threads.set_threads(1)
    want = kernels.linear(x, packed, torch.empty(4, 2000))
    threads.set_threads(7)
    for _ in range(200):
        got = kernels.linear(x, packed, torch.full((4, 2000), float("nan")))
        assert torch.equal(got, want)


def test_callers_on_several_threads(threads: ModuleType) -> None:
    threads.set_threads(3)
    x, packed = job()
    want = kernels.linear(x, packed, torch.empty(4, 2000))
    wrong = []

    def call() -> None:
        for _ in range(100):
            if not torch.equal(kernels.linear(x, packed, torch.empty(4, 2000)), want):
                wrong.append(1)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


def test_a_forked_child_computes_alone(threads: ModuleType) -> None:
    threads.set_threads(3)
    x, packed = job()
    want = kernels.linear(x, packed, torch.empty(4, 2000))
    out = torch.empty(4, 2000)
    child = os.fork()
    if child == 0:
        kernels.linear(x, packed, out)
        os._exit(0 if bool((out == want).all()) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_thread_count_is_at_least_one(threads: ModuleType) -> None:
    assert threads.set_threads(0) == 1
    assert threads.set_threads(-5) == 1
    assert threads.set_threads(2) == 2
