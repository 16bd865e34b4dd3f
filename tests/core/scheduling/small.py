"""A small scheduler, requests for it, and a device that always answers the same token."""

from typing import Any

from inferplane.hw.batch import StepPlan, StepResult
from inferplane.messages import Output, Submit
from inferplane.sampling_params import SamplingParams
from inferplane.scheduling.pages import KVGroupPages
from inferplane.scheduling.scheduler import Scheduler
from inferplane.testing.invariants import verify_scheduler


def make(**changes: Any) -> Scheduler:
    settings: dict[str, Any] = {
        "page_size": 4,
        "groups": [KVGroupPages("full", 101)],
        "max_running": 8,
        "max_queue": 8,
        "max_batch_tokens": 64,
        "max_model_len": 200,
        "clock": lambda: 0.0,
    }
    return Scheduler(**settings | changes)


def ask(request_id: str, prompt: list[int], max_tokens: int = 4, **changes: Any) -> Submit:
    fields: dict[str, Any] = {"params": SamplingParams(), "stop_ids": [], "seed": 7}
    return Submit(request_id=request_id, prompt=prompt, max_tokens=max_tokens, **fields | changes)


def plan_of(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.schedule()
    assert plan is not None
    return plan


def answer(plan: StepPlan, token: int = 99) -> StepResult:
    return StepResult(
        tokens=[token] * len(plan.sample),
        logprobs=[
            None if top < 0 else (-1.0, 1, [(token, -1.0)][:top], []) for top in plan.logprobs
        ],
        prompt_logprobs=[[(-float(t), 1, [], []) for t in p.targets] for p in plan.prompt_logprobs],
    )


def drain(scheduler: Scheduler) -> tuple[list[StepPlan], list[Output]]:
    plans: list[StepPlan] = []
    outputs: list[Output] = []
    while scheduler.has_work:
        plans.append(plan_of(scheduler))
        outputs += scheduler.finish(plans[-1], answer(plans[-1]))
        verify_scheduler(scheduler)
    return plans, outputs
