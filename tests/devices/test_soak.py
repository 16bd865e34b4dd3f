"""A short soak on the CPU, and what it says to an engine that is broken in each of the ways that it
is there to find. `python ci/suites/soak.py` is the long one."""

import re
from typing import Any

import pytest
from ci.suites import soak

from inferplane.hw.batch import StepResult
from inferplane.runner.runner import Pending
from inferplane.scheduling.prefix_cache import PrefixCache

SHORT = "--device xeon --model llama --requests 150 --concurrency 24 --pool 40".split()
"""more is open than the KV cache holds"""


def test_a_short_soak(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(SHORT) == 0
    assert "nothing wrong" in capsys.readouterr().out


def loses_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of all."""
    give_back, calls = PrefixCache.give_back, [0]

    def leaky(self: PrefixCache, group: int, page: int) -> None:
        calls[0] += 1
        if calls[0] != 2000:
            give_back(self, group, page)

    monkeypatch.setattr(PrefixCache, "give_back", leaky)


def changes_results(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Do `change` to one step of 50 that gave two sequences a token."""
    wait, calls = Pending.wait, [0]

    def wrong(self: Pending) -> StepResult:
        result = wait(self)
        calls[0] += 1
        if calls[0] > 50 and len(set(result.tokens)) > 1:
            calls[0] = 0
            change(result)
        return result

    monkeypatch.setattr(Pending, "wait", wrong)


def swaps_two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def swap(result: StepResult) -> None:
        result.tokens[0], result.tokens[-1] = result.tokens[-1], result.tokens[0]

    # no answer of the quiet run, which has one sequence, is touched
    changes_results(monkeypatch, swap)


def loses_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    def round_off(result: StepResult) -> None:
        for index, scored in enumerate(result.logprobs):
            if scored is not None:
                result.logprobs[index] = (scored[0] * (1 + 1e-7), *scored[1:])

    changes_results(monkeypatch, round_off)


@pytest.mark.parametrize(
    ("sabotage", "message"),
    [
        (loses_a_page, "references should be|pop from empty list"),  # if it runs out of pages
        (swaps_two_rows, r", alone it is .*\n.*\"prompt\":\["),
        (loses_the_last_bit, r"logprobs of token .*\n.*\"prompt\":\["),
    ],
    ids=["page", "rows", "bit"],
)
def test_control_each_fault_is_found(
    sabotage: Any,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sabotage(monkeypatch)
    assert soak.main([*SHORT, "--no-grammars"]) == 1
    said = capsys.readouterr().out
    assert re.search(message, said) and "FAILED (seed 0)" in said, said


def test_control_a_soak_that_provokes_nothing_fails(capsys: pytest.CaptureFixture[str]) -> None:
    calm = "--device xeon --model llama --requests 5 --concurrency 1 --pool 3 --no-grammars".split()
    assert soak.main(calm) == 1
    assert "the soak saw no retractions" in capsys.readouterr().out
