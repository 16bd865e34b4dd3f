"""Whole engines on the accelerator beside the same engines on the CPU's reference."""

import random

import pytest

from inferplane.hw import Device
from inferplane.messages import Submit
from inferplane.plugins import Plugins
from inferplane.resolver import short_name
from inferplane.sampling_params import SamplingParams
from inferplane.testing.null import SETTINGS, NullBackend
from inferplane.testing.workload import Answer, requests, serve, tiny_engine
from tests.gpu.conftest import attention_backends

pytestmark = pytest.mark.gpu


def expected(model: str) -> dict[str, Answer]:
    plugins = Plugins()
    plugins.register("null", NullBackend(SETTINGS["dynamic"]))
    return serve(tiny_engine(model, plugins, "null"), requests())[0]


def difference(have: dict[str, Answer], want: dict[str, Answer]) -> float:
    """Largest difference of logprobs; the tokens must be the same."""
    worst = 0.0
    for name, answer in want.items():
        assert have[name].tokens == answer.tokens, name
        for a, b in zip(have[name].logprobs, answer.logprobs, strict=True):
            worst = max(worst, abs(a.logprob - b.logprob))
    return worst


@pytest.mark.parametrize("model", ["llama", "gemma3"])
def test_references_match_the_cpu(backend: str, model: str) -> None:
    engine = tiny_engine(model, Plugins(), backend, op=["*=reference"])
    answers, _ = serve(engine, requests())
    assert difference(answers, expected(model)) < 1e-3


@pytest.mark.parametrize("model", ["llama", "gemma3"])
@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("overlap", [True, False])
def test_kernels_match_the_cpu(backend: str, model: str, graphs: bool, overlap: bool) -> None:
    engine = tiny_engine(
        model, Plugins(), backend, disable_graphs=not graphs, disable_overlap=not overlap
    )
    answers, stats = serve(engine, requests())
    assert difference(answers, expected(model)) < 1e-3
    assert stats.pages_free + stats.pages_cached == stats.pages_total


@pytest.mark.parametrize("model", ["llama", "gemma3"])
def test_recorded_steps_have_the_bits_of_eager_ones(backend: str, model: str) -> None:
    both = []
    for off in (False, True):
        engine = tiny_engine(model, Plugins(), backend, disable_graphs=off, dtype="bfloat16")
        both.append(serve(engine, requests())[0])
    assert both[0] == both[1]


@pytest.mark.parametrize("quantization", ["fp8", "fp8-block", "int8"])
@pytest.mark.parametrize("graphs", [True, False])
def test_inputs_quantized_on_the_way_have_the_same_bits(
    backend: str, quantization: str, graphs: bool
) -> None:
    both, chosen = [], []
    for op in ([], ["norm_linear=reference", "norm_mlp=reference"]):
        engine = tiny_engine(
            "wide",
            Plugins(),
            backend,
            dtype="bfloat16",
            quantization=quantization,
            disable_graphs=not graphs,
            op=op,
        )
        decisions = engine.loaded.resolver.decisions.values()
        chosen.append({d.chosen.name for d in decisions if d.op in ("norm_linear", "norm_mlp")})
        both.append(serve(engine, requests())[0])
    if chosen[0] == {"reference"}:
        pytest.skip(f"{backend} does not quantize on the way")
    assert both[0] == both[1]


def greedy(vocab: int = 4096) -> list[Submit]:
    """Prompts longer than the token budget and ones that share a beginning."""
    choose = random.Random(1)
    shared = [choose.randrange(vocab) for _ in range(90)]
    return [
        Submit(
            request_id=f"g{index}",
            prompt=shared[: choose.choice((0, 33, 90))]
            + [choose.randrange(vocab) for _ in range(choose.choice((1, 7, 60, 333)))],
            params=SamplingParams(temperature=0.0, logprobs=5),
            stop_ids=[],
            max_tokens=choose.randint(8, 40),
            seed=0,
        )
        for index in range(16)
    ]


def agreement(have: dict[str, Answer], want: dict[str, Answer]) -> float:
    """The part of the tokens that is the same up to the first place where two tokens are about
    as likely and the other one is taken. Anything else is an error."""
    same = total = 0
    for name, answer in want.items():
        total += len(answer.tokens)
        for one, other in zip(have[name].logprobs, answer.logprobs, strict=True):
            if one.token != other.token:
                rival = {top[0]: top[1] for top in other.top}[one.token]
                assert other.logprob - rival < 0.2, name
                break
            assert abs(one.logprob - other.logprob) < 0.2, name
            same += 1
    return same / total


@pytest.mark.parametrize("graphs", [True, False])
def test_every_attention_gives_the_same_text(backend: str, device: Device, graphs: bool) -> None:
    def answers(attention: str) -> dict[str, Answer]:
        engine = tiny_engine(
            "wide",
            Plugins(),
            backend,
            dtype="bfloat16",
            max_running=8,
            max_batch_tokens=128,
            page_size=16,
            kv_cache_tokens=2048,
            max_model_len=1024,
            disable_graphs=not graphs,
            attention_backend=attention,
        )
        chosen = engine.loaded.resolver.decisions.values()
        used = {short_name(d.chosen.name) for d in chosen if d.op == "attention.paged"}
        assert used == {attention}
        return serve(engine, greedy())[0]

    want = answers("reference")
    found = {name: agreement(answers(name), want) for name in attention_backends(device, "run")}
    print(found)
    assert min(found.values()) > 0.5, found
