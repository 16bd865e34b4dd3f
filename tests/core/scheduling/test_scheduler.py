"""The scheduler's promises, one by one; the simulation covers their combinations."""

import subprocess
import sys
from typing import Any

import pytest

from inferplane.hw.batch import FROM_DEVICE
from inferplane.messages import TokenLogprobs
from inferplane.sampling_params import SamplingParams
from inferplane.scheduling.pages import KVGroupPages
from inferplane.scheduling.prefix_cache import PrefixCache
from inferplane.testing.invariants import verify_idle
from tests.core.scheduling.small import answer, ask, drain, make, plan_of


def test_a_request_from_prompt_to_last_token() -> None:
    scheduler = make(max_batch_tokens=3)
    scheduler.submit(ask("a", [1, 2, 3, 4, 5], max_tokens=3))
    plans, outputs = drain(scheduler)
    assert [plan.tokens for plan in plans] == [[1, 2, 3], [4, 5], [FROM_DEVICE], [FROM_DEVICE]]
    assert [plan.starts for plan in plans] == [[0], [3], [5], [6]]
    assert [plan.sample for plan in plans] == [[], [0], [0], [0]]
    assert [plan.num_decode for plan in plans] == [0, 0, 1, 1]
    assert [len(plan.init) for plan in plans] == [1, 0, 0, 0]
    assert [output.tokens for output in outputs] == [[99], [99], [99]]
    assert [output.finish_reason for output in outputs] == [None, None, "length"]
    verify_idle(scheduler)


def test_a_common_prefix_is_computed_once_though_all_arrive_together() -> None:
    scheduler = make(
        page_size=16,
        groups=[KVGroupPages("full", 1000)],
        max_running=64,
        max_queue=0,
        max_batch_tokens=4096,
        max_model_len=2000,
    )
    common = list(range(1500))
    for index in range(64):
        scheduler.submit(ask(str(index), [*common, 5000 + index], max_tokens=1))
    plan = plan_of(scheduler)
    assert len(plan.rows) == 64
    assert sum(plan.q_lens) == 1501 + 63 * (1501 - 1488)
    outputs = scheduler.finish(plan, answer(plan))
    assert sorted({output.cached_tokens for output in outputs}) == [0, 1488]


def test_without_the_prefix_cache_every_prompt_is_computed() -> None:
    scheduler = make(prefix_cache=False)
    for name in "ab":
        scheduler.submit(ask(name, list(range(20)), max_tokens=1))
    plans, outputs = drain(scheduler)
    assert sum(plans[0].q_lens) == 40
    assert {output.cached_tokens for output in outputs} == {0}
    assert scheduler.stats().pages_cached == 0


def test_a_follow_up_finds_prompt_and_answer() -> None:
    scheduler = make()
    scheduler.submit(ask("a", list(range(6)), max_tokens=7))
    drain(scheduler)
    scheduler.submit(ask("b", [*range(6), *[99] * 7, 1], max_tokens=1))
    assert drain(scheduler)[1][0].cached_tokens == 12


def test_decodes_come_first_in_the_plan_and_prefill_fills_the_budget() -> None:
    scheduler = make(max_batch_tokens=10)
    scheduler.submit(ask("long", list(range(100, 130)), max_tokens=2, priority=1))
    scheduler.submit(ask("a", [1], max_tokens=9))
    plan = plan_of(scheduler)
    assert (plan.q_lens, plan.sample) == ([1, 9], [0])
    scheduler.submit(ask("b", [2], max_tokens=9, priority=-1))
    plan = plan_of(scheduler)
    assert (plan.num_decode, plan.q_lens, plan.sample) == (1, [1, 9], [0])
    assert plan.tokens[:2] == [FROM_DEVICE, 109]


