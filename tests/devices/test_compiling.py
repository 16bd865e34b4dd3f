"""Kernels that are compiled when they are first called: a start compiles them before it records."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from inferplane.engine import EngineCore
from inferplane.hw import Bound, BuildContext, Compiler, OpImpl, Support, impl
from inferplane.hw.ops import TABLE
from inferplane.plugins import Plugins
from inferplane.runner.runner import Paced
from inferplane.testing.null import SETTINGS, NullBackend, NullDevice
from inferplane.testing.workload import requests, serve, tiny_engine
from tests.devices.engines import expected
from tests.devices.test_null_engine import assert_same


@dataclass
class Lazy:
    """A compiler, and an op whose kernel is another one for each number of rows."""

    name: str = "lazy.glu"
    compiled: set[int] = field(default_factory=set)
    late: list[int] = field(default_factory=list)
    noted: set[int] | None = None
    given_up: int = 0
    broken: bool = False

    @contextmanager
    def collect(self) -> Iterator[None]:
        self.noted = set()
        try:
            yield
        except RuntimeError:
            self.given_up += 1
            raise

    def finish(self, report: Callable[[int, int], None]) -> None:
        assert self.noted is not None
        for done, rows in enumerate(sorted(self.noted), 1):
            self.compiled.add(rows)
            report(done, len(self.noted))
        self.noted = None

    def supports(self, spec: Any, device: Any) -> Support:
        return Support(priority=90, invariance="batch")

    def build(self, spec: Any, ctx: BuildContext) -> Bound:
        inner = TABLE["activation.glu"].reference.build(spec, ctx).run

        def run(x: torch.Tensor) -> torch.Tensor:
            rows = len(x)
            if rows not in self.compiled:
                if self.broken:
                    raise RuntimeError("lazy.glu is broken")
                if self.noted is not None:
                    self.noted.add(rows)
                    return torch.full_like(inner(x), torch.nan)
                self.late.append(rows)
                self.compiled.add(rows)
            out: torch.Tensor = inner(x)
            return out

        return Bound(run=run)


class LazyBackend(NullBackend):
    def __init__(self, name: str, lazy: Lazy) -> None:
        super().__init__(SETTINGS[name])
        self.lazy = lazy

    @impl
    def op_impls(self, device: NullDevice) -> Iterable[tuple[str, OpImpl]]:
        return [*super().op_impls(device), ("activation.glu", self.lazy)]

    @impl
    def compiler(self, device: NullDevice) -> Compiler:
        return self.lazy


def start(name: str, lazy: Lazy) -> EngineCore:
    plugins = Plugins()
    plugins.register("null", LazyBackend(name, lazy))
    return tiny_engine("llama", plugins, "null")


@pytest.mark.parametrize("name", ["bucketed-mixed", "bucketed-recorded"])
def test_what_is_recorded_is_compiled_before(name: str) -> None:
    lazy = Lazy()
    engine = start(name, lazy)
    assert lazy.compiled >= {4, 16, *(tokens for tokens, _ in SETTINGS[name].mixed)}
    assert lazy.late == []
    answers, _ = serve(engine, requests())
    assert_same(answers, expected("llama"))


def test_rehearsals_are_not_recordings() -> None:
    """All that was computed without a kernel is thrown away, the tables' contents included."""
    engine = start("bucketed-mixed", Lazy())
    recordings = engine.loaded.runner._recordings
    assert recordings is not None
    for known in recordings._recorded.values():
        assert known.logits is None or bool(known.logits.isfinite().all())


def test_compilations_are_given_up_with_the_start() -> None:
    lazy = Lazy(broken=True)
    with pytest.raises(RuntimeError, match=r"lazy\.glu is broken"):
        start("bucketed-mixed", lazy)
    assert lazy.given_up == 1


def test_a_device_without_buckets_compiles_when_it_must() -> None:
    lazy = Lazy()
    engine = start("dynamic", lazy)
    serve(engine, requests()[:1])
    assert lazy.noted is None and lazy.late


def test_progress_comes_once_a_second() -> None:
    times, lines = iter([0.0, 0.2, 0.9, 1.1, 1.5, 2.0, 2.2]), list[str]()
    paced = Paced(lines.append, lambda: next(times))
    for index in range(6):
        paced(str(index))
    assert lines == ["2", "5"]
