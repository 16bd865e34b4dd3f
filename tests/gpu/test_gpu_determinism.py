"""--enable-deterministic-inference on the accelerator: a request has the same bits alone and in any
batch, however its prompt is cut, with and without cached pages, and after retraction.

The three modes of trials are those of SGLang's test: one prompt many times (single), prompts of
many lengths (mixed), and prompts that share beginnings of many lengths (prefix).
"""

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec
import pytest

from inferplane.config import Config
from inferplane.engine import EngineCore, open_engine
from inferplane.hw import Device
from inferplane.messages import Submit
from inferplane.plugins import Plugins
from inferplane.sampling_params import SamplingParams
from inferplane.testing.tiny import CONFIGS, TinySource, TinyTensors
from inferplane.testing.workload import Answer, serve
from tests.gpu.conftest import attention_backends

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

LENGTHS = (1, 17, 64, 250, 700, 1200)
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.8, "prompt_logprobs": 1},
    {"temperature": 1.0, "top_p": 0.8, "top_k": 30},
    {"temperature": 0.7, "repetition_penalty": 1.3, "presence_penalty": 0.4},
    {"temperature": 0.0, "prompt_logprobs": 0, "logit_bias": {5: 4.0}},
    {"temperature": 1.2, "min_p": 0.05, "frequency_penalty": 0.5},
)
TRIALS, LARGEST, OUTPUT = 50, 128, 8
PREFIXES = (1, 511, 1024, 1500)
Make = Callable[..., EngineCore]


@cache
def weights(model: str) -> TinyTensors:
    return TinySource(model).tensors()


class Kept(TinySource):
    """The same weights for every engine of this process."""

    def tensors(self) -> TinyTensors:
        return weights(self.name)


@pytest.fixture(scope="module")
def model(accelerated: bool) -> str:
    return "qwen3" if accelerated else "llama"


@pytest.fixture(scope="module")
def vocab(model: str) -> int:
    return int(CONFIGS[model]["vocab_size"])


@pytest.fixture(scope="module")
def make(backend: str, model: str) -> Make:
    source = Kept(model)
    source.config["max_position_embeddings"] = 4096

    def engine(**settings: Any) -> EngineCore:
        chosen: dict[str, Any] = {
            "dtype": "bfloat16",
            "max_running": LARGEST,
            "max_batch_tokens": 1024,
            "page_size": 16,
            "kv_cache_tokens": 160_000,
            "max_model_len": 2048,
            "enable_deterministic_inference": True,
        }
        config = Config(model=model, device=backend, **(chosen | settings))
        return open_engine(config, source, Plugins())

    return engine


def ask(name: str, prompt: list[int], output: int, **params: Any) -> Submit:
    return Submit(
        request_id=name,
        prompt=prompt,
        params=SamplingParams(**params),
        stop_ids=[],
        max_tokens=output,
        seed=len(prompt),
    )


def tokens(choose: random.Random, vocab: int, count: int) -> list[int]:
    return [choose.randrange(vocab) for _ in range(count)]


def watched(vocab: int) -> list[Submit]:
    choose = random.Random(0)
    return [
        ask(f"w{n}", tokens(choose, vocab, n), 24, logprobs=4, **kind)
        for n, kind in zip(LENGTHS, KINDS, strict=True)
    ]