def test_steps_in_flight_never_go_beyond_max_tokens() -> None:
    scheduler = make()
    scheduler.submit(ask("a", [1, 2], max_tokens=2))
    first, second = plan_of(scheduler), plan_of(scheduler)
    assert scheduler.schedule() is None
    assert scheduler.has_work
    assert scheduler.finish(first, answer(first))[0].finish_reason is None
    assert scheduler.schedule() is None
    assert scheduler.finish(second, answer(second))[0].finish_reason == "length"
    verify_idle(scheduler)


def test_a_token_in_flight_is_dropped_when_the_request_has_stopped() -> None:
    scheduler = make()
    scheduler.submit(ask("a", [1, 2], max_tokens=9, stop_ids=[99]))
    first, second = plan_of(scheduler), plan_of(scheduler)
    (output,) = scheduler.finish(first, answer(first))
    assert (output.tokens, output.finish_reason, output.stop_token) == ([99], "stop", 99)
    assert scheduler.finish(second, answer(second)) == []
    verify_idle(scheduler)


def test_max_model_len_ends_a_request() -> None:
    scheduler = make(max_model_len=8)
    scheduler.submit(ask("a", [1, 2, 3, 4, 5], max_tokens=99))
    outputs = drain(scheduler)[1]
    assert [output.finish_reason for output in outputs] == [None, None, "length"]


def test_min_tokens_keeps_stop_ids_from_counting() -> None:
    scheduler = make()
    params = SamplingParams(min_tokens=3)
    scheduler.submit(ask("a", [1], max_tokens=9, stop_ids=[99], params=params))
    plans, outputs = drain(scheduler)
    assert plans[0].init[0].min_len == 1 + 3
    assert [output.finish_reason for output in outputs] == [None, None, "stop"]


def test_logprobs_belong_to_their_tokens() -> None:
    scheduler = make(max_batch_tokens=3)
    params = SamplingParams(logprobs=1, prompt_logprobs=0)
    for name in "ab":  # the second could find its prompt in the cache
        scheduler.submit(ask(name, [11, 12, 13, 14, 15, 16], max_tokens=2, params=params))
    outputs = [output for output in drain(scheduler)[1] if output.request_id == "b"]
    assert outputs[0].cached_tokens == 0
    assert outputs[0].prompt_logprobs == [
        None,
        *(TokenLogprobs(token, -float(token), 1, []) for token in range(12, 17)),
    ]
    assert outputs[1].prompt_logprobs is None
    assert [o.logprobs for o in outputs] == [[TokenLogprobs(99, -1.0, 1, [(99, -1.0)])]] * 2


def test_prompt_logprobs_from_a_start_leave_the_rest_to_the_cache() -> None:
    scheduler = make(max_batch_tokens=3)
    prompt = list(range(11, 24))  # 13 tokens
    scheduler.submit(ask("a", prompt, max_tokens=1))
    drain(scheduler)
    params = SamplingParams(prompt_logprobs=0, prompt_logprobs_start=10)
    scheduler.submit(ask("b", prompt, max_tokens=1, params=params))
    plans, (output,) = drain(scheduler)
    assert output.cached_tokens == 8  # pages of 4, and token 9 must be computed
    assert [(p.first, p.targets) for plan in plans for p in plan.prompt_logprobs] == [
        (1, [21, 22]),
        (0, [23]),
    ]
    assert output.prompt_logprobs == [
        *[None] * 10,
        *(TokenLogprobs(token, -float(token), 1, []) for token in (21, 22, 23)),
    ]


def test_penalties_get_the_tokens_so_far() -> None:
    scheduler = make()
    scheduler.submit(ask("a", [1, 2], params=SamplingParams(presence_penalty=1.0)))
    scheduler.submit(ask("b", [1, 2]))
    assert [init.tokens for init in plan_of(scheduler).init] == [[1, 2], []]


