"""--enable-deterministic-inference: the tokens and the logprobs of a request, of its output and of
its prompt, have the same bits whatever else is in the batch, however prompts are cut, with and
without cached pages, after retraction, and with steps in flight."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from inferplane.checkpoint.source import ModelSource
from inferplane.messages import Submit
from tests.models.families import VOCAB, gemma3, llama
from tests.models.oracle import make
from tests.models.serving import Answer, ask, random_prompt, serve

WIDE = {"vocab_size": 1031, "hidden_size": 72, "intermediate_size": 211, "num_hidden_layers": 2}
MODELS = {
    "llama": llama(**WIDE, num_key_value_heads=1),
    "gemma3": gemma3(**WIDE, sliding_window_pattern=2, final_logit_softcapping=5.0),
}
DEVICES = ("plain", "xeon")
LENGTHS = (1, 15, 16, 40, 90, 203)


@dataclass(frozen=True, slots=True)
class Case:
    """A model on a device: the reference ops alone, or the kernels of the machine's backend."""

    source: ModelSource
    device: str


@pytest.fixture(scope="module", params=[(m, d) for d in DEVICES for m in MODELS], ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Case:
    model, device = request.param
    return Case(make(tmp_path_factory.mktemp(model), MODELS[model])[1], device)


TYPES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8 pages": {"dtype": "bfloat16", "kv_cache_dtype": "int8"},
}


@pytest.fixture(params=TYPES)
def dtype(request: pytest.FixtureRequest, case: Case) -> str:
    """The name of one of TYPES."""
    name: str = request.param
    if name == "int8 pages" and case.device == "plain":
        pytest.skip("references read such pages as they read others, once these are converted")
    return name


def watched() -> list[Submit]:
    """The requests whose bits must not change: greedy and at random, with every kind of filter."""
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 0.8, "prompt_logprobs": 3, "logprob_token_ids": [4, 9]},
        {"temperature": 1.0, "top_p": 0.8, "top_k": 30},
        {"temperature": 0.7, "repetition_penalty": 1.3, "presence_penalty": 0.4},
        {"prompt_logprobs": 0, "logit_bias": {5: 4.0}},
        {"temperature": 1.2, "min_p": 0.05, "frequency_penalty": 0.5},
    ]
    return [
        ask(f"w{n}", random_prompt(n, VOCAB), 12, seed=2**63 + n, logprobs=4, **kind)
        for n, kind in zip(LENGTHS, kinds, strict=True)
    ]


def others(count: int, seed: int) -> list[Submit]:
    """Requests that only keep the engine busy."""
    choose = random.Random(seed)
    return [
        ask(
            f"o{i}",
            random_prompt(choose.randint(1, 120), VOCAB, seed + i),
            choose.randint(1, 20),
            temperature=choose.choice([0.0, 1.0]),
            top_k=choose.choice([0, 7]),
            logprobs=choose.choice([None, 2]),
        )
        for i in range(count)
    ]


def bits(answers: dict[str, Answer]) -> dict[str, Any]:
    """Everything about the watched requests that must not change; floats compare exactly."""
    return {
        name: (
            answer.tokens,
            [(s.token, s.logprob, s.rank, s.top, s.wanted) for s in answer.logprobs],
            [
                s and (s.token, s.logprob, s.rank, s.top, s.wanted)
                for s in answer.prompt_logprobs or []
            ],
        )
        for name, answer in answers.items()
        if name.startswith("w")
    }


