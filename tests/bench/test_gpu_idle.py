"""The arithmetic of idle time, on a trace of known gaps."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

GPU = Path(__file__).parents[2] / "ci/bench/gpu"
DEVICE_TYPE = torch.autograd.DeviceType


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(GPU))
    return import_module("idle")


def event(name: str, start: float, end: float, id: int, on: str) -> Any:
    return SimpleNamespace(
        name=name,
        id=id,
        time_range=SimpleNamespace(start=start, end=end),
        device_type=getattr(DEVICE_TYPE, on),
    )


def step(number: int, start: float, late: float = 0.0, rest: float = 0.0) -> list[Any]:
    """One step on the device from `start` on, launched 150 us before, when the device does the step
    before the last. Idle: 6 + 6 + 2 between launches, 3 + late inside the graph of four kernels,
    which overlap; `rest` puts off the copy at the end."""
    first = 100 * number + 7
    launches = [
        ("cudaMemcpyAsync", first, [("HtoD", 0, 4)]),
        ("cuGraphLaunch", first + 1, [("derive", 10, 14)]),
        ("cudaGraphLaunch", first + 2, [
            ("a", 20, 40),
            ("b", 35, 50),  # starts before the end of a
            ("c", 41, 45),  # ends before the end of b
            ("d", 53 + late, 60 + late),
            ("a", 60 + late, 70 + late),
        ]),
        ("cudaMemcpyAsync", first + 3, [("DtoH", 72 + late + rest, 80 + late + rest)]),
    ]  # fmt: skip
    mark = start - 150
    made = [
        event("engine step", mark, mark + 50, 1, "CPU"),
        event("engine step", start, start + 80 + late, 1, "CUDA"),
    ]
    for at, (call, id, kernels) in enumerate(launches):
        made.append(event(call, mark + 10 * at, mark + 10 * at + 5, id, "CPU"))
        # an op of torch that has the same number, in the mark before
        made.append(event("aten::copy_", mark - 100, mark - 95, id, "CPU"))
        made += [event(n, start + a, start + b, id, "CUDA") for n, a, b in kernels]
    return made


def trace() -> list[Any]:
    """Steps of 100 us from 1,000 on, the third of which has 5 us more inside its graph; the first
    and the last one, which do not count, have long gaps."""
    made = step(0, 1000, rest=300)
    for number in range(1, 6):
        made += step(number, 1500 + 100 * number, 5 if number == 3 else 0, 17 * (number == 5))
    return list(reversed(made))


def test_idle_time_is_split_by_where_it_is(idle: Any) -> None:
    found = idle.summarize(trace())
    assert found.step == pytest.approx(100)
    assert found.idle == {
        "between steps": pytest.approx((4 * 20 - 5) / 400),
        "between launches": pytest.approx(4 * (6 + 6 + 2) / 400),
        "inside a graph": pytest.approx((4 * 3 + 5) / 400),
    }


def test_the_largest_gaps_have_the_names_of_both_sides(idle: Any) -> None:
    found = idle.summarize(trace())
    gaps = [(g.where, g.before, g.after, g.calls, g.spent, g.longest) for g in found.gaps]
    assert gaps == [
        ("between steps", "DtoH", "HtoD", 1, pytest.approx(75 / 4), pytest.approx(20)),
        ("between launches", "HtoD", "derive", 1, pytest.approx(6), pytest.approx(6)),
        ("between launches", "derive", "a", 1, pytest.approx(6), pytest.approx(6)),
        ("inside a graph", "b", "d", 1, pytest.approx(17 / 4), pytest.approx(8)),
        ("between launches", "a", "DtoH", 1, pytest.approx(2), pytest.approx(2)),
    ]
    shown = idle.lines(found, 4)
    assert len(shown) == 5
    assert "18.75 % between steps  14.00 % between launches  4.25 % inside a graph" in shown[0]
    assert "longest 8.00  inside a graph: b -> d" in shown[4]


def test_kernels_count_in_whole_steps(idle: Any) -> None:
    kernels = {name: (calls, spent) for name, calls, spent in idle.summarize(trace()).kernels}
    assert kernels == {
        "a": (2, pytest.approx(30)),
        "b": (1, pytest.approx(15)),
        "c": (1, pytest.approx(4)),
        "d": (1, pytest.approx(7)),
        "derive": (1, pytest.approx(4)),
        "HtoD": (1, pytest.approx(4)),
        "DtoH": (1, pytest.approx(8)),
    }


def test_a_kernel_whose_launch_is_missing_is_of_the_step_it_is_in(idle: Any) -> None:
    events = [e for e in trace() if not (e.name == "cudaMemcpyAsync" and e.id % 100 == 10)]
    assert idle.summarize(events).idle == pytest.approx(idle.summarize(trace()).idle)


def test_what_runs_through_a_boundary_leaves_no_gap_there(idle: Any) -> None:
    """A kernel of another stream, over the end of a step and the begin of the one after."""
    other = [event("cudaLaunchKernel", 1660, 1661, 9999, "CPU")]
    other.append(event("other", 1775, 1810, 9999, "CUDA"))
    plain, found = idle.summarize(trace()), idle.summarize(trace() + other)
    assert found.idle["between steps"] == pytest.approx(plain.idle["between steps"] - 20 / 400)
    assert found.idle["between launches"] == pytest.approx(
        plain.idle["between launches"] - 6 / 400  # until derive
    )


def test_a_profile_of_too_few_steps_is_refused(idle: Any) -> None:
    with pytest.raises(ValueError, match="of 2 steps on the device: record more than 2"):
        idle.summarize(step(0, 1000) + step(1, 1100))


def test_the_profiler_gives_what_is_read(idle: Any) -> None:
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(3):
            with record_function(idle.STEP):
                torch.ones(3) + 1
    events = recorded.events()
    assert sum(e.name == idle.STEP for e in events) == 3
    assert all(isinstance(e.id, int) for e in events)
    assert idle.activities(events) == []


def test_the_benchmark_reports_each_part(
    idle: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = import_module("engine")
    monkeypatch.setattr(engine, "decode_profile", lambda *_, **__: idle.summarize(trace()))
    reported: dict[str, float] = {}
    bench = SimpleNamespace(
        args=SimpleNamespace(idle_batch=[8], kernels=["plain"], gaps=2),
        core=None,
        report=lambda case, value, unit: reported.update({case: value}),
    )
    engine.idle(bench)
    assert reported["idle/bs8/plain"] == pytest.approx(18.75 + 14 + 4.25)
    assert reported["idle/bs8/plain/between-steps"] == pytest.approx(18.75)
    assert reported["idle/bs8/plain/between-launches"] == pytest.approx(14)
    assert reported["idle/bs8/plain/inside-a-graph"] == pytest.approx(4.25)
    shown = capsys.readouterr().out
    assert shown.count("DtoH -> HtoD") == 4  # of each way to sample
    assert shown.count("calls  b") == 1  # kernels are printed for plain alone
