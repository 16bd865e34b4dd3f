"""Gemma 3 with a group of full and one of window layers: the pages behind the window are given back
while a long answer is written, and nothing of that shows in the answer."""

from typing import Any

import pytest

from inferplane.checkpoint.source import ModelSource
from inferplane.scheduling.scheduler import Scheduler
from tests.models.families import VOCAB, gemma3
from tests.models.oracle import Oracle, make
from tests.models.serving import ask, random_prompt, serve

WINDOW, PAGE = 20, 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> tuple[Oracle, ModelSource]:
    return make(tmp_path_factory.mktemp("gemma3"), gemma3(sliding_window=WINDOW), seed=2)


def in_use(scheduler: Scheduler) -> list[int]:
    """Pages by group that running requests hold."""
    return [pool.num_usable - pool.num_available for pool in scheduler._memory.pools]


@pytest.mark.parametrize("cache", [False, True])
def test_pages_behind_the_window_are_given_back(
    cache: bool, made: tuple[Oracle, ModelSource]
) -> None:
    oracle, source = made
    served = serve(
        source, page_size=PAGE, kv_cache_tokens=400, max_running=1, disable_prefix_cache=not cache
    )
    assert [g.window for g in served.engine.loaded.groups] == [0, WINDOW]
    scheduler, seen = served.engine.scheduler, []
    schedule = scheduler.schedule

    def note() -> Any:
        plan = schedule()
        seen.append((*in_use(scheduler), served.stats.pages_free, served.stats.pages_cached))
        return plan

    scheduler.schedule = note  # type: ignore[method-assign]
    answer = served.run([ask("a", random_prompt(30, VOCAB), 250)])["a"]
    oracle.check(served, "a", answer)
    full, window, free, cached = zip(*seen, strict=True)
    most = 1 + -(-(WINDOW - 1) // PAGE)
    assert full[-2] == -(-279 // PAGE), "full layers keep everything"
    assert max(window[20:-1]) == most, "window layers keep what the next token sees"
    total = served.stats.pages_total
    assert free[-2] + cached[-2] == total - full[-2] - window[-2]
    assert (cached[-2] > 0) == cache


def test_pages_that_were_given_back_serve_others(made: tuple[Oracle, ModelSource]) -> None:
    """The window pool is too small for all tokens of all requests, so pages change hands."""
    oracle, source = made
    served = serve(source, page_size=PAGE, kv_cache_tokens=900, max_running=4, max_batch_tokens=16)
    pages = served.engine.loaded.budget.pages
    requests = [ask(f"r{i}", random_prompt(20 + 30 * i, VOCAB, i), 60) for i in range(5)]
    assert pages[1] - 1 < sum(len(r.prompt) + r.max_tokens for r in requests) // PAGE < pages[0]
    answers = served.run(requests)
    for name, answer in answers.items():
        oracle.check(served, name, answer)
    assert served.stats.retractions == 0
    longer = [ask(n, a.prompt + a.tokens + a.prompt[:7], 9) for n, a in answers.items()]
    answers = served.run(reversed(longer))  # the one that ended last still has its window
    for name, answer in answers.items():
        oracle.check(served, name, answer)
    assert answers["r4"].cached_tokens == 196 and not answers["r1"].cached_tokens