def others(count: int, seed: int, vocab: int, longest: int = 40) -> list[Submit]:
    choose = random.Random(seed)
    return [
        ask(
            f"o{seed}-{index}",
            tokens(choose, vocab, choose.randint(1, 300)),
            choose.randint(1, longest),
            temperature=choose.choice((0.0, 1.0)),
        )
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def quiet(make: Make) -> EngineCore:
    """The engine for the answers that others are compared with: prompts whole, nothing cached."""
    return make(max_batch_tokens=4096, disable_prefix_cache=True, kv_cache_tokens=4096)


def one_by_one(quiet: EngineCore, submits: list[Submit]) -> dict[str, Answer]:
    found: dict[str, Answer] = {}
    for submit in submits:
        found |= serve(quiet, [submit])[0]
    return found


@pytest.fixture(scope="module")
def alone(quiet: EngineCore, vocab: int) -> dict[str, Answer]:
    return one_by_one(quiet, watched(vocab))


def assert_same(core: EngineCore, submits: list[Submit], alone: dict[str, Answer]) -> None:
    answers, stats = serve(core, submits)
    for name, answer in alone.items():
        assert answers[name] == answer, name
    assert stats.failed == 0


@pytest.mark.parametrize("chunk", [64, 256, 1024, 4096])
def test_chunks_and_batches(make: Make, alone: dict[str, Answer], vocab: int, chunk: int) -> None:
    core = make(max_batch_tokens=chunk)
    for count in (0, 10, LARGEST - len(LENGTHS)):
        submits = watched(vocab) + others(count, count, vocab)
        random.Random(count).shuffle(submits)
        assert_same(core, submits, alone)
        core.scheduler.flush_cache()


def test_cached_pages(make: Make, alone: dict[str, Answer], vocab: int) -> None:
    core = make()
    for _ in range(2):
        assert_same(core, watched(vocab) + others(20, 1, vocab), alone)
    assert core.scheduler.stats().cached_tokens > sum(LENGTHS) // 2


def test_retraction(make: Make, alone: dict[str, Answer], vocab: int) -> None:
    core = make(kv_cache_tokens=3200)
    assert_same(core, watched(vocab) + others(30, 2, vocab, longest=300), alone)
    assert core.scheduler.stats().retractions > 0


@pytest.mark.parametrize("setting", ["disable_graphs", "disable_overlap"])
def test_eager_and_synchronous(
    make: Make, alone: dict[str, Answer], vocab: int, setting: str
) -> None:
    core = make(**{setting: True})
    assert_same(core, watched(vocab) + others(20, 3, vocab), alone)


def of_mode(mode: str, vocab: int) -> list[Submit]:
    """The different requests of a mode, each greedy and at random, with logprobs."""
    choose = random.Random(mode)
    if mode == "single":
        prompts = [tokens(choose, vocab, 30)]
    elif mode == "mixed":
        prompts = [tokens(choose, vocab, n) for n in (1, 2, 15, 16, 33, 100, 260, 600, 1100)]
    else:
        shared = tokens(choose, vocab, max(PREFIXES))
        prompts = [shared[:n] + tokens(choose, vocab, choose.randint(1, 200)) for n in PREFIXES]
    greedy: dict[str, Any] = {"temperature": 0.0, "logprobs": 4}
    drawn: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "logprobs": 2}
    kinds = {"g": greedy, "r": drawn}
    return [
        ask(f"{kind}{index}", prompt, OUTPUT, **kinds[kind])
        for index, prompt in enumerate(prompts)
        for kind in kinds
    ]


@pytest.mark.parametrize(("mode", "chunk"), [("single", 1024), ("mixed", 256), ("prefix", 512)])
def test_trials(make: Make, quiet: EngineCore, vocab: int, mode: str, chunk: int) -> None:
    """50 batches of 1 to 128 items, each item compared; every fourth begins with an empty cache."""
    cases = of_mode(mode, vocab)
    expected = one_by_one(quiet, cases)
    assert len({str(answer) for answer in expected.values()}) == len(cases)
    core, choose, compared = make(max_batch_tokens=chunk), random.Random(mode), 0
    for trial in range(TRIALS):
        size = 1 + trial * (LARGEST - 1) // (TRIALS - 1)
        chosen = {f"{i}": choose.choice(cases) for i in range(size)}
        batch = [msgspec.structs.replace(case, request_id=i) for i, case in chosen.items()]
        answers, _ = serve(core, batch)
        for item, case in chosen.items():
            assert answers[item] == expected[case.request_id], (trial, item, case.request_id)
            compared += 1
        if trial % 4 == 3:
            core.scheduler.flush_cache()
    stats = core.scheduler.stats()
    print(f"{mode}: {compared} items compared, {stats.cached_tokens} tokens from the cache")
    assert compared > TRIALS * LARGEST // 2
    assert stats.cached_tokens > 0


def test_every_attention_that_offers_it(make: Make, device: Device, vocab: int) -> None:
    for name in attention_backends(device, "batch"):
        quiet = make(max_batch_tokens=4096, disable_prefix_cache=True, attention_backend=name)
        expected = one_by_one(quiet, watched(vocab))
        for chunk in (64, 1024):
            core = make(max_batch_tokens=chunk, attention_backend=name)
            for _ in range(2):  # with cached pages, too
                assert_same(core, watched(vocab) + others(60, 5, vocab), expected)


def test_the_check_notices(make: Make, alone: dict[str, Answer], vocab: int, backend: str) -> None:
    """The control: without the mode some bit differs."""
    if backend == "xeon":
        pytest.skip("its kernels are batch-invariant in every mode")
    core = make(enable_deterministic_inference=False, max_batch_tokens=64)
    answers, _ = serve(core, watched(vocab) + others(LARGEST - len(LENGTHS), 4, vocab))
    assert any(answers[name] != answer for name, answer in alone.items())
