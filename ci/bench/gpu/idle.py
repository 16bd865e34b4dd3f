"""Where the device's time goes between decode steps, from a profile of the whole loop."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from workloads import drain, random_prompts, submit

from inferplane.engine import EngineCore
from inferplane.messages import Output


@dataclass(frozen=True, slots=True)
class Profile:
    """`idle`: part of the span in which no kernel or copy ran; `kernels`: (name, calls a step,
    microseconds a step), the longest first."""

    idle: float
    step: float
    kernels: list[tuple[str, float, float]]


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
            core.step()
        core.loaded.device.synchronize()
    drain(core)
    return summarize(recorded, steps)


def summarize(recorded: Any, steps: int) -> Profile:
    """Gaps between the device's activities, the first and the last tenth left out."""
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in recorded.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and event.time_range.end > 0
    )
    cut = len(spans) // 10
    middle = spans[cut:-cut]
    begin, reached, idle = middle[0][0], middle[0][1], 0.0
    totals: dict[str, tuple[int, float]] = {}
    for start, end, name in middle:
        idle += max(0.0, start - reached)
        reached = max(reached, end)
        calls, spent = totals.get(name, (0, 0.0))
        totals[name] = (calls + 1, spent + end - start)
    share = steps * 0.8
    kernels = sorted(
        ((name, calls / share, spent / share) for name, (calls, spent) in totals.items()),
        key=lambda row: -row[2],
    )
    return Profile(idle / (reached - begin), (reached - begin) / share, kernels)
