"""Sampling recorded per bucket and choice: what is recorded, and the bits of eager steps."""

from dataclasses import replace
from typing import Any

import pytest

from inferplane.engine import EngineCore
from inferplane.messages import Submit
from inferplane.runner.sampler import Choice
from inferplane.sampling_params import SamplingParams
from inferplane.testing.null import SETTINGS
from inferplane.testing.workload import Answer, serve
from tests.devices.engines import open_null

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.3},
    "top": {"temperature": 0.9, "top_k": 40, "top_p": 0.9},
    "min": {"temperature": 1.1, "min_p": 0.02},
    "scored": {"temperature": 1.0, "logprobs": 3},
    "penalties": {"temperature": 1.0, "presence_penalty": 0.7},
}


def asked(names: list[str]) -> list[Submit]:
    return [
        Submit(
            request_id=f"{name}{index}",
            prompt=[7 + index, 3, 11 * index + 1, 5],
            params=SamplingParams(**KINDS[name]),
            stop_ids=[],
            max_tokens=6 + index,
            seed=index,
        )
        for index, name in enumerate(names)
    ]


def answers(engine: EngineCore, names: list[str]) -> dict[str, Answer]:
    return serve(engine, asked(names))[0]


def choices(engine: EngineCore) -> set[Choice]:
    return {choice for _, choice in engine.loaded.runner._sampler._recorded}


@pytest.mark.parametrize("name", ["bucketed-recorded", "static-recorded", "static-functional"])
def test_recorded_sampling_has_the_bits_of_eager(name: str) -> None:
    """One kind at a time, so that each choice is replayed, then all together. Prompts after the
    first round meet tables whose rows other requests have used."""
    rounds = [[kind] * 3 for kind in KINDS] + [list(KINDS)]
    recorded, _ = open_null("llama", SETTINGS[name])
    eager, _ = open_null("llama", replace(SETTINGS[name], recorded=False))
    for names in rounds:
        assert answers(recorded, names) == answers(eager, names), names
    made = choices(recorded)
    assert {replace(c, top=-1) for c in made} == {
        Choice(greedy=True, unfiltered=True),
        Choice(greedy=False, unfiltered=True),
        Choice(greedy=False, unfiltered=False),
    }
    assert {c.top for c in made} == {-1, 3}
    assert not choices(eager)


def test_a_device_with_few_programs_samples_eagerly() -> None:
    engine, recorder = open_null("llama", SETTINGS["few-programs"])
    answers(engine, ["greedy", "plain"])
    assert not choices(engine)
    assert recorder.tapes
