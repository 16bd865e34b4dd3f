"""--enable-deterministic-inference on the accelerator: a request has the same bits alone and in any
batch, however its prompt is cut, with and without cached pages, and after retraction."""

import random
from typing import Any

import pytest

from inferplane.engine import EngineCore
from inferplane.messages import Submit
from inferplane.plugins import Plugins
from inferplane.sampling_params import SamplingParams
from inferplane.testing.workload import Answer, serve, tiny_engine

pytestmark = pytest.mark.gpu

VOCAB = 4096
LENGTHS = (1, 17, 64, 250, 700, 1200)
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.8, "prompt_logprobs": 1},
    {"temperature": 1.0, "top_p": 0.8, "top_k": 30},
    {"temperature": 0.7, "repetition_penalty": 1.3, "presence_penalty": 0.4},
    {"temperature": 0.0, "prompt_logprobs": 0, "logit_bias": {5: 4.0}},
    {"temperature": 1.2, "min_p": 0.05, "frequency_penalty": 0.5},
)


def ask(name: str, prompt: list[int], output: int, **params: Any) -> Submit:
    return Submit(
        request_id=name,
        prompt=prompt,
        params=SamplingParams(**params),
        stop_ids=[],
        max_tokens=output,
        seed=len(prompt),
    )


def watched() -> list[Submit]:
    choose = random.Random(0)
    return [
        ask(f"w{n}", [choose.randrange(VOCAB) for _ in range(n)], 24, logprobs=4, **kind)
        for n, kind in zip(LENGTHS, KINDS, strict=True)
    ]


def others(count: int, seed: int, longest: int = 40) -> list[Submit]:
    choose = random.Random(seed)
    return [
        ask(
            f"o{seed}-{index}",
            [choose.randrange(VOCAB) for _ in range(choose.randint(1, 300))],
            choose.randint(1, longest),
            temperature=choose.choice((0.0, 1.0)),
        )
        for index in range(count)
    ]


def engine(backend: str, **settings: Any) -> EngineCore:
    chosen: dict[str, Any] = {
        "dtype": "bfloat16",
        "max_running": 128,
        "max_batch_tokens": 1024,
        "page_size": 16,
        "kv_cache_tokens": 60_000,
        "max_model_len": 2048,
        "enable_deterministic_inference": True,
    }
    return tiny_engine("wide", Plugins(), backend, **(chosen | settings))


@pytest.fixture(scope="module")
def alone(backend: str) -> dict[str, Answer]:
    """Each watched request by itself, whole and uncached."""
    core = engine(backend, max_batch_tokens=4096, disable_prefix_cache=True)
    found: dict[str, Answer] = {}
    for submit in watched():
        found |= serve(core, [submit])[0]
    return found


def assert_same(core: EngineCore, submits: list[Submit], alone: dict[str, Answer]) -> None:
    answers, _ = serve(core, submits)
    for name, answer in alone.items():
        assert answers[name] == answer, name


@pytest.mark.parametrize("chunk", [64, 256, 1024, 4096])
def test_chunks_and_batches(backend: str, alone: dict[str, Answer], chunk: int) -> None:
    core = engine(backend, max_batch_tokens=chunk)
    for count in (0, 10, 122):
        submits = watched() + others(count, seed=count)
        random.Random(count).shuffle(submits)
        assert_same(core, submits, alone)
        core.scheduler.flush_cache()


def test_cached_pages(backend: str, alone: dict[str, Answer]) -> None:
    core = engine(backend)
    for _ in range(2):
        assert_same(core, watched() + others(20, seed=1), alone)
    assert core.scheduler.stats().cached_tokens > sum(LENGTHS) // 2


def test_retraction(backend: str, alone: dict[str, Answer]) -> None:
    core = engine(backend, kv_cache_tokens=3200)
    assert_same(core, watched() + others(30, seed=2, longest=300), alone)
    assert core.scheduler.stats().retractions > 0


@pytest.mark.parametrize("setting", ["disable_graphs", "disable_overlap"])
def test_eager_and_synchronous(backend: str, alone: dict[str, Answer], setting: str) -> None:
    core = engine(backend, **{setting: True})
    assert_same(core, watched() + others(20, seed=3), alone)


def test_the_check_notices(backend: str, alone: dict[str, Answer]) -> None:
    """The control: without the mode some bit differs."""
    core = engine(backend, enable_deterministic_inference=False, max_batch_tokens=64)
    answers, _ = serve(core, watched() + others(122, seed=4))
    assert any(answers[name] != answer for name, answer in alone.items())
