"""SmolLM2 with its real weights, and a random model of the shape of Gemma 3 270M, against
transformers, up to 2,000 tokens."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from inferplane.checkpoint.source import ModelSource
from tests.models.demo import GEMMA3_270M, english, reference, smollm2
from tests.models.oracle import Oracle, make
from tests.models.serving import ask, random_prompt, serve

THREADS = 1
TOP = 5


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    made = Oracle(reference(torch.float32), chunk=500)
    yield made
    print(f"smollm2: widest difference {made.widest:.1e}, bounds {made.bounds}")


@pytest.fixture(scope="module")
def words() -> list[int]:
    return english()


def test_smollm2(oracle: Oracle, words: list[int]) -> None:
    """A mixed batch, then the longest prompt again from the cache."""
    served = serve(smollm2()[0], max_batch_tokens=120)
    requests = [ask(f"p{n}", words[n : 2 * n], 4) for n in (1, 2, 17, 64, 330)]
    answers = served.run(requests)
    for name, answer in answers.items():
        oracle.check(served, name, answer)
    again = served.run(requests[-1:])["p330"]
    assert again.cached_tokens == 320
    oracle.check(served, "p330", again)


@pytest.mark.slow
def test_smollm2_long(oracle: Oracle, words: list[int]) -> None:
    served = serve(smollm2()[0], max_batch_tokens=768)
    answer = served.run([ask("long", words[:2000], 3)])["long"]
    oracle.check(served, "long", answer)


def test_smollm2_bfloat16(oracle: Oracle, words: list[int]) -> None:
    """In bfloat16 the logprobs of the reference's five most likely tokens are off by at most 1.5
    times what transformers' own are off, at the worst position and on average."""
    served = serve(smollm2()[0], dtype="bfloat16", max_batch_tokens=100)
    half = Oracle(reference(torch.bfloat16))
    ours, theirs = [], []
    for begin in (0, 500, 1000):
        ids = words[begin : begin + 200]
        exact = oracle.logits(ids).log_softmax(-1)
        top = exact.topk(TOP).indices

        def off(logits: torch.Tensor, exact: Any = exact, top: Any = top) -> torch.Tensor:
            return (logits.float().log_softmax(-1) - exact).gather(1, top).abs()

        served.run([ask("p", ids, 1)])
        rows = served.logits("p")
        ours.append(off(torch.stack([rows[i] for i in range(len(ids))])))
        theirs.append(off(half.logits(ids)))
    mine, own = torch.cat(ours), torch.cat(theirs)
    print(f"bfloat16, off by: ours {mine.max():.3f}, mean {mine.mean():.4f}; ", end="")
    print(f"transformers {own.max():.3f}, mean {own.mean():.4f}")
    assert mine.max() <= 1.5 * own.max()
    assert mine.mean() <= 1.5 * own.mean()


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: Any) -> Iterator[tuple[Oracle, ModelSource]]:
    """The shape of the 270M model, but for a vocabulary of 4,096 instead of 262,144, which would
    only cost memory."""
    config = GEMMA3_270M(vocab_size=4096)
    oracle, source = make(tmp_path_factory.mktemp("gemma3"), config, seed=4)
    oracle.chunk = 500
    yield oracle, source
    print(f"gemma3: widest difference {oracle.widest:.1e}, bounds {oracle.bounds}")


def test_gemma3_270m_shape(gemma3: tuple[Oracle, ModelSource]) -> None:
    oracle, source = gemma3
    served = serve(source, max_batch_tokens=250)
    requests = [ask(f"p{n}", random_prompt(n, 4096), 4) for n in (1, 33, 600)]
    for name, answer in served.run(requests).items():
        oracle.check(served, name, answer)
    again = served.run(requests[-1:])["p600"]
    assert again.cached_tokens == 592
    oracle.check(served, "p600", again)
    assert float(oracle.expect([*again.computed])[0].std()) > 1, "the logits say something"


@pytest.mark.slow
def test_gemma3_270m_shape_long(gemma3: tuple[Oracle, ModelSource]) -> None:
    oracle, source = gemma3
    served = serve(source, max_batch_tokens=768)
    answer = served.run([ask("long", random_prompt(2000, 4096), 4)])["long"]
    oracle.check(served, "long", answer)
