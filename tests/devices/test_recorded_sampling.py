"""Sampling recorded per bucket and choice: what is recorded, and the bits of eager steps."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from inferplane.engine import EngineCore
from inferplane.messages import Submit
from inferplane.runner.runner import Forwarded, Pending
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
    "repeats": {"temperature": 0.0, "repetition_penalty": 1.5, "frequency_penalty": 0.6},
    "bias": {"temperature": 0.8, "top_k": 5, "logit_bias": {3: 4.0, 9: -100.0}},
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
    kinds = ((True, True), (False, True), (False, False))
    plain = {Choice(greedy=greedy, unfiltered=unfiltered) for greedy, unfiltered in kinds}
    changed = {
        Choice(greedy=True, unfiltered=True, penalties=True),
        Choice(greedy=False, unfiltered=True, penalties=True),
        Choice(greedy=False, unfiltered=False, bias=True),
        Choice(greedy=False, unfiltered=False, penalties=True, bias=True),
    }
    found = {replace(c, top=-1) for c in made}
    assert plain | changed <= found
    assert not any(c.banned for c in found)
    assert {c.top for c in made} == {-1, 3}
    assert not choices(eager)


def test_a_device_with_few_programs_samples_eagerly() -> None:
    engine, recorder = open_null("llama", SETTINGS["few-programs"])
    answers(engine, ["greedy", "plain"])
    assert not choices(engine)
    assert recorder.tapes


def mask_every_step(engine: EngineCore) -> None:
    """Each sampled sequence may get about half of the tokens, others in every step."""
    runner = engine.loaded.runner
    sample, words = runner.sample, -(-engine.loaded.vocab_size // 32)

    def masked(forwarded: Forwarded, mask: Any = None) -> Pending:
        plan = forwarded.step.plan
        draw = np.random.default_rng(plan.step)
        bits = draw.integers(-(2**31), 2**31, (len(plan.sample), words), dtype=np.int32)
        return sample(forwarded, bits if plan.sample else None)

    runner.sample = masked  # type: ignore[method-assign]


@pytest.mark.parametrize("name", ["bucketed-recorded", "static-recorded", "static-functional"])
def test_masked_steps_have_the_bits_of_eager_ones(name: str) -> None:
    recorded, _ = open_null("llama", SETTINGS[name])
    eager, _ = open_null("llama", replace(SETTINGS[name], recorded=False))
    plain = answers(recorded, list(KINDS))
    assert answers(eager, list(KINDS)) == plain  # both are at the same step now
    mask_every_step(recorded)
    mask_every_step(eager)
    for names in ([kind] * 3 for kind in KINDS):
        assert answers(recorded, names) == answers(eager, names), names
    assert answers(recorded, list(KINDS)) == answers(eager, list(KINDS)) != plain
    in_place = SETTINGS[name].functional is False
    assert any(choice.masked for choice in choices(recorded)) == in_place
