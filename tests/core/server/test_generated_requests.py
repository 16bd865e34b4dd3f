"""Each generated bad request gets a 4xx that names the field, in the format of its API, and
nothing is left running."""

import re
from typing import Any

import httpx
import pytest

from inferplane.server.endpoint import Endpoint
from inferplane.server.errors import ANTHROPIC, OLLAMA
from tests.core.server.generated_requests import GOOD, POSTS, Case, body_of, cases, refused
from tests.core.server.live_server import LiveServer

HEADERS = {"content-type": "application/json"}


def found_in(endpoint: Endpoint, response: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    if endpoint.protocol == OLLAMA:
        return {"message": body["error"], "param": body["param"]}
    if endpoint.protocol == ANTHROPIC:
        assert body["type"] == "error"
    error: dict[str, Any] = body["error"]
    return error


def problem(endpoint: Endpoint, response: httpx.Response, case: Case) -> str:
    """What is wrong with an answer; "" if nothing is."""
    shown = body_of(case)[:120]
    if response.status_code not in (400, 404):
        return f"{shown!r} got {response.status_code}: {response.text[:80]}"
    named = found_in(endpoint, response)["param"] or ""
    expected = case[1][:64]
    if named != expected and not re.match(re.escape(expected) + r"[.\[]", named):
        return f"{shown!r} named {named!r}: {response.text[:200]}"
    return ""


def test_every_endpoint_has_a_good_request(live: LiveServer) -> None:
    assert {endpoint.path for endpoint in POSTS} == set(GOOD)
    for path, body in GOOD.items():
        response = live.http.post(path, json=body)
        refusal = "unsupported_by_model" if path in ("/v1/embeddings", "/v1/rerank") else None
        assert response.status_code == (400 if refusal else 200), response.text
        assert refusal is None or response.json()["error"]["code"] == refusal


def test_there_are_many() -> None:
    assert sum(1 for endpoint in POSTS for _ in cases(endpoint)) >= 1500


@pytest.mark.parametrize("endpoint", POSTS, ids=lambda endpoint: endpoint.path)
def test_each_is_refused(live: LiveServer, endpoint: Endpoint) -> None:
    problems = []
    for case in cases(endpoint):
        response = live.http.post(endpoint.path, content=body_of(case), headers=HEADERS)
        problems.append(problem(endpoint, response, case))
    assert [text for text in problems if text] == []
    assert live.call(lambda: live.client.open_sequences) == 0


@pytest.mark.parametrize("endpoint", POSTS, ids=lambda endpoint: endpoint.path)
def test_refused_fields_are_what_the_docs_say(live: LiveServer, endpoint: Endpoint) -> None:
    for case in refused(endpoint):
        response = live.http.post(endpoint.path, content=body_of(case), headers=HEADERS)
        assert problem(endpoint, response, case) == ""
        if endpoint.protocol != OLLAMA:
            code = found_in(endpoint, response)["code"]
            assert code in ("unsupported_parameter", "invalid_type"), case


def test_the_check_can_fail(live: LiveServer) -> None:
    chat = next(endpoint for endpoint in POSTS if endpoint.path == "/v1/chat/completions")
    good = (GOOD[chat.path], "messages")
    assert problem(chat, live.http.post(chat.path, json=good[0]), good) != ""
    bad = ({**good[0], "n": 0}, "temperature")
    assert problem(chat, live.http.post(chat.path, json=bad[0]), bad) != ""
