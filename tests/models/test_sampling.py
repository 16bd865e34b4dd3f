"""What sampling parameters do to tokens and logprobs, through the whole engine. The expected tokens
are worked out here from the raw logits of each step."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from inferplane.checkpoint.source import ModelSource
from inferplane.runner import runner
from tests.models.families import VOCAB, llama
from tests.models.oracle import Oracle, make
from tests.models.serving import Answer, Served, ask, random_prompt, serve
from tests.models.statistics import fits

PROMPT = random_prompt(21, VOCAB, 8)
NAMED = [5, 2, VOCAB - 1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> tuple[Oracle, ModelSource]:
    return make(tmp_path_factory.mktemp("llama"), llama(), seed=3)


@pytest.fixture(scope="module")
def served(made: tuple[Oracle, ModelSource]) -> Served:
    return serve(made[1], page_size=8)


@pytest.fixture(autouse=True)
def cold(served: Served) -> Iterator[None]:
    served.engine.scheduler.flush_cache()
    yield
    assert served.stats.running == served.stats.waiting == 0


def one(served: Served, **settings: Any) -> Answer:
    """One request on an otherwise idle engine."""
    return served.run([ask("one", PROMPT, **settings)])["one"]


def steps(served: Served, answer: Answer, name: str = "one") -> Iterator[tuple[int, torch.Tensor]]:
    """(index of the output token, a copy of the raw logits that it was chosen from)"""
    logits = served.logits(name)
    for index in range(len(answer.tokens)):
        yield index, logits[len(answer.prompt) + index - 1].clone()


def test_the_same_seed_gives_the_same_tokens_in_any_batch(served: Served) -> None:
    alone = one(served, seed=5, temperature=1.0, max_tokens=20)
    crowd = [
        ask(f"x{i}", random_prompt(i + 1, VOCAB), 15, seed=i, temperature=1.0) for i in range(20)
    ]
    mine = [ask("one", PROMPT, 20, seed=5, temperature=1.0)]
    answers = served.run(crowd[:9] + mine + crowd[9:14], crowd[14:])
    assert answers["one"].tokens == alone.tokens


def test_every_part_of_the_seed_counts(served: Served) -> None:
    seeds = [0, 1, 1 << 32, 1 << 63, 2**64 - 1]
    requests = [ask(f"{s} 0", PROMPT, 20, seed=s, temperature=1.0) for s in seeds]
    requests += [
        ask(f"1 {n}", PROMPT, 20, seed=1, sample_index=n, temperature=1.0) for n in (1, 2, 127)
    ]
    answers = served.run(requests)
    assert len({tuple(a.tokens) for a in answers.values()}) == len(requests)
    for name, answer in answers.items():
        seed, index = map(int, name.split())
        again = one(served, seed=seed, sample_index=index, temperature=1.0, max_tokens=20)
        assert again.tokens == answer.tokens


@pytest.mark.parametrize("filter", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_the_strictest_filter_is_greedy(filter: dict[str, Any], served: Served) -> None:
    greedy = one(served, max_tokens=25)
    for temperature in (0.3, 1.0, 50.0):
        drawn = one(served, max_tokens=25, temperature=temperature, **filter)
        assert drawn.tokens == greedy.tokens
    assert one(served, max_tokens=25, temperature=1.0).tokens != greedy.tokens


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize(
    ("repetition", "frequency", "presence"),
    [(1.5, 0, 0), (0.6, 0, 0), (1, 1.5, 0), (1, -0.7, 0), (1, 0, 2.0), (1.3, 0.4, 0.6)],
)
def test_penalties(
    repetition: float, frequency: float, presence: float, depth: int, served: Served
) -> None:
    """Beside a request without any, and in a row that an earlier one used."""
    served.engine.loaded.depth = depth
    settings = {
        "repetition_penalty": repetition,
        "frequency_penalty": frequency,
        "presence_penalty": presence,
    }
    plain = one(served, max_tokens=30)
    answers = served.run([ask("free", PROMPT, 30), ask("one", PROMPT, 30, **settings)])
    served.engine.loaded.depth = 0
    assert answers["free"].tokens == plain.tokens
    answer = answers["one"]
    assert answer.tokens != plain.tokens
    for index, logits in steps(served, answer):
        output = answer.tokens[:index]
        changed = logits.clone()
        for token in set(PROMPT + output):
            x = changed[token]
            changed[token] = x / repetition if x > 0 else x * repetition
        for token in set(output):
            changed[token] -= frequency * output.count(token) + presence
        assert answer.tokens[index] == changed.argmax()


def test_logit_bias(served: Served) -> None:
    plain = one(served)
    assert one(served, logit_bias={77: 100.0}).tokens == [77] * 8
    answers = served.run(
        [ask("free", PROMPT), ask("one", PROMPT, logit_bias={plain.tokens[0]: -100.0, 3: 1.5})]
    )
    assert answers["free"].tokens == plain.tokens
    for index, logits in steps(served, answers["one"]):
        logits[plain.tokens[0]] -= 100.0
        logits[3] += 1.5
        assert answers["one"].tokens[index] == logits.argmax()
    assert one(served).tokens == plain.tokens, "the bias stayed in its row"


def test_stop_ids_end_a_request(served: Served) -> None:
    plain = one(served, max_tokens=12)
    assert (plain.finish_reason, plain.stop_token, len(plain.tokens)) == ("length", None, 12)
    stop = plain.tokens[3]
    answer = one(served, max_tokens=12, stop_ids=[300, stop])
    end = plain.tokens.index(stop) + 1
    assert (answer.finish_reason, answer.stop_token) == ("stop", stop)
    assert answer.tokens == plain.tokens[:end]


@pytest.mark.parametrize("depth", [0, 1])
def test_min_tokens_forbids_stop_ids(depth: int, served: Served) -> None:
    plain = one(served, max_tokens=12)
    stop = [plain.tokens[0], plain.tokens[5]]
    served.engine.loaded.depth = depth
    answer = one(served, max_tokens=12, stop_ids=stop, min_tokens=6)
    served.engine.loaded.depth = 0
    assert len(answer.tokens) >= 6
    for index, logits in steps(served, answer):
        if index < 6:
            logits[stop] = -torch.inf
        assert answer.tokens[index] == logits.argmax()
    ended = answer.tokens[-1] in stop
    assert answer.finish_reason == ("stop" if ended else "length")
    assert set(answer.tokens[:6]).isdisjoint(stop)
    assert not set(answer.tokens[6:-1]) & set(stop)


def test_min_tokens_applies_to_stop_ids_that_come_later(served: Served) -> None:
    """The first token after min_tokens may stop, also beside a request that may not yet."""
    plain = one(served, max_tokens=12)
    stop = plain.tokens[4]
    before = plain.tokens.index(stop)
    mine = ask("one", PROMPT, 12, stop_ids=[stop], min_tokens=before)
    other = ask("other", PROMPT, 12, stop_ids=[stop], min_tokens=12)
    answers = served.run([mine, other])
    assert answers["one"].tokens == plain.tokens[: before + 1]
    assert stop not in answers["other"].tokens


@pytest.mark.parametrize("top", [0, 3, 20])
def test_logprobs_are_of_the_raw_distribution(top: int, served: Served) -> None:
    settings: dict[str, Any] = {
        "temperature": 1.7,
        "top_k": 40,
        "repetition_penalty": 1.4,
        "presence_penalty": 0.5,
        "logit_bias": {9: 5.0},
        "min_tokens": 3,
        "stop_ids": [4],
    }
    mine = ask("one", PROMPT, 12, logprobs=top, **settings)
    answer = served.run([ask("more", PROMPT, 5, logprobs=7), mine, ask("none", PROMPT)])["one"]
    assert len(answer.logprobs) == len(answer.tokens)
    for index, logits in steps(served, answer):
        check_score(answer.logprobs[index], answer.tokens[index], logits, top)


def test_logprobs_of_named_tokens(made: tuple[Oracle, ModelSource], served: Served) -> None:
    """By transformers' logits, beside requests that name others, or none, or want no logprobs."""
    oracle, _ = made
    ids = {"one": [7, 3, 3, VOCAB - 1], "two": [0], "three": list(range(VOCAB))}
    wants: dict[str, Any] = {"temperature": 1.0, "repetition_penalty": 1.5, "min_tokens": 2}
    mine = [
        ask(name, random_prompt(20 + i, VOCAB), 9, logprobs=i, logprob_token_ids=some, **wants)
        for i, (name, some) in enumerate(ids.items())
    ]
    beside = [ask("plain", PROMPT, 9), ask("scored", PROMPT[:7], 9, logprobs=2)]
    answers = served.run([beside[0], mine[0], beside[1], mine[1]], [mine[2]])
    for name, some in ids.items():
        answer = answers[name]
        logits = oracle.logits(answer.computed)[len(answer.prompt) - 1 :].log_softmax(-1)
        assert len(answer.logprobs) == len(answer.tokens) == 9
        for row, score in zip(logits, answer.logprobs, strict=True):
            assert score.wanted == pytest.approx(row[some].tolist(), abs=1e-4)
    assert all(score.wanted == [] for score in answers["scored"].logprobs)


