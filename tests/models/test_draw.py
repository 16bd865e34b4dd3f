"""The reference of sampling.draw: how often it takes each token, under every filter."""

from typing import Any

import pytest
import torch

from inferplane.hw import DeviceInfo, TorchDevice
from inferplane.hw.ops import TABLE
from inferplane.hw.ops.sampling import SamplingSpec
from tests.models.statistics import fits

V, ROWS = 37, 20_000


class Context:
    device = TorchDevice(DeviceInfo(backend="plain", torch_device="cpu", name="plain torch"))


def draw(logits: torch.Tensor, rows: int, spec: SamplingSpec, **settings: Any) -> torch.Tensor:
    """One token per row, all from the same logits; rows differ in seed, index or position."""
    run = TABLE["sampling.draw"].reference.build(spec, Context()).run  # type: ignore[arg-type]
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "vary": "position"}
    options |= settings
    vary = options["vary"]
    count = torch.arange(rows, dtype=torch.int32)
    fixed = torch.full((rows,), 7, dtype=torch.int32)
    low = count if vary == "seed" else fixed
    high = count if vary == "seed high" else fixed
    tokens: torch.Tensor = run(
        logits.expand(rows, -1),
        torch.full((rows,), options["temperature"]),
        torch.full((rows,), options["top_k"], dtype=torch.int32),
        torch.full((rows,), options["top_p"]),
        torch.full((rows,), options["min_p"]),
        torch.stack([low, high], dim=1),
        count if vary == "sample index" else fixed,
        count if vary == "position" else fixed,
        greedy=False,
        unfiltered=options == options | {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
    )
    return tokens


def expected(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    **_: Any,
) -> list[float]:
    """The same distribution by its definition, in float64."""
    share = (logits.double() / temperature).softmax(-1)
    order = share.argsort(descending=True).tolist()[: top_k or V]
    among = sum(float(share[t]) for t in order)
    kept, reached = [], 0.0
    for token in order:
        if reached / among >= top_p:
            break
        kept.append(token)
        reached += float(share[token])
    kept = [t for t in kept if share[t] >= min_p * share[order[0]]]
    total = sum(float(share[t]) for t in kept)
    return [float(share[t]) / total if t in kept else 0.0 for t in range(V)]


LOGITS = torch.randn(V, generator=torch.Generator().manual_seed(1)) * 2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"vary": "seed"},
        {"vary": "seed high"},
        {"vary": "sample index"},
        {"temperature": 0.4},
        {"temperature": 3.0},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"top_k": 12, "top_p": 0.9, "temperature": 1.5},
        {"top_k": 20, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8},
    ],
    ids=str,
)
def test_frequencies(settings: dict[str, Any]) -> None:
    tokens = draw(LOGITS, ROWS, SamplingSpec(vocab=V), **settings)
    counts = torch.bincount(tokens, minlength=V).tolist()
    assert fits(counts, expected(LOGITS, **settings))


def test_control_a_slightly_different_temperature_does_not_fit() -> None:
    tokens = draw(LOGITS, ROWS, SamplingSpec(vocab=V))
    counts = torch.bincount(tokens, minlength=V).tolist()
    assert not fits(counts, expected(LOGITS, temperature=1.1))
    assert not fits(counts, expected(LOGITS, top_k=V - 10))


def test_rows_one_by_one_draw_the_same() -> None:
    settings = {"top_k": 12, "top_p": 0.9, "temperature": 1.5}
    plain = draw(LOGITS, 200, SamplingSpec(vocab=V), **settings)
    single = draw(LOGITS, 200, SamplingSpec(vocab=V, determinism="batch"), **settings)
    assert plain.tolist() == single.tolist()


def test_consecutive_draws_are_independent() -> None:
    """Pairs of neighbours in position: the joint frequencies are the products."""
    few = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    tokens = draw(few, ROWS, SamplingSpec(vocab=4)).long()
    pairs = torch.bincount(tokens[0::2] * 4 + tokens[1::2], minlength=16).tolist()
    share = few.exp()
    assert fits(pairs, torch.outer(share, share).flatten().tolist())


@pytest.mark.parametrize("determinism", ["run", "batch"])
def test_the_most_likely_tokens_in_order_with_ties(determinism: Any) -> None:
    """Lower ids first among equals, whatever number is asked for; as a stable sort has it."""
    coarse = (torch.randn(9, 501, generator=torch.Generator().manual_seed(2)) * 3).round() / 2
    coarse[0, 5], coarse[0, 4] = 0.0, -0.0
    spec = SamplingSpec(vocab=501, determinism=determinism)
    score = TABLE["sampling.logprobs"].reference.build(spec, Context()).run
    whole = coarse.sort(dim=-1, descending=True, stable=True).indices
    for top in (0, 1, 2, 5, 20, 501):
        _, _, ids, values = score(coarse, torch.zeros(9, dtype=torch.int32), top)
        assert ids.tolist() == whole[:, :top].tolist()
        assert torch.equal(values, coarse.log_softmax(-1).gather(1, ids.long()))
