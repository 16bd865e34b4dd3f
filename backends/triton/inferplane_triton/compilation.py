"""Kernels compiled beside each other, ahead of the first step.

Triton compiles a kernel when it is first launched, one after the other: half a second each, with a
launcher in C that is compiled, too. Here launches of kernels that are not compiled only name them,
and threads have them compiled, each by a process of its own, and load what that leaves in the
cache.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

from inferplane.hw import Device
from inferplane_triton.process import Process, settle

MOST_THREADS = 32

log = logging.getLogger(__name__)


class Missing(Exception):
    """A kernel is not in Triton's cache."""


def probing(wanted: threading.local) -> Any:
    """Triton's cache, but raises Missing in threads that say so in `wanted.probe`."""
    from triton import knobs
    from triton.runtime.cache import FileCacheManager

    manager: Any = knobs.cache.manager_class or FileCacheManager

    class Probing(manager):  # type: ignore[misc]
        def get_group(self, filename: str) -> Any:
            found = super().get_group(filename)
            if found is None and getattr(wanted, "probe", False):
                raise Missing
            return found

    return Probing


def can_collect() -> bool:
    """Triton tells of a kernel before it compiles it (from 3.4 on), and can compile by that."""
    from triton.runtime.jit import JITFunction

    try:
        from triton import knobs
    except ImportError:
        return False
    return hasattr(knobs.runtime, "jit_cache_hook") and hasattr(JITFunction, "preload")


class Compiler:
    """Implements hw.Compiler for every kernel of Triton in this process."""

    def __init__(self, device: Device) -> None:
        self._device = device.info.torch_device
        self._pool: ThreadPoolExecutor | None = None
        self._own = threading.local()
        self._processes: list[Process] = []
        self._kernels: dict[tuple[str, str], Future[Any]] = {}

    @contextmanager
    def collect(self) -> Iterator[None]:
        from triton import knobs

        caller, before = threading.get_ident(), knobs.runtime.jit_cache_hook
        knobs.cache.manager_class = probing(self._own)
        count = min(MOST_THREADS, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(count, "compile", initializer=self._enter)

        def note(*, key: str, fn: Any, **others: Any) -> bool:
            """True: Triton leaves it at that and does not launch."""
            if threading.get_ident() != caller:
                return False
            kernel = fn.jit_function
            name = (f"{fn.module}.{fn.name}", key)
            if name not in self._kernels:
                assert self._pool is not None
                data = others["compile"]["specialization_data"]
                settle(kernel)
                self._kernels[name] = self._pool.submit(self._compile, kernel, fn, data)
            return True

        knobs.runtime.jit_cache_hook = note
        try:
            yield
        except BaseException:
            self._end()
            raise
        finally:
            knobs.runtime.jit_cache_hook = before

    def finish(self, report: Callable[[int, int], None]) -> None:
        assert self._pool is not None
        try:
            ready = [self._pool.submit(_load, kernel) for kernel in self._kernels.values()]
            for done, _ in enumerate(as_completed(ready), 1):
                report(done, len(ready))
        finally:
            self._end()

    def _enter(self) -> None:
        """Devices are chosen by thread."""
        import torch

        torch.get_device_module(self._device).set_device(self._device)

    def _compile(self, kernel: Any, info: Any, data: str) -> Any:
        """Where the thread's process fails, here."""
        from triton.runtime import driver

        self._own.probe = True
        try:
            return kernel.preload(data)
        except Missing:
            pass
        finally:
            self._own.probe = False
        target = driver.active.get_current_target()
        try:
            if not hasattr(self._own, "process"):
                self._own.process = Process()
                self._processes.append(self._own.process)
            problem = self._own.process.compile(target, info.module, info.name, data)
        except (OSError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            log.debug("%s was not compiled in a process: %s", info.name, problem)
        return kernel.preload(data)

    def _end(self) -> None:
        from triton import knobs

        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.close()
        del knobs.cache.manager_class
        self._pool, self._kernels, self._processes = None, {}, []
        self._own = threading.local()


def _load(compiled: "Future[Any]") -> None:
    """Give the device what was compiled. That is not done while the caller records."""
    try:
        _ = compiled.result().run  # the launcher, which is made when it is first asked for
    except Exception as error:  # whatever a compiler can fail with
        log.debug("a kernel was not compiled ahead, its first launch says why: %s", error)