def run(
    case: Case,
    dtype: str,
    requests: Sequence[Submit],
    later: Sequence[Submit] = (),
    deterministic: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    served = serve(
        case.source,
        device=case.device,
        **TYPES[dtype],
        enable_deterministic_inference=deterministic,
        page_size=8,
        **settings,
    )
    return bits(served.run(requests, later))


def alone(case: Case, dtype: str, deterministic: bool = True) -> dict[str, Any]:
    """Each watched request by itself, cold, its prompt whole."""
    served = serve(
        case.source,
        device=case.device,
        **TYPES[dtype],
        enable_deterministic_inference=deterministic,
        page_size=8,
    )
    found: dict[str, Any] = {}
    for submit in watched():
        served.engine.scheduler.flush_cache()
        found |= bits(served.run([submit]))
    return found


@pytest.fixture(scope="module")
def expected(case: Case) -> dict[str, Any]:
    types = [name for name in TYPES if name != "int8 pages" or case.device != "plain"]
    return {dtype: alone(case, dtype) for dtype in types}


@pytest.mark.parametrize("batch", [2, 7, 64])
def test_batch_size(batch: int, case: Case, dtype: str, expected: Any) -> None:
    """Each watched request among others, in another place each time, decoding side by side."""
    found: dict[str, Any] = {}
    mine = watched()
    groups = [mine[:1], mine[1:2], mine[2:]] if batch == 2 else [mine]
    for place, group in enumerate(groups):
        crowd = others(max(0, batch - len(group)), seed=batch)
        middle = len(crowd) * (place + 1) // (len(groups) + 1)
        found |= run(case, dtype, crowd[:middle] + group + crowd[middle:])
    assert found == expected[dtype]


def test_arriving_one_by_one(case: Case, dtype: str, expected: Any) -> None:
    crowd = others(30, seed=3)
    mixed = [request for pair in zip(watched(), crowd, strict=False) for request in pair]
    assert run(case, dtype, crowd[6:], mixed) == expected[dtype]


@pytest.mark.parametrize("chunk", [16, 64])
def test_chunk_size(chunk: int, case: Case, dtype: str, expected: Any) -> None:
    crowd = others(4, seed=chunk)
    assert run(case, dtype, crowd + watched(), max_batch_tokens=chunk) == expected[dtype]


def test_cached_pages(case: Case, dtype: str, expected: Any) -> None:
    served = serve(
        case.source,
        device=case.device,
        **TYPES[dtype],
        enable_deterministic_inference=True,
        page_size=8,
    )
    served.run(others(5, seed=1) + watched())
    answers = served.run(watched() + others(5, seed=2))
    assert bits(answers) == expected[dtype]
    cached = [answers[f"w{n}"].cached_tokens for n in LENGTHS]
    assert cached == [0, 0, 8, 32, 0, 200], "prompt logprobs are computed, not taken from the cache"


@pytest.mark.parametrize(("depth", "cache"), [(0, True), (0, False), (1, True)])
def test_retraction(depth: int, cache: bool, case: Case, dtype: str, expected: Any) -> None:
    """The requests that come first outgrow the memory and push others out."""
    served = serve(
        case.source,
        device=case.device,
        **TYPES[dtype],
        depth=depth,
        enable_deterministic_inference=True,
        page_size=8,
        kv_cache_tokens=232,
        disable_prefix_cache=not cache,
    )
    crowd = [
        ask(
            f"w crowd {i}",
            random_prompt(5 + i, VOCAB),
            60,
            temperature=i % 2,
            frequency_penalty=i % 3 / 2,
            logprobs=1,
        )
        for i in range(8)
    ]
    roomy = run(case, dtype, crowd)
    assert bits(served.run(crowd + watched())) == expected[dtype] | roomy
    assert served.stats.retractions >= 4


@pytest.mark.parametrize("chunk", [2048, 40])
def test_a_step_in_flight(chunk: int, case: Case, dtype: str, expected: Any) -> None:
    crowd = others(9, seed=chunk)
    found = run(case, dtype, crowd[:5] + watched(), crowd[5:], max_batch_tokens=chunk, depth=1)
    assert found == expected[dtype]


@pytest.fixture
def team() -> Iterator[None]:
    """Three threads: they divide few sizes evenly, so that their parts end within a vector."""
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("team")
def test_with_a_team_of_threads(case: Case) -> None:
    crowd = others(5, seed=12)
    found = run(case, "float32", crowd + watched(), max_batch_tokens=150)
    assert found == alone(case, "float32")


def test_control_without_the_mode_bits_change(case: Case) -> None:
    """Else all of the above would prove nothing."""
    if case.device != "plain":
        pytest.skip("its kernels are batch-invariant in every mode")
    plain = alone(case, "float32", deterministic=False)
    crowd = others(40, seed=7)
    batched = run(case, "float32", crowd + watched(), deterministic=False, max_batch_tokens=64)
    assert plain != batched
