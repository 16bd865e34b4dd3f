"""Whole engines on the accelerator beside the same engines on the CPU's reference."""

import pytest

from inferplane.plugins import Plugins
from inferplane.testing.null import SETTINGS, NullBackend
from inferplane.testing.workload import Answer, requests, serve, tiny_engine

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