def check_score(score: Any, token: int, logits: torch.Tensor, top: int) -> None:
    expected = logits.double().log_softmax(-1)
    assert score.token == token
    assert score.logprob == pytest.approx(float(expected[token]), abs=1e-4)
    assert score.rank == int((logits > logits[token]).sum()) + 1
    best = expected.topk(top)
    assert [t for t, _ in score.top] == best.indices.tolist()
    assert [p for _, p in score.top] == pytest.approx(best.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("chunk", [16, 2048])
def test_prompt_logprobs(
    chunk: int,
    cached: bool,
    made: tuple[Oracle, ModelSource],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scored five rows at a time, so that a prompt takes several parts."""
    monkeypatch.setattr(runner, "LOGITS_BYTES", 5 * 4 * VOCAB)
    oracle, source = made
    served = serve(source, page_size=8, max_batch_tokens=chunk)
    prompt = random_prompt(75, VOCAB)
    if cached:
        served.run([ask("warm", prompt)])
    start = 40 if cached else 0
    mine = ask(
        "one", prompt, 3, prompt_logprobs=4, prompt_logprobs_start=start, logprob_token_ids=NAMED
    )
    beside = [ask("a", PROMPT, 9), ask("b", PROMPT[::-1], 9, prompt_logprobs=0)]
    answers = served.run([beside[0], mine, beside[1]])
    scores = answers["one"].prompt_logprobs
    assert scores is not None and scores[0] is None and len(scores) == len(prompt)
    logits = oracle.logits(prompt)
    assert scores[:start] == [None] * start
    for position in range(max(1, start), len(prompt)):
        check_score(score := scores[position], prompt[position], row := logits[position - 1], 4)
        assert score is not None
        assert score.wanted == pytest.approx(row.log_softmax(-1)[NAMED].tolist(), abs=1e-4)
    assert answers["a"].prompt_logprobs is None
    others = answers["b"].prompt_logprobs
    assert others is not None and len(others) == len(PROMPT) and others[3].top == []


def test_prompt_logprobs_of_one_token(served: Served) -> None:
    answer = served.run([ask("one", [5], 2, prompt_logprobs=2)])["one"]
    assert answer.prompt_logprobs == [None]


@pytest.mark.parametrize("seed", [0, 1])
def test_frequencies_of_tokens(seed: int, made: tuple[Oracle, ModelSource]) -> None:
    """Two kinds of requests side by side: each row draws by its own settings."""
    oracle, source = made
    served = serve(source, max_running=512, max_batch_tokens=8192)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.9, "top_k": 6},
        {"temperature": 2.0, "top_p": 0.8},
    ]
    prompt = PROMPT[:4]
    requests = [
        ask(f"{i} {n}", prompt, 1, seed=1000 * seed + n, **kind)
        for n in range(500)
        for i, kind in enumerate(kinds)
    ]
    answers = served.run(requests)
    logits = oracle.logits(prompt)[-1].double()
    for i, kind in enumerate(kinds):
        drawn = [answers[f"{i} {n}"].tokens[0] for n in range(500)]
        kept = torch.zeros_like(logits)
        share = (logits / kind["temperature"]).softmax(-1)
        order = share.argsort(descending=True).tolist()
        reached = 0.0
        for rank, token in enumerate(order):
            if rank >= kind.get("top_k", VOCAB) or reached >= kind.get("top_p", 1.0):
                break
            kept[token] = share[token]
            reached += float(share[token])
        counts = torch.bincount(torch.tensor(drawn), minlength=VOCAB)
        assert fits(counts.tolist(), (kept / kept.sum()).tolist())