def test_pages_behind_the_window_are_given_back() -> None:
    groups = [KVGroupPages("full", 60), KVGroupPages("local", 6, window=8)]
    scheduler = make(groups=groups, max_batch_tokens=8)
    scheduler.submit(ask("a", list(range(60)), max_tokens=40))
    plans, outputs = drain(scheduler)
    assert outputs[-1].finish_reason == "length"
    cleared = [w.column for plan in plans for w in plan.pages if w.group == 1 and w.page == 0]
    assert cleared == list(range((98 - 8 + 1) // 4))
    verify_idle(scheduler)


def test_a_window_group_needs_only_the_end_of_the_prefix() -> None:
    groups = [KVGroupPages("full", 60), KVGroupPages("local", 7, window=5)]
    scheduler = make(groups=groups)
    scheduler.submit(ask("a", list(range(40)), max_tokens=1))
    drain(scheduler)
    scheduler.submit(ask("b", [*range(40), 77], max_tokens=1))
    plan = plan_of(scheduler)
    assert plan.starts == [40]
    known = {(w.group, w.column): w.page for w in plan.pages}
    assert [known[1, column] > 0 for column in range(11)] == [False] * 9 + [True] * 2
    assert all(known[0, column] for column in range(11))


def test_when_pages_run_out_the_most_junior_is_retracted_and_resumes() -> None:
    scheduler = make(groups=[KVGroupPages("full", 9)])
    for name in "abc":
        scheduler.submit(ask(name, [ord(name)] * 6, max_tokens=18))
    _, outputs = drain(scheduler)
    assert scheduler.stats().retractions > 0
    ends = [output.request_id for output in outputs if output.finish_reason]
    assert ends == ["a", "b", "c"]
    for name in "abc":
        mine = [output for output in outputs if output.request_id == name]
        assert sum(len(output.tokens) for output in mine) == 18
        assert len({output.cached_tokens for output in mine}) == 1
    verify_idle(scheduler)


def test_overload_costs_few_retractions() -> None:
    scheduler = make(
        groups=[KVGroupPages("full", 150)], max_running=64, max_queue=200, max_model_len=500
    )
    lengths = {}
    for index in range(150):
        lengths[str(index)] = 20 + index * 37 % 200
        scheduler.submit(
            ask(str(index), [index, *range(index % 40)], max_tokens=lengths[str(index)])
        )
    plans, outputs = drain(scheduler)
    stats = scheduler.stats()
    assert len(outputs) == sum(lengths.values())
    assert 0 < stats.retractions < 0.01 * stats.output_tokens
    computed = sum(sum(plan.q_lens) for plan in plans)
    assert computed < 1.25 * (stats.prompt_tokens + stats.output_tokens)


def test_a_head_that_does_not_fit_is_not_overtaken_and_not_matched_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []
    match = PrefixCache.match

    def counting(self: PrefixCache, namespace: str, tokens: Any, limit: int) -> Any:
        looks.append(limit)
        return match(self, namespace, tokens, limit)

    monkeypatch.setattr(PrefixCache, "match", counting)
    scheduler = make(groups=[KVGroupPages("full", 30)])
    scheduler.submit(ask("a", [1] * 40, max_tokens=60))
    scheduler.submit(ask("big", [2] * 100, max_tokens=8))
    scheduler.submit(ask("small", [3], max_tokens=1))
    _, outputs = drain(scheduler)
    ends = [output.request_id for output in outputs if output.finish_reason]
    assert ends.index("small") > ends.index("a")
    assert len(looks) < 20


def test_priorities_then_arrival() -> None:
    scheduler = make(max_running=1, max_queue=9)
    for name, priority in [("a", 1), ("b", 0), ("c", 0), ("d", -1)]:
        scheduler.submit(ask(name, [1], max_tokens=1, priority=priority))
    assert [output.request_id for output in drain(scheduler)[1]] == ["d", "b", "c", "a"]


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
@pytest.mark.parametrize("finished", [False, True])
def test_abort_at_any_time(steps: int, finished: bool) -> None:
    scheduler = make(max_batch_tokens=4)
    scheduler.submit(ask("r1", list(range(7)), max_tokens=5))
    plans = [plan_of(scheduler) for _ in range(steps)]
    if finished and plans:
        scheduler.finish(plans[0], answer(plans[0]))
        del plans[0]
    assert scheduler.abort("r") is None
    assert scheduler.abort("r11") is None
    output = scheduler.abort("r1")
    assert output is not None and output.finish_reason == "abort"
    assert scheduler.abort("r1") is None
    assert scheduler.stats().pages_free + scheduler.stats().pages_cached == 100
    scheduler.submit(ask("r1", [9, 9], max_tokens=1))  # the id is free again
    plans.append(plan_of(scheduler))
    outputs = [output for plan in plans for output in scheduler.finish(plan, answer(plan, 55))]
    assert [(o.request_id, o.tokens, o.finish_reason) for o in outputs] == [("r1", [55], "length")]
    verify_idle(scheduler)


def test_abort_of_a_retracted_request_with_a_token_in_flight() -> None:
    scheduler = make(groups=[KVGroupPages("full", 7)])
    scheduler.submit(ask("a", [1] * 4, max_tokens=20))
    scheduler.submit(ask("b", [2] * 4, max_tokens=20))
    plans = []
    while not scheduler.stats().retractions:
        plans.append(plan_of(scheduler))
    assert scheduler.stats().waiting == 1
    output = scheduler.abort("b")
    assert output is not None
    outputs = [o for plan in plans for o in scheduler.finish(plan, answer(plan))]
    assert {o.request_id for o in outputs} == {"a"}
    drain(scheduler)
    verify_idle(scheduler)


def test_a_failed_step_ends_its_requests_and_no_others() -> None:
    scheduler = make(max_running=2, max_queue=9)
    for name in "abc":
        scheduler.submit(ask(name, [1, 2, 3, 4, 5], max_tokens=5))
    first, second = plan_of(scheduler), plan_of(scheduler)
    outputs = scheduler.fail(first, "out of luck")
    assert [(o.request_id, o.finish_reason, o.error) for o in outputs] == [
        ("a", "error", "out of luck"),
        ("b", "error", "out of luck"),
    ]
    assert scheduler.finish(second, answer(second)) == []
    assert scheduler.fail(second, "again") == []
    stats = scheduler.stats()
    assert (stats.failed, stats.waiting, stats.pages_cached) == (2, 1, 0)
    last = drain(scheduler)[1][-1]
    assert (last.request_id, last.finish_reason, last.cached_tokens) == ("c", "length", 0)


def test_flush_keeps_what_runs() -> None:
    scheduler = make()
    scheduler.submit(ask("a", list(range(10)), max_tokens=1))
    drain(scheduler)
    scheduler.submit(ask("b", list(range(50, 60)), max_tokens=5))
    first = plan_of(scheduler)
    assert scheduler.stats().pages_cached == 2
    scheduler.flush_cache()
    assert scheduler.stats().pages_cached == 0
    assert scheduler.stats().pages_free == 100 - 3
    scheduler.finish(first, answer(first))
    drain(scheduler)
    verify_idle(scheduler)


def test_the_prompt_list_is_not_touched() -> None:
    scheduler = make()
    prompt = [1, 2, 3]
    for name in "ab":  # the samples of one request may share it
        scheduler.submit(ask(name, prompt))
    drain(scheduler)
    assert prompt == [1, 2, 3]


def test_stats_add_up() -> None:
    now = [10.0]
    scheduler = make(max_running=1, clock=lambda: now[0])
    scheduler.submit(ask("a", [1, 2, 3], max_tokens=2))
    scheduler.submit(ask("b", [1, 2, 3]))
    now[0] = 12.5
    plan_of(scheduler)
    stats = scheduler.stats()
    assert (stats.running, stats.waiting, stats.oldest_wait, stats.steps) == (1, 1, 2.5, 1)
    assert (stats.pages_total, stats.pages_free, stats.prompt_tokens) == (100, 99, 3)


def test_scheduling_imports_no_torch() -> None:
    code = "import sys, inferplane.scheduling.scheduler; sys.exit('torch' in sys.modules)"
    path = ":".join(sys.path)
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, check=True)
