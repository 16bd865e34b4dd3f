"""Float32 logits at all positions against transformers: every family, prefill whole and chunked,
cold and cached, batches of prefill and decode."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inferplane.checkpoint.source import ModelSource
from tests.models.families import FAMILIES, VOCAB
from tests.models.oracle import Oracle, make
from tests.models.serving import Served, ask, random_prompt, serve

LENGTHS = (1, 2, 16, 17, 65, 150)


@dataclass(frozen=True)
class Family:
    oracle: Oracle
    source: ModelSource

    def check(self, served: Served, requests: list[Any], later: Any = ()) -> dict[str, Any]:
        answers = served.run(requests, later)
        for name, answer in answers.items():
            self.oracle.check(served, name, answer)
        return answers


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Family]:
    name = request.param
    oracle, source = make(tmp_path_factory.mktemp(name), FAMILIES[name])
    yield Family(oracle, source)
    print(f"{name}: widest difference {oracle.widest:.1e}, bounds {oracle.bounds}")


def prompts() -> list[Any]:
    return [ask(f"p{n}", random_prompt(n, VOCAB)) for n in LENGTHS]


def test_prompts_whole_in_one_step(family: Family) -> None:
    served = serve(family.source)
    family.check(served, prompts())
    assert served.plans[0].q_lens == list(LENGTHS)


def test_chunks_beside_decodes(family: Family) -> None:
    served = serve(family.source, max_batch_tokens=23, page_size=8)
    first, *others = prompts()
    family.check(served, [first], others)
    mixed = [p for p in served.plans if p.num_decode and p.num_decode < len(p.rows)]
    assert mixed
    assert max(len(p.tokens) for p in served.plans) <= 23


def test_cached_prefix(family: Family) -> None:
    served = serve(family.source, page_size=8)
    family.check(served, prompts())
    answers = family.check(served, prompts())
    assert [a.cached_tokens for a in answers.values()] == [0, 0, 8, 16, 64, 144]
    longer = [ask(f"l{n}", random_prompt(n, VOCAB) + random_prompt(9, VOCAB, 5)) for n in LENGTHS]
    answers = family.check(served, longer)
    assert [a.cached_tokens for a in answers.values()] == [0, 0, 16, 16, 64, 144]


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_two_thousand_tokens(name: str, tmp_path: Path) -> None:
    oracle, source = make(tmp_path, FAMILIES[name])
    oracle.chunk = 700
    served = serve(source, max_batch_tokens=600)
    long = ask("long", random_prompt(2000, VOCAB), 4)
    oracle.check(served, "long", served.run([long])["long"])
    again = served.run([long])["long"]
    assert again.cached_tokens == 1984
    oracle.check(served, "long", again)
