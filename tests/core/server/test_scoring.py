"""Scores of labels, and what a model that generates text does not offer."""

import math

import pytest

from tests.core.server.live_server import LiveServer, live_server, scripted

TOP = 20
"""so many tokens from the most likely one, a token has a logprob of its own"""


def score(live: LiveServer, **fields: object) -> dict[str, list[list[float]]]:
    response = live.http.post("/v1/score", json=fields)
    assert response.status_code == 200, response.text
    answer: dict[str, list[list[float]]] = response.json()
    return answer


class TestScore:
    def test_likely_labels_take_one_sequence_a_text(self) -> None:
        with live_server(scripted()) as live:
            labels = [ord("o"), ord("q")]  # the script answers "count" with "one ..."
            answer = score(live, query="co", items=["unt"], label_token_ids=labels)
            assert len(live.core.submitted) == 1
        assert answer["scores"] == [[math.exp(-0.25), math.exp(-2.25)]]
        assert answer["usage"]["prompt_tokens"] == 5  # type: ignore[call-overload]
        assert answer["usage"]["completion_tokens"] == 0  # type: ignore[call-overload]

    def test_unlikely_labels(self, live: LiveServer) -> None:
        labels = [ord("o") - TOP, ord("o") + TOP]
        answer = score(live, query="co", items=["unt"], label_token_ids=labels)
        assert answer["scores"] == [[math.exp(-0.25 - TOP)] * 2]

    def test_softmax_items_and_order(self, live: LiveServer) -> None:
        fields = {"query": "nt", "items": ["cou", "cou"], "label_token_ids": [111, 112]}
        answer = score(live, **fields, item_first=True, apply_softmax=True)
        assert len(answer["scores"]) == 2
        assert answer["scores"][0] == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e)])
        assert live.core.submitted[-1].prompt == [*b"count"]

    def test_token_ids(self, live: LiveServer) -> None:
        score(live, query=[*b"co"], items=[[*b"unt"], [*b"u"]], label_token_ids=[111])
        assert {tuple(s.prompt) for s in live.core.submitted[-3:]} >= {(*b"count",), (*b"cou",)}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "base64", "dimensions": 8}),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 1}),
    ],
)
def test_what_the_model_cannot_do(live: LiveServer, path: str, body: dict[str, object]) -> None:
    response = live.http.post(path, json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_by_model", "model")
    assert "'tiny' (fake) generates text" in error["message"]
