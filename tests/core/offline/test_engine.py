"""inferplane.Engine over a model whose answers are known."""

import asyncio
import math
import signal
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import inferplane
from inferplane import Engine, SamplingParams
from inferplane.checkpoint.source import ModelSource
from inferplane.errors import ConfigError, EngineDeadError, InferplaneError, RequestError
from inferplane.local_client import LocalClient
from inferplane.offline import Usage
from tests.core.offline.tiny_model import ALPHABET
from tests.core.server.byte_model import EOS


def client_of(engine: Engine) -> LocalClient:
    client = engine.generator.client
    assert isinstance(client, LocalClient)
    return client


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "inferplane-engine"]


def test_a_text_is_completed(engine: Engine) -> None:
    (result,) = engine.generate("abc")
    assert result.text == ALPHABET[3:]
    assert result.token_ids == [*ALPHABET[3:].encode(), EOS]
    assert (result.finish_reason, result.matched) == ("stop", EOS)
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (3, 24)


def test_prompts_may_be_texts_ids_or_both(engine: Engine) -> None:
    params = {"max_tokens": 2}
    for prompts in ("ab", [97, 98], ["ab"], [[97, 98]]):
        (result,) = engine.generate(prompts, params)
        assert (result.text, result.finish_reason) == ("cd", "length")
    assert [r.text for r in engine.generate(["a", "x"], params)] == ["bc", "yz"]
    assert [r.text for r in engine.generate([[97], [120]], params)] == ["bc", "yz"]


def test_results_are_ordered_by_prompt_then_sample(engine: Engine) -> None:
    results = engine.generate(["ab", "mn"], {"max_tokens": 1, "n": 2})
    places = [(r.prompt_index, r.sample_index, r.text) for r in results]
    assert places == [(0, 0, "c"), (0, 1, "c"), (1, 0, "o"), (1, 1, "o")]


def test_a_stream_has_the_same_text(engine: Engine) -> None:
    texts = {0: "", 1: ""}
    ends = {}
    for delta in engine.generate(["abc", "x"], stream=True):
        texts[delta.index] += delta.text
        if delta.finish_reason:
            ends[delta.index] = delta.finish_reason
    assert texts == {0: ALPHABET[3:], 1: "yz"}
    assert ends == {0: "stop", 1: "stop"}


def test_stop_strings_end_the_text(engine: Engine) -> None:
    (result,) = engine.generate("abc", {"stop": ["gh"]})
    assert (result.text, result.finish_reason, result.matched) == ("def", "stop", "gh")


def test_logprobs(engine: Engine) -> None:
    (result,) = engine.generate("ab", {"max_tokens": 2, "logprobs": 1, "prompt_logprobs": 0})
    assert [entry.token for entry in result.logprobs] == [ord("c"), ord("d")]
    assert math.isclose(result.logprobs[0].logprob, 0.0, abs_tol=0.01)
    assert result.prompt_logprobs is not None
    assert [p.token if p else None for p in result.prompt_logprobs] == [None, ord("b")]


def test_the_seed_decides_whatever_else_runs(engine: Engine) -> None:
    params = {"temperature": 20.0, "seed": 7, "max_tokens": 20, "ignore_eos": True}
    (alone,) = engine.generate("abc", params)
    among = engine.generate(["q", "abc", "hello"], params)
    assert among[1].token_ids == alone.token_ids
    unseeded = {**params, "seed": None}
    draws = {tuple(engine.generate("abc", unseeded)[0].token_ids) for _ in range(3)}
    assert len(draws) == 3


def test_model_defaults_hold_unless_sampling_params_are_given(engine: Engine) -> None:
    assert engine.params(None).temperature == 0.0  # of generation_config.json
    assert engine.params({"top_k": 3}).temperature == 0.0
    assert engine.params({"temperature": 2.0}).temperature == 2.0
    assert engine.params(SamplingParams(top_k=3)).temperature == 1.0


def test_chat_renders_the_template(engine: Engine) -> None:
    messages = [{"role": "user", "content": "hi"}]
    (result,) = engine.chat(messages)
    assert result.text == ALPHABET
    assert result.usage.prompt_tokens == len("?user: hi\nassistant:")  # "?": one token for BOS
    streamed = engine.chat(messages, {"max_tokens": 3}, stream=True, enable_thinking=True)
    assert "".join(delta.text for delta in streamed) == "abc"
    (longer,) = engine.chat(messages, enable_thinking=True)
    assert longer.usage.prompt_tokens == result.usage.prompt_tokens + len(" <think>")


def test_async_calls_work_from_another_event_loop(engine: Engine) -> None:
    async def use() -> tuple[list[str], str, str]:
        one, two = await asyncio.gather(
            engine.agenerate("ab", {"max_tokens": 2}),
            engine.achat([{"role": "user", "content": "x"}]),
        )
        streamed = [d.text async for d in engine.astream("w")]
        chatted = [d.text async for d in engine.astream_chat([{"role": "user", "content": "x"}])]
        return [one[0].text, two[0].text], "".join(streamed), "".join(chatted)

    assert asyncio.run(use()) == (["cd", ALPHABET], "xyz", ALPHABET)


def test_many_prompts_never_overfill_the_queue(tiny_folder: Path, backends: Path) -> None:
    settings: dict[str, Any] = {"max_queue": 2, "max_running": 1, "kv_cache_tokens": 512}
    with Engine(str(tiny_folder), device="plain", **settings) as engine:
        results = engine.generate(["w"] * 9)
        assert [r.text for r in results] == ["xyz"] * 9
        with pytest.raises(RequestError, match="wait"):  # what the bound protects from
            list(engine.generate(["w"] * 9, stream=True))


