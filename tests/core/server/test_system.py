"""Models, tokens, health and metrics."""

from pathlib import Path

import pytest

from inferplane.errors import RequestError
from inferplane.server.endpoints import ENDPOINTS
from inferplane.testing.inline_client import InlineClient
from tests.core.server.byte_model import EOS
from tests.core.server.live_server import (
    CHAT,
    MODEL,
    NAME,
    LiveServer,
    live_server,
)


class TestModelNames:
    @pytest.mark.parametrize("name", [NAME, MODEL, "default"])
    def test_known(self, live: LiveServer, name: str) -> None:
        assert live.complete("count", model=name).json()["model"] == name
        assert live.http.get(f"/v1/models/{name}").json()["id"] == name

    def test_unknown(self, live: LiveServer) -> None:
        for response in (
            live.chat("count", model="gpt-4"),
            live.complete("count", model="gpt-4", stream=True),
            live.http.get("/v1/models/gpt-4"),
            live.http.get("/v1/models/org/gpt-4"),
        ):
            assert response.status_code == 404
            assert response.json()["error"]["code"] == "model_not_found"
            assert response.json()["error"]["param"] == "model"

    def test_list(self, live: LiveServer) -> None:
        listed = live.http.get("/v1/models").json()
        assert [model["id"] for model in listed["data"]] == [NAME]
        assert listed["data"][0]["max_model_len"] == 512


class TestTokens:
    def test_tokenize(self, live: LiveServer) -> None:
        one = live.http.post("/tokenize", json={"prompt": "ab"}).json()
        assert one == {"tokens": [97, 98], "count": 2, "max_model_len": 512}
        two = live.http.post("/tokenize", json={"prompt": ["ab", "c"]}).json()
        assert two["tokens"] == [[97, 98], [99]] and two["count"] == [2, 1]
        messages = [{"role": "user", "content": "hi"}]
        chat = live.http.post("/tokenize", json={"messages": messages}).json()
        tokenizer = live.service.generator.tokenizer
        assert chat["tokens"] == tokenizer.encode(CHAT.format("hi"))

    def test_detokenize(self, live: LiveServer) -> None:
        tokens = [*"é".encode(), EOS]
        body = live.http.post("/detokenize", json={"tokens": tokens}).json()
        assert body["text"] == "é"
        body = {"tokens": tokens, "skip_special_tokens": False}
        assert live.http.post("/detokenize", json=body).json()["text"] == "é<eos>"
        assert live.http.post("/detokenize", json={"tokens": []}).json()["text"] == ""


class TestOperations:
    def test_health(self) -> None:
        with live_server() as live:
            paths = ("/health/live", "/health/ready", "/health")
            assert [live.http.get(p).status_code for p in paths] == [200, 200, 200]
            live.call(live.client.kill)
            assert [live.http.get(p).status_code for p in paths] == [200, 503, 503]

    def test_while_loading(self, live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
        def loading(client: InlineClient) -> None:
            raise RequestError("secret", code="engine_starting", status=503)

        monkeypatch.setattr(InlineClient, "info", property(loading))
        for response in (live.chat("count"), live.complete([1]), live.http.get("/v1/models")):
            assert response.status_code == 503 and "secret" not in response.text
            assert response.json()["error"]["code"] == "engine_starting"
            assert response.headers["retry-after"] == "1"
        assert live.http.get("/health/live").status_code == 200

    def test_metrics(self) -> None:
        with live_server() as live:
            live.chat("count", stream=True)
            live.chat("count", n=0)
            for i in range(50):
                live.http.get(f"/made/up/{i}")
                live.http.get(f"/v1/models/made-up-{i}")
            lines = live.http.get("/metrics").text.splitlines()
        figures = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        requests = 'inferplane_requests_total{route="%s",status="%d"}'
        assert figures[requests % ("/v1/chat/completions", 200)] == "1.0"
        assert figures[requests % ("/v1/chat/completions", 400)] == "1.0"
        assert figures[requests % ("other", 404)] == "50.0"
        assert figures[requests % ("/v1/models/{model}", 404)] == "50.0"
        assert figures["inferplane_output_tokens_total"] == "19.0"
        assert figures["inferplane_time_to_first_token_seconds_count"] == "1.0"
        assert figures["inferplane_inter_token_seconds_count"] == "18.0"
        assert figures["inferplane_running"] == "0.0" and figures["inferplane_ready"] == "1.0"
        assert len(lines) < 200


def test_every_endpoint_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs/server.md").read_text()
    for endpoint in ENDPOINTS:
        assert f"`{endpoint.method} {endpoint.path.replace(':path', '')}`" in text
