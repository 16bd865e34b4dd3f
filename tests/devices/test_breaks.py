"""Attention that cannot be recorded is called between the pieces of recorded steps."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from inferplane.engine import EngineCore
from inferplane.hw import Bound, BuildContext, ForwardBatch, OpImpl, Reject, Support, impl
from inferplane.hw.device import Device
from inferplane.hw.ops import TABLE
from inferplane.plugins import Plugins
from inferplane.runner.breaks import Breaks
from inferplane.testing.null import SETTINGS, NullBackend, NullDevice
from inferplane.testing.recording import CaptureError, RecordingGraphs
from inferplane.testing.workload import requests, serve, tiny_engine
from tests.devices.engines import expected
from tests.devices.test_null_engine import assert_same


@dataclass
class HostAttention:
    """Reads the lengths on the host in every call, which no recording allows."""

    name: str = "host.attention"
    calls: int = 0

    def supports(self, spec: Any, device: Device) -> Support | Reject:
        return Support(priority=90, invariance="batch", capture="no")

    def build(self, spec: Any, ctx: BuildContext) -> Bound:
        inner = TABLE["attention.paged"].reference.build(spec, ctx).run

        def run(q: torch.Tensor, batch: ForwardBatch, sinks: Any = None) -> torch.Tensor:
            self.calls += 1
            lengths = batch.seq_len.tolist()
            assert len(lengths) == len(batch.host_seq_len)
            if all(batch.host_seq_len):
                assert lengths == batch.host_seq_len
            out: torch.Tensor = inner(q, batch, sinks)
            return out

        return Bound(run=run)


class HostBackend(NullBackend):
    def __init__(self, name: str) -> None:
        super().__init__(SETTINGS[name])
        self.attention = HostAttention()

    @impl
    def op_impls(self, device: NullDevice) -> Iterable[tuple[str, OpImpl]]:
        return [("attention.paged", self.attention)]


def start(model: str, name: str, **config: Any) -> tuple[EngineCore, HostBackend]:
    plugins, backend = Plugins(), HostBackend(name)
    plugins.register("null", backend)
    return tiny_engine(model, plugins, "null", **config), backend


@pytest.mark.parametrize("model", ["llama", "gemma3"])
@pytest.mark.parametrize("name", ["bucketed-mixed", "static-recorded"])
def test_attention_outside_changes_no_answer(model: str, name: str) -> None:
    engine, backend = start(model, name)
    recorded = backend.attention.calls
    answers, stats = serve(engine, requests())
    assert_same(answers, expected(model))
    layers = len(engine.loaded.handles)
    assert backend.attention.calls - recorded >= layers * stats.steps
    broken = [sum(e.result is None for e in tape.entries) for tape in backend.recorder.tapes]
    assert layers in broken


def test_eager_and_broken_steps_have_the_same_bits() -> None:
    runs = []
    for config in ({}, {"disable_graphs": True}):
        engine, backend = start("llama", "bucketed-mixed", **config)
        runs.append(serve(engine, requests())[0])
        assert bool(backend.recorder.tapes) != bool(config)
    assert runs[0] == runs[1]


def test_layers_and_steps_share_the_places() -> None:
    engine, _ = start("llama", "bucketed-mixed")
    breaks = engine.loaded.runner._recordings._breaks  # type: ignore[union-attr]
    assert breaks is not None
    names = sorted(str(key[0]) for key in breaks._places)
    assert names == ["0", "result"]
    assert {len(held) for held in breaks._places.values()} == {40}  # the largest bucket


@pytest.mark.parametrize("name", ["static-functional"])
def test_functional_devices_leave_it_out(name: str) -> None:
    engine, backend = start("llama", name)
    chosen = {d.op: d.chosen.name for d in engine.loaded.resolver.decisions.values()}
    assert chosen["attention.paged"] == "reference"
    assert backend.attention.calls == 0


def test_without_the_break_it_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the recorder barks at attention that is not left out."""
    monkeypatch.setattr(Breaks, "wrap", lambda self, run: run)
    with pytest.raises(CaptureError, match="tolist waits for the device"):
        start("llama", "bucketed-mixed")


def test_a_result_outlives_the_next_layer() -> None:
    graphs = RecordingGraphs()
    breaks = Breaks(graphs)
    factor = torch.ones(2)
    scaled = breaks.wrap(lambda x, by: x * by.tolist()[0])
    source = torch.ones(2)

    def both() -> torch.Tensor:
        first = scaled(source, factor)
        return torch.stack([first, scaled(first + 1, factor)])

    with breaks.open():
        graph = graphs.capture(both)
    for value, wanted in ((1.0, [1.0, 2.0]), (3.0, [3.0, 12.0])):
        factor.fill_(value)
        assert graph.replay(None)[:, 0].tolist() == wanted  # type: ignore[arg-type]
    assert scaled(source, factor).tolist() == [3.0, 3.0]


def test_an_error_outside_ends_the_recording() -> None:
    graphs = RecordingGraphs()

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        graphs.capture(lambda: graphs.outside(fail))
    assert torch.ones(2).tolist() == [1.0, 1.0]  # nothing is recorded any more
    assert graphs.tapes == []
