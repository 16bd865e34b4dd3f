"""What the scheduler does not take, and what it says then."""

import pytest

from inferplane.errors import ConfigError, RequestError
from inferplane.messages import Submit
from inferplane.scheduling.pages import KVGroupPages
from inferplane.scheduling.scheduler import Scheduler
from tests.core.scheduling.small import answer, ask, drain, make, plan_of


def refusal(scheduler: Scheduler, submit: Submit) -> RequestError:
    before = scheduler.stats()
    with pytest.raises(RequestError) as caught:
        scheduler.submit(submit)
    before.refused += 1
    assert scheduler.stats() == before
    return caught.value


@pytest.mark.parametrize(
    ("submit", "param", "words"),
    [
        (ask("a", []), "prompt", ["0 tokens"]),
        (ask("a", [1], max_tokens=0), "max_tokens", ["0", "at least 1"]),
        (ask("a", [1] * 200), "prompt", ["200", "199", "--max-model-len (200)"]),
        (ask("a", [2**31]), "prompt", ["32 bits"]),
        (ask("a", [1], stop_ids=list(range(65))), "stop_token_ids", ["65", "64"]),
        (
            ask("a", [1] * 90, max_tokens=100),
            "prompt",
            ["prompt of 90", "max_tokens 100", "48 pages", "has 30", "--kv-cache-tokens"],
        ),
    ],
)
def test_what_can_never_run_is_refused(submit: Submit, param: str, words: list[str]) -> None:
    error = refusal(make(groups=[KVGroupPages("full", 31)]), submit)
    assert (error.status, error.param) == (400, param)
    assert all(word in error.message for word in words), error.message


def test_what_just_fits_runs_alone() -> None:
    scheduler = make(groups=[KVGroupPages("full", 31)])
    refusal(scheduler, ask("a", [1] * 90, max_tokens=32))
    scheduler.submit(ask("a", [1] * 90, max_tokens=31))  # the last token is never computed
    assert drain(scheduler)[1][-1].finish_reason == "length"


def test_the_refusing_group_is_named() -> None:
    groups = [KVGroupPages("full", 99), KVGroupPages("local", 3, 16)]
    assert "of group local" in refusal(make(groups=groups), ask("a", [1] * 50)).message


def test_a_full_queue_answers_429() -> None:
    scheduler = make(max_running=1, max_queue=2)
    for name in "abc":
        scheduler.submit(ask(name, [1]))
    error = refusal(scheduler, ask("d", [1]))
    assert (error.status, error.code) == (429, "queue_full")
    assert "--max-queue (2)" in error.message
    plan = plan_of(scheduler)
    refusal(scheduler, ask("d", [1]))  # still one running and two waiting
    scheduler.finish(plan, answer(plan))
    scheduler.abort("a")
    scheduler.submit(ask("d", [1]))


def test_a_request_id_is_used_once_at_a_time() -> None:
    scheduler = make()
    scheduler.submit(ask("a", [1]))
    assert refusal(scheduler, ask("a", [2])).param == "request_id"


def test_no_groups_is_an_error() -> None:
    with pytest.raises(ConfigError, match="0 KV groups"):
        make(groups=[])
