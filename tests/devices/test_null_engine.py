"""The whole engine on every kind of device: the same tokens, and logprobs within rounding."""

from typing import Any

import pytest
import torch

from inferplane.errors import EngineDeadError, PluginError
from inferplane.hw import ForwardBatch
from inferplane.messages import TokenLogprobs
from inferplane.plugins import Plugins
from inferplane.testing.null import SETTINGS, NullDevice, NullSettings, PlannedAttention, Sealed
from inferplane.testing.workload import Answer, requests, serve, tiny_engine
from tests.devices.engines import MODELS, expected, open_null

ROUNDING = 1e-4


def flat(scored: list[TokenLogprobs | None]) -> list[tuple[int, float]]:
    """Own, top and wanted logprobs in one list."""
    return [
        pair
        for item in scored
        if item is not None
        for pair in [(item.token, item.logprob), *item.top, *enumerate(item.wanted)]
    ]


def assert_same(answers: dict[str, Answer], wanted: dict[str, Answer]) -> None:
    assert {k: a.tokens for k, a in answers.items()} == {k: a.tokens for k, a in wanted.items()}
    for name, answer in answers.items():
        other = wanted[name]
        assert answer.finish_reason == other.finish_reason
        assert (answer.prompt_logprobs is None) == (other.prompt_logprobs is None)
        for mine, theirs in (
            (answer.logprobs, other.logprobs),
            (answer.prompt_logprobs or [], other.prompt_logprobs or []),
        ):
            assert len(mine) == len(theirs)
            for (token, logprob), (known, value) in zip(flat(mine), flat(theirs), strict=True):
                assert token == known
                assert logprob == pytest.approx(value, abs=ROUNDING)


@pytest.mark.parametrize("model", MODELS)
def test_every_setting_gives_the_same_answers(model: str, null_settings: NullSettings) -> None:
    engine, recorder = open_null(model, null_settings)
    assert engine.loaded.depth == (1 if null_settings.asynchronous else 0)
    answers, stats = serve(engine, requests())
    assert_same(answers, expected(model))
    assert stats.cached_tokens > 0
    assert stats.retractions > 0
    if null_settings.asynchronous:  # one copy to the device a step, and tokens back
        assert isinstance(engine.loaded.device, NullDevice)
        assert engine.loaded.device.delivered >= 2 * stats.steps
    replays = sum(tape.replays for tape in recorder.tapes)
    assert (replays > 2 * len(recorder.tapes)) == null_settings.recorded


@pytest.mark.parametrize("name", ["bucketed-planned", "static-functional"])
def test_deterministic_mode_gives_the_same_bits(name: str) -> None:
    """A recorded step on padded shapes and an eager one on exact shapes agree bit for bit."""
    runs = []
    for settings in (SETTINGS["dynamic"], SETTINGS[name]):
        engine, _ = open_null("gemma3", settings, enable_deterministic_inference=True)
        runs.append(serve(engine, requests())[0])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", ["asynchronous", "bucketed-recorded"])
@pytest.mark.parametrize(
    "config",
    [
        {"disable_overlap": True},
        {"disable_graphs": True},
        {"disable_prefix_cache": True},
        {"max_batch_tokens": 200, "kv_cache_tokens": 4096},
    ],
    ids=str,
)
def test_no_setting_of_the_engine_changes_answers(name: str, config: dict[str, Any]) -> None:
    engine, recorder = open_null("gemma3", SETTINGS[name], **config)
    assert engine.loaded.depth == (0 if "disable_overlap" in config else 1)
    answers, stats = serve(engine, requests())
    assert_same(answers, expected("gemma3"))
    assert not ("disable_graphs" in config and recorder.tapes)
    assert not ("disable_prefix_cache" in config and stats.cached_tokens)
    assert not ("kv_cache_tokens" in config and stats.retractions)


def test_few_programs_are_held_and_the_rest_runs_eagerly() -> None:
    engine, recorder = open_null("llama", SETTINGS["few-programs"])
    serve(engine, requests())
    assert len(recorder.tapes) == 4


def test_a_functional_device_sees_every_write_in_place() -> None:
    tensors = [torch.zeros(3), torch.ones(2)]
    sealed = Sealed.of(tensors)
    sealed.verify()
    tensors[1][0] = 5.0
    with pytest.raises(Exception, match="persistent tensor 1"):
        sealed.verify()


def test_a_functional_engine_is_watched() -> None:
    """The control of the suite: with writes in place the watch must bark."""
    engine, _ = open_null("llama", SETTINGS["functional"])
    engine.loaded.runner._tables.inplace = True
    for submit in requests()[:1]:
        engine.handle(submit)
    with pytest.raises(EngineDeadError, match="written in place"):
        engine.step()


def test_a_stale_plan_gives_wrong_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the planned setting: a plan that is made once only is noticed."""
    engine, _ = open_null("llama", SETTINGS["bucketed-planned"])
    runner = engine.loaded.runner
    planned: set[int] = set()

    def once(batch: ForwardBatch) -> None:
        if batch.max_q > 1 or len(batch.host_seq_len) not in planned:
            planned.add(len(batch.host_seq_len))
            for bound in runner._plans:
                assert bound.plan is not None
                bound.plan(batch)

    monkeypatch.setattr(runner, "_plan_ops", once)
    answers, _ = serve(engine, requests())
    wrong = [k for k, a in answers.items() if a.tokens != expected("llama")[k].tokens]
    assert len(wrong) > 3


def test_planned_attention_is_only_for_its_device() -> None:
    engine, _ = open_null("llama", SETTINGS["bucketed-planned"])
    chosen = {d.op: d.chosen.name for d in engine.loaded.resolver.decisions.values()}
    assert chosen["attention.paged"] == PlannedAttention().name
    assert chosen["linear"] == "reference"


def test_the_workload_is_what_it_says() -> None:
    """Chunked prompts, and requests that differ in what they ask for."""
    engine, _ = open_null("llama", SETTINGS["dynamic"])
    assert max(len(s.prompt) for s in requests()) > engine.loaded.config.max_batch_tokens
    answers = expected("llama")
    assert any(a.prompt_logprobs for a in answers.values())
    assert any(len(a.logprobs) == 0 for a in answers.values())
    assert {a.finish_reason for a in answers.values()} == {"stop", "length"}


def test_tiny_engine_refuses_unknown_devices() -> None:
    with pytest.raises(PluginError, match="nothing"):
        tiny_engine("llama", Plugins(), "nothing")