def aborted(engine: Engine) -> int:
    return client_of(engine).core.scheduler.stats().aborted


def test_closing_a_stream_aborts_it(engine: Engine) -> None:
    before = aborted(engine)
    with closing(engine.generate("a", {"ignore_eos": True}, stream=True)) as deltas:
        next(deltas)

    async def idle() -> None:
        while client_of(engine).core.has_work:
            await asyncio.sleep(0)

    engine.run(idle())
    assert aborted(engine) == before + 1
    assert engine.generate("w")[0].text == "xyz"


def test_ctrl_c_cancels_what_the_caller_waits_for(engine: Engine) -> None:
    cancelled = threading.Event()

    async def never() -> None:
        try:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(KeyboardInterrupt):
        engine.run(never())
    assert cancelled.wait(30)
    assert engine.generate("w")[0].text == "xyz"


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ("a", {"temprature": 1}, "'temprature': did you mean temperature"),
        ("a", {"top_k": "many"}, "top_k"),
        ("a", {"top_p": 7.0}, r"top_p is 7.0, outside \(0.0, 1.0\]"),
        ("", None, "prompt is empty"),
        ([1, 9999], None, "token id 9999, outside the vocabulary of 259"),
        (["a", 3], None, "prompt 1 is 3, must be a text or a list of token ids"),
        ("a", {"max_tokens": 5000}, "maximum context length is 4096"),
    ],
)
def test_bad_requests_are_refused(engine: Engine, prompts: Any, params: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        engine.generate(prompts, params)
    assert engine.generate("w")[0].text == "xyz"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devise": "plain"}, "no setting 'devise': did you mean device"),
        ({"port": "8000"}, "port is '8000', must be of type int"),
        ({"max_running": True}, "max_running is True, must be of type int"),
        ({"op": "linear=x"}, "op is 'linear=x', must be of type list"),
        ({"page_size": 1.5}, "page_size is 1.5, must be of type int or None"),
        ({"port": 99999}, "--port is 99999"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine("nowhere", **settings)


def test_settings_accept_whole_numbers_for_fractions(tiny_folder: Path, backends: Path) -> None:
    values: dict[str, Any] = {"memory_fraction": 1, "kv_cache_tokens": 64, "page_size": None}
    with Engine(str(tiny_folder), device="plain", **values) as engine:
        assert engine.config.memory_fraction == 1


def test_a_failed_start_leaves_no_thread(tiny_folder: Path, backends: Path) -> None:
    before = threads()
    with pytest.raises(InferplaneError, match="nosuch"):
        Engine(str(tiny_folder), device="nosuch")
    assert threads() == before


def test_a_closed_engine_says_so(tiny_folder: Path, backends: Path) -> None:
    before = threads()
    engine = Engine(str(tiny_folder), device="plain", kv_cache_tokens=4096)
    deltas = engine.generate("a", {"ignore_eos": True}, stream=True)
    next(deltas)
    engine.close()
    engine.close()
    assert threads() == before
    with pytest.raises(EngineDeadError, match="closed"):
        list(deltas)
    with pytest.raises(EngineDeadError, match="make a new one"):
        engine.generate("a")


def test_a_dropped_engine_ends_its_thread(tiny_folder: Path, backends: Path) -> None:
    before = threads()
    engine = Engine(str(tiny_folder), device="plain", kv_cache_tokens=64)
    del engine
    assert threads() == before


def test_an_engine_may_be_closed_from_its_own_thread(tiny_folder: Path, backends: Path) -> None:
    """As happens when the garbage collector runs there."""
    engine = Engine(str(tiny_folder), device="plain", kv_cache_tokens=64)
    (thread,) = [t for t in threading.enumerate() if t.name == "inferplane-engine"][-1:]

    async def close() -> None:
        engine.close()

    engine.run(close())
    thread.join(30)
    assert not thread.is_alive()


def test_the_death_of_the_engine_reaches_every_caller(
    tiny_folder: Path, backends: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(str(tiny_folder), device="plain", kv_cache_tokens=64) as engine:

        def die() -> Any:
            raise EngineDeadError("the device burned")

        monkeypatch.setattr(client_of(engine).core, "step", die)
        for _ in range(2):
            with pytest.raises(EngineDeadError, match="the device burned"):
                engine.generate(["a", "b"])


def test_weights_report_their_progress(tiny_folder: Path, backends: Path) -> None:
    seen: list[tuple[int, int]] = []
    with Engine(
        str(tiny_folder),
        device="plain",
        kv_cache_tokens=64,
        progress=lambda done, total: seen.append((done, total)),
    ):
        assert seen[-1][0] == seen[-1][1] > 0
        assert seen == sorted(seen)


def test_the_demo_model_answers_sensibly(demo_model: ModelSource, backends: Path) -> None:
    with Engine(
        "smollm2",
        device="plain",
        kv_cache_tokens=512,
        max_batch_tokens=128,
        enable_deterministic_inference=True,  # the second time, the prompt is cached
    ) as engine:
        question = [{"role": "user", "content": "Write one sentence about the sea."}]
        (result,) = engine.chat(question, {"temperature": 0.0, "max_tokens": 40})
        assert "sea" in result.text
        assert result.text.endswith(".")
        assert result.finish_reason == "stop"
        again = engine.chat(question, {"temperature": 0.0, "max_tokens": 40}, stream=True)
        assert "".join(delta.text for delta in again) == result.text
        assert result.usage == Usage(37, len(result.token_ids), 0)


def test_public_names() -> None:
    assert inferplane.Engine is Engine
    assert inferplane.SamplingParams is SamplingParams
    assert all(hasattr(inferplane, name) for name in inferplane.__all__)
    assert inferplane.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'Engin'"):
        _ = inferplane.Engin
