"""Steps in which a sequence computes several tokens may have an attention of their own."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from inferplane.explain import op_choices
from inferplane.hw import Bound, BuildContext, ForwardBatch, OpImpl, Support, impl
from inferplane.hw.device import Device
from inferplane.hw.op import Capture
from inferplane.hw.ops import TABLE
from inferplane.plugins import Plugins
from inferplane.testing.null import SETTINGS, NullBackend, NullDevice
from inferplane.testing.workload import requests, serve, tiny_engine
from tests.devices.engines import expected
from tests.devices.test_null_engine import assert_same


@dataclass
class Counting:
    """The reference, with the largest number of a sequence's tokens in each call and plan."""

    name: str
    priority: int
    extend: int | None = None
    capture: Capture = "yes"
    called: Counter[int] = field(default_factory=Counter)
    planned: Counter[int] = field(default_factory=Counter)

    def supports(self, spec: Any, device: Device) -> Support:
        return Support(
            priority=self.priority, extend=self.extend, invariance="batch", capture=self.capture
        )

    def build(self, spec: Any, ctx: BuildContext) -> Bound:
        inner = TABLE["attention.paged"].reference.build(spec, ctx).run

        def run(q: torch.Tensor, batch: ForwardBatch, sinks: Any = None) -> torch.Tensor:
            self.called[batch.max_q] += 1
            out: torch.Tensor = inner(q, batch, sinks)
            return out

        def plan(batch: ForwardBatch) -> None:
            self.planned[batch.max_q] += 1

        return Bound(run=run, plan=plan)


class Backend(NullBackend):
    def __init__(self, settings: str, capture: Capture) -> None:
        super().__init__(SETTINGS[settings])
        self.one = Counting("acme.one", 60)
        self.several = Counting("acme.several", 40, 70, capture)

    @impl
    def op_impls(self, device: NullDevice) -> Iterable[tuple[str, OpImpl]]:
        return [("attention.paged", self.one), ("attention.paged", self.several)]


@pytest.mark.parametrize("capture", ["yes", "no"])
@pytest.mark.parametrize("settings", ["dynamic", "bucketed-mixed"])
@pytest.mark.parametrize("model", ["llama", "gemma3"])
def test_each_has_its_steps(model: str, settings: str, capture: Capture) -> None:
    plugins, backend = Plugins(), Backend(settings, capture)
    plugins.register("null", backend)
    engine = tiny_engine(model, plugins, "null")
    answers, _ = serve(engine, requests())
    assert_same(answers, expected(model))
    for counted in (backend.one.called, backend.one.planned):
        assert set(counted) == {1}
    for counted in (backend.several.called, backend.several.planned):
        assert counted and 1 not in counted


def test_deterministic_mode_has_one_for_all_steps() -> None:
    plugins, backend = Plugins(), Backend("dynamic", "yes")
    plugins.register("null", backend)
    engine = tiny_engine("llama", plugins, "null", enable_deterministic_inference=True)
    serve(engine, requests())
    assert {1} < set(backend.one.called) and not backend.several.called


def test_explain_names_both() -> None:
    plugins = Plugins()
    plugins.register("null", Backend("dynamic", "yes"))
    engine = tiny_engine("llama", plugins, "null")
    choices = op_choices(engine.loaded.resolver.decisions.values())
    (found,) = [choice for choice in choices if choice.op == "attention.paged"]
    assert found.chosen == "acme.one"
    assert found.notes == "steps of several tokens a sequence by acme.several"
    assert [c.name for c in found.candidates if c.verdict == "chosen"] == [
        "acme.one",
        "acme.several",
    ]
