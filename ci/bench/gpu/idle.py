"""Where the device's time goes between decode steps, from a profile of the whole loop.

The host marks each step, and whatever is launched inside of a mark is that step's. All kernels of
one launch of a graph share a correlation id with it; others have each their own. So a gap is

  between steps     after the last kernel or copy of a step: the scheduler's, and of who waits
  between launches  inside a step, before the next graph, kernel or copy: the runner's
  inside a graph    between its kernels: the device's and the kernels' own

A kernel may start before the one before it ends, and end before that one does: what runs until
last is what a gap comes after.
"""

import random
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from workloads import drain, random_prompts, submit

from inferplane.engine import EngineCore
from inferplane.messages import Output

STEP = "engine step"
LAUNCHES = ("cu", "hip")
"""what the names of a driver's or runtime's calls start with"""
BETWEEN_STEPS, BETWEEN_LAUNCHES, INSIDE_GRAPH = WHERE = (
    "between steps",
    "between launches",
    "inside a graph",
)


class Activity(NamedTuple):
    """A kernel or copy on the device, in microseconds. `launch`: the correlation id; `step`: the
    number of the mark that it was launched in, -1 before the first one."""

    start: float
    end: float
    name: str
    launch: int
    step: int


@dataclass(frozen=True, slots=True)
class Gap:
    """All gaps between two kernels of these names: how many a step, their microseconds a step, and
    those of the longest."""

    where: str
    before: str
    after: str
    calls: float
    spent: float
    longest: float


@dataclass(frozen=True, slots=True)
class Profile:
    """`idle`: parts of the span in which no kernel or copy ran, by where; `step`: microseconds;
    `kernels`: (name, calls a step, microseconds a step), the longest first, as `gaps` are."""

    idle: dict[str, float]
    step: float
    kernels: list[tuple[str, float, float]]
    gaps: list[Gap]


def decode_profile(
    core: EngineCore, batch: int, context: int, steps: int = 24, **params: Any
) -> Profile:
    """Profile `steps` decode steps of a batch in the middle of its output."""
    submit(
        core,
        random_prompts(random.Random(batch), batch, context),
        [steps + 40] * batch,
        **params,
    )
    started: set[str] = set()
    while len(started) < batch:
        started.update(out.request_id for out in core.step() if isinstance(out, Output))
    for _ in range(10):
        core.step()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            with record_function(STEP):
                core.step()
        core.loaded.device.synchronize()
    drain(core)
    return summarize(recorded.events())


def activities(events: Iterable[Any]) -> list[Activity]:
    """In the order of their starts. The profile has the marks a second time, as the device's."""
    events = [event for event in events if event.time_range.end > 0]
    on_device = torch.autograd.DeviceType.CUDA
    marks = sorted(
        event.time_range.start
        for event in events
        if event.name == STEP and event.device_type != on_device
    )
    launched = {  # ops of torch have numbers of their own, which may be the same
        event.id: event.time_range.start
        for event in events
        if event.device_type != on_device and event.name.startswith(LAUNCHES)
    }
    found: list[Activity] = []
    device = (e for e in events if e.device_type == on_device and e.name != STEP)
    step = -1
    for event in sorted(device, key=lambda e: (e.time_range.start, e.time_range.end)):
        if event.id in launched:  # else it is taken for a part of the same step
            step = bisect_right(marks, launched[event.id]) - 1
        span = event.time_range
        found.append(Activity(span.start, span.end, event.name, event.id, step))
    return found


def summarize(events: Iterable[Any]) -> Profile:
    """Whole steps, each with the gap after it; the first and the last tenth are left out."""
    found = activities(events)
    steps = sorted({each.step for each in found if each.step >= 0})
    cut = max(1, len(steps) // 10)
    kept = len(steps) - 2 * cut
    if kept < 1:
        raise ValueError(f"a profile of {len(steps)} steps on the device: record more than 2")
    begin = min(each.start for each in found if each.step == steps[cut])
    stop = min(each.start for each in found if each.step == steps[-cut])
    last: Activity | None = None  # of those that have started, what runs until last
    gaps: dict[tuple[str, str, str], list[float]] = {}
    totals: dict[str, list[float]] = {}
    for each in found:
        if each.start > stop:
            break
        if last is not None and each.start > max(last.end, begin):
            key = (_where(last, each), last.name, each.name)
            gaps.setdefault(key, []).append(each.start - max(last.end, begin))
        if begin <= each.start < stop:
            totals.setdefault(each.name, []).append(each.end - each.start)
        if last is None or each.end > last.end:
            last = each
    return Profile(
        idle={
            where: sum(sum(times) for key, times in gaps.items() if key[0] == where)
            / (stop - begin)
            for where in WHERE
        },
        step=(stop - begin) / kept,
        kernels=sorted(
            ((name, len(times) / kept, sum(times) / kept) for name, times in totals.items()),
            key=lambda row: -row[2],
        ),
        gaps=sorted(
            (Gap(*key, len(t) / kept, sum(t) / kept, max(t)) for key, t in gaps.items()),
            key=lambda gap: -gap.spent,
        ),
    )


def _where(before: Activity, after: Activity) -> str:
    if before.step != after.step:
        return BETWEEN_STEPS
    return INSIDE_GRAPH if before.launch == after.launch else BETWEEN_LAUNCHES


def lines(made: Profile, gaps: int) -> list[str]:
    """The idle time by where, and the largest gaps."""
    shown = "  ".join(f"{100 * part:.2f} % {where}" for where, part in made.idle.items())
    return [f"  {made.step:.0f} us a step, idle: {shown}"] + [
        f"  {gap.spent:9.2f} us {gap.calls:7.1f} gaps, longest {gap.longest:.2f}  {gap.where}: "
        f"{gap.before[:60]} -> {gap.after[:60]}"
        for gap in made.gaps[:gaps]
    ]
