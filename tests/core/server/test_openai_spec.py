"""OpenAI's published description: every answer of every test server is checked against it (see
live_server); here it is shown that each kind of answer is, and that the check can fail."""

import json

import pytest

from tests.core.server.live_server import LiveServer, live_server, scripted
from tests.core.server.openai_spec import MISSING, WHOLE, check, components

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

CHAT = "/v1/chat/completions"
JSON = "application/json"


def test_the_spec_has_what_is_checked() -> None:
    assert set(WHOLE.values()) <= set(components()["schemas"])


def test_every_kind_of_answer() -> None:
    with live_server(scripted()) as live:
        for stream in (False, True):
            usage = {"stream_options": {"include_usage": True}} if stream else {}
            live.chat("emoji", stream=stream, logprobs=True, top_logprobs=3, n=2, **usage)
            live.chat("count", stream=stream, max_tokens=2)
            live.complete(["emoji", "count"], stream=stream, logprobs=2, echo=True, **usage)
            asked = {"input": "emoji", "stream": stream, "top_logprobs": 2}
            asked["include"] = ["message.output_text.logprobs"]
            live.http.post("/v1/responses", json=asked)
            live.http.post("/v1/responses", json={"input": "x", "max_output_tokens": 1})
        made = live.http.post("/v1/responses", json={"input": "count", "background": True}).json()
        for path in ("", "/input_items"):
            live.http.get(f"/v1/responses/{made['id']}{path}")
        live.http.post(f"/v1/responses/{made['id']}/cancel")
        live.http.get("/v1/models")
        live.http.get("/v1/models/tiny")
        live.http.get("/v1/models/none")
        live.http.get("/v1/nothing")
        live.chat("count", n=0)
        live.http.post("/v1/embeddings", json={"input": "x"})
    assert live.spec.checked == 20


def test_the_check_can_fail(live: LiveServer) -> None:
    answer = live.chat("count").json()
    assert check("POST", CHAT, 200, JSON, json.dumps(answer).encode()) == []
    del answer["choices"][0]["message"]["role"]
    assert check("POST", CHAT, 200, JSON, json.dumps(answer).encode())
    error = live.chat("count", n=0).json()
    del error["error"]["param"]
    assert check("POST", CHAT, 400, JSON, json.dumps(error).encode())
    event = b'event: x\ndata: {"type": "response.output_text.delta", "delta": "x"}\n\n'
    assert check("POST", "/v1/responses", 200, "text/event-stream", event)
    assert check("POST", "/v1/unheard/of", 200, JSON, b"{}")
