"""Documents ranked by a model that says yes or no."""

import math
from collections.abc import Iterator
from typing import Any

import pytest

from inferplane.testing.fake_engine import Behaviour
from inferplane.text.tokenizer import Tokenizer
from tests.core.server.byte_model import byte_tokenizer
from tests.core.server.live_server import LiveServer, live_server

SYSTEM = 'Judge. Note that the answer can only be "yes" or "no".'
ASKED = (
    "{{ instruct | default('Fits?') }} query: {{ messages[0].content }} document: "
    "{{ messages[1].content }} so:"
)
BY_ROLE = (
    "{{ messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first"
    " | default('Fits?', true) }} query: {{ messages | selectattr('role', 'eq', 'query')"
    " | map(attribute='content') | first }} document: {{ document }} so:"
)
YES, NO = 259, 260
FIRST = {"panda": YES, "bear": NO - 3, "stone": NO}
"""document -> the likeliest answer; another is as much less likely as its id is further away"""


def tokenizer(template: str = ASKED, special: tuple[str, ...] = ("yes", "no")) -> Tokenizer:
    return byte_tokenizer(template=SYSTEM + template, special=special)


@pytest.fixture(scope="module", params=[ASKED, BY_ROLE], ids=["by place", "by role"])
def ranker(request: Any) -> Iterator[LiveServer]:
    own = tokenizer(request.param)
    script = [
        (own.encode(f"{SYSTEM}{instruct} query: animal document: {document} so:"), [answer])
        for document, answer in FIRST.items()
        for instruct in ("Fits?", "Is it?")
    ]
    with live_server(Behaviour(script=script, vocab_size=300), tokenizer=own) as live:
        yield live


def rank(live: LiveServer, **fields: Any) -> Any:
    documents = ["stone", "panda", "bear"]
    body = {"query": "animal", "documents": documents, **fields}
    response = live.http.post("/v1/rerank", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_best_first(ranker: LiveServer) -> None:
    ranked = rank(ranker)
    assert [item["index"] for item in ranked] == [1, 2, 0]
    assert [item["document"] for item in ranked] == ["panda", "bear", "stone"]
    odds = [-(abs(YES - first) - abs(NO - first)) for first in (YES, NO - 3, NO)]
    scores = [item["score"] for item in ranked]
    assert scores == pytest.approx([1 / (1 + math.exp(-o)) for o in odds])
    assert ranked[0]["meta_info"]["prompt_tokens"] > len(SYSTEM) - 10


def test_fewer_and_instructed(ranker: LiveServer) -> None:
    best = rank(ranker, top_n=1, return_documents=False, instruct="Is it?")
    assert len(best) == 1 and best[0]["index"] == 1 and "document" not in best[0]


@pytest.mark.parametrize("name", ["query", "documents"])
def test_empty(ranker: LiveServer, name: str) -> None:
    body = {"query": "a", "documents": ["b"], name: " " if name == "query" else ["b", ""]}
    response = ranker.http.post("/v1/rerank", json=body)
    assert response.status_code == 400 and response.json()["error"]["param"] == name


def test_too_long(ranker: LiveServer) -> None:
    body = {"query": "a", "documents": ["b", "x" * 1000]}
    response = ranker.http.post("/v1/rerank", json=body)
    assert response.status_code == 400 and response.json()["error"]["param"] == "documents"


def test_labels_of_several_tokens() -> None:
    with live_server(tokenizer=tokenizer(special=())) as live:
        response = live.http.post("/v1/rerank", json={"query": "a", "documents": ["b"]})
        assert response.status_code == 400
        assert 'no one token for each of "yes" and "no"' in response.json()["error"]["message"]
