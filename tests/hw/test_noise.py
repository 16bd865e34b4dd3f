"""The noise of sampling is what docs/noise.md says, bit for bit."""

import math
import random
import re

import pytest
import torch

from inferplane.hw.noise import gumbel, philox, uniforms, words
from inferplane.hw.ops import TABLE
from inferplane.hw.ops.sampling import SamplingSpec
from inferplane.testing.op_run import Built, cpu
from tests.hw.backends import REPO
from tests.hw.limbs import multiply, word
from tests.hw.limbs import philox as philox_by_limbs

PAGE = (REPO / "docs/noise.md").read_text()


def table(title: str) -> list[list[str]]:
    """The cells of the table under a heading of the page."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows[1:]]


def numbers(cell: str) -> list[int]:
    return [int(x, 0) for x in re.split(r"[ ,]+", cell)]


def tensor(*values: int) -> torch.Tensor:
    """i32 tensor of unsigned words."""
    return torch.tensor([v - 2**32 if v >= 2**31 else v for v in values], dtype=torch.int32)


def seeds(*values: int) -> torch.Tensor:
    return torch.stack([tensor(v & 0xFFFFFFFF, v >> 32) for v in values])


def test_known_answers_of_philox() -> None:
    rows = table("Known answers")
    assert len(rows) == 3
    for counter, key, answer in ((numbers(c) for c in row) for row in rows):
        assert list(philox_by_limbs(tuple(counter), (key[0], key[1]))) == answer
        got = philox([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
        assert [int(x) for x in got] == answer


def test_words_and_uniforms_of_the_page() -> None:
    rows = table("Words and uniforms")
    assert len(rows) >= 8
    for cells in rows:
        seed, index, position, token, expected = (int(c, 0) for c in cells[:5])
        assert word(seed, index, position, token) == expected
        at = (seeds(seed), tensor(index), tensor(position), token + 1)
        assert int(words(*at)[0, token]) == expected
        assert float(uniforms(*at)[0, token]) == float.fromhex(cells[5])
        exact = (expected // 512 + 0.5) / 2**23
        assert float.fromhex(cells[5]) == exact
        noise = -math.log(-math.log(exact))
        assert float(cells[6]) == pytest.approx(noise, abs=5e-7)
        assert float(gumbel(*at)[0, token]) == pytest.approx(noise, rel=1e-6, abs=1e-6)


def test_words_agree_with_32_bit_arithmetic() -> None:
    choose = random.Random(4)
    edges = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]
    cases = [
        (choose.getrandbits(64), choose.choice(edges), choose.choice(edges)) for _ in range(30)
    ]
    cases += [(2**64 - 1, 2**32 - 1, 2**32 - 1), (0, 0, 0)]
    vocab = 53
    got = words(
        seeds(*(c[0] for c in cases)),
        tensor(*(c[1] for c in cases)),
        tensor(*(c[2] for c in cases)),
        vocab,
    )
    assert got.shape == (len(cases), vocab)
    for row, case in enumerate(cases):
        assert got[row].tolist() == [word(*case, token) for token in range(vocab)]


def test_limbs_multiply() -> None:
    choose = random.Random(5)
    for _ in range(1000):
        a, b = choose.getrandbits(32), choose.getrandbits(32)
        assert multiply(a, b) == divmod(a * b, 2**32)
    assert multiply(2**32 - 1, 2**32 - 1) == divmod((2**32 - 1) ** 2, 2**32)


def test_no_uniform_is_0_or_1_and_no_noise_is_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words at both ends, where a 24 bit uniform would round to 1."""
    ends = torch.tensor([[0, 511, 512, 2**32 - 1, 2**32 - 512, 2**31, 2**31 - 1, 0]])
    monkeypatch.setattr("inferplane.hw.noise.words", lambda *_: ends)
    got = uniforms(seeds(0), tensor(0), tensor(0), 8)
    assert got.dtype == torch.float32
    assert got[0].tolist() == [(int(w) // 512 + 0.5) / 2**23 for w in ends[0]]
    assert float(got.min()) == 2.0**-24
    assert float(got.max()) == 1 - 2.0**-24
    assert bool(gumbel(seeds(0), tensor(0), tensor(0), 8).isfinite().all())


def test_each_part_of_the_address_changes_the_noise() -> None:
    def at(seed: int = 7, index: int = 1, position: int = 9) -> list[int]:
        return words(seeds(seed), tensor(index), tensor(position), 64)[0].tolist()

    other = [at(seed=8), at(seed=7 + 2**32), at(index=2), at(position=10), at(index=9, position=1)]
    made = [at(), *other]
    assert all(len(set(a) & set(b)) == 0 for i, a in enumerate(made) for b in made[:i])
    assert at() == at()


def test_a_longer_vocabulary_does_not_change_the_noise() -> None:
    where = (seeds(3, 4), tensor(0, 1), tensor(2, 3))
    assert words(*where, 101)[:, :50].equal(words(*where, 50))


def draw(logits: torch.Tensor, seed: int, **values: float) -> list[int]:
    """Tokens for the positions 0, 1, 2, ... of one sequence."""
    n = len(logits)
    inputs = {
        "logits": logits.contiguous(),
        "temperature": torch.full((n,), values.get("temperature", 1.0)),
        "top_k": torch.full((n,), int(values.get("top_k", 0)), dtype=torch.int32),
        "top_p": torch.full((n,), values.get("top_p", 1.0)),
        "min_p": torch.full((n,), values.get("min_p", 0.0)),
        "seed": seeds(*[seed] * n),
        "sample_index": torch.zeros(n, dtype=torch.int32),
        "position": torch.arange(n, dtype=torch.int32),
    }
    spec = SamplingSpec(vocab=logits.shape[1])
    built = Built("sampling.draw", TABLE["sampling.draw"].reference, spec, cpu())
    return built(inputs).results[0].tolist()


def test_tokens_of_the_page() -> None:
    rows = table("Tokens")
    assert len(rows) >= 3
    logits = torch.tensor([[math.log(i + 1) for i in range(16)]]).expand(8, -1)
    for seed, settings, tokens in rows:
        values = {k: float(v) for k, v in re.findall(r"(\w+) ([\d.]+)", settings)}
        assert draw(logits, int(seed, 0), **values) == numbers(tokens)


def test_tokens_of_the_page_from_the_specification_alone() -> None:
    for seed, settings, tokens in table("Tokens"):
        values = {k: float(v) for k, v in re.findall(r"(\w+) ([\d.]+)", settings)}
        for position, token in enumerate(numbers(tokens)):
            scores = []
            for candidate in range(16):
                u = (word(int(seed, 0), 0, position, candidate) // 512 + 0.5) / 2**23
                logit = math.log(candidate + 1) / values.get("temperature", 1.0)
                kept = candidate >= 16 - values.get("top_k", 16)
                scores.append(logit - math.log(-math.log(u)) if kept else -math.inf)
            assert scores.index(max(scores)) == token


def test_draws_follow_the_distribution() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0, 0.0, 10.0])
    count = 20000
    tokens = draw(weights.log().expand(count, -1), seed=11)
    share = torch.bincount(torch.tensor(tokens), minlength=5) / count
    expected = weights / weights.sum()
    assert (share - expected).abs().max() < 4 * 0.5 / math.sqrt(count)
    assert share[3] == 0


def test_top_p_of_1_keeps_even_the_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """`unfiltered` saves work, not bits. The probabilities of these rows sum to more than 1 in
    float32 long before their end, and the noise of their least likely token is large."""
    vocab, n = 50000, 8
    logits = torch.randn(n, vocab, generator=torch.Generator().manual_seed(0)) * 4
    least = logits.argmin(-1)
    noise = torch.zeros(n, vocab)
    noise[torch.arange(n), least] = 100.0
    monkeypatch.setattr("inferplane.hw.ops.sampling.gumbel", lambda *_: noise)
    inputs = {
        "logits": logits,
        "temperature": torch.ones(n),
        "top_k": torch.zeros(n, dtype=torch.int32),
        "top_p": torch.ones(n),
        "min_p": torch.zeros(n),
        "seed": seeds(*range(n)),
        "sample_index": torch.zeros(n, dtype=torch.int32),
        "position": torch.zeros(n, dtype=torch.int32),
    }
    spec = SamplingSpec(vocab=vocab)
    built = Built("sampling.draw", TABLE["sampling.draw"].reference, spec, cpu())
    for unfiltered in (False, True):
        assert built(inputs | {"unfiltered": unfiltered}).results[0].equal(least.int())
