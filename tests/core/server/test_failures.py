"""Clients that leave, engines that die, queues that are full, bugs in our own code."""

import json
import logging
import queue
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from inferplane.messages import Output
from tests.core.server.live_server import SCRIPT, LiveServer, live_server, scripted

ENDLESS = {"prompt": "endless", "max_tokens": 900_000, "ignore_eos": True}


class Watched:
    """A server whose sequences run for as long as a test wants, and what its engine is told."""

    def __init__(self, live: LiveServer) -> None:
        self.live = live
        self.submits: queue.Queue[str] = queue.Queue()
        self.aborts: queue.Queue[str] = queue.Queue()
        live.core.on_submit = lambda submit: self.submits.put(submit.request_id)
        live.core.on_abort = self.aborts.put

    def submitted(self, count: int) -> set[str]:
        return {self.submits.get(timeout=20) for _ in range(count)}

    def aborted(self, count: int) -> set[str]:
        return {self.aborts.get(timeout=20) for _ in range(count)}

    def open_sequences(self) -> int:
        return int(self.live.call(lambda: self.live.client.open_sequences))


@pytest.fixture
def watched() -> Iterator[Watched]:
    with live_server(scripted(max_model_len=10**6)) as live:
        yield Watched(live)


def raw_post(live: LiveServer, path: str, body: dict[str, Any]) -> socket.socket:
    host, port = live.url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


@pytest.mark.parametrize("samples", [1, 5])
@pytest.mark.parametrize("stream", [False, True])
def test_leaving_aborts_every_sequence(watched: Watched, stream: bool, samples: int) -> None:
    body = {**ENDLESS, "stream": stream, "n": samples}
    with raw_post(watched.live, "/v1/completions", body) as connection:
        ids = watched.submitted(samples)
        if stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert watched.aborted(samples) == ids
    watched.live.complete("count")
    assert watched.open_sequences() == 0
    assert watched.live.call(lambda: watched.live.core.has_work) is False


def test_leaving_before_the_first_token(watched: Watched) -> None:
    watched.live.call(watched.live.client.gate.clear)
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    with raw_post(watched.live, "/v1/chat/completions", body):
        ids = watched.submitted(1)
    assert watched.aborted(1) == ids


def test_others_go_on_when_one_leaves(watched: Watched) -> None:
    with raw_post(watched.live, "/generate", {"text": "x", "stream": True}):
        watched.submitted(1)
        assert watched.live.complete("count").json()["choices"][0]["text"] == SCRIPT["count"]


def test_nothing_is_aborted_that_came_to_its_end(watched: Watched) -> None:
    watched.live.complete("count", n=3)
    watched.live.complete("count", stream=True)
    assert watched.live.core.aborted == []


class TestEngineDeath:
    def test_while_streaming(self, watched: Watched) -> None:
        live = watched.live
        body = {**ENDLESS, "stream": True}
        with live.http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            assert next(lines).startswith('data: {"id"')
            live.call(live.client.kill)
            rest = [line for line in lines if line]
        assert "data: [DONE]" not in rest
        error = json.loads(rest[-1].removeprefix("data: "))["error"]
        assert error["type"] == "server_error" and error["code"] == "engine_dead"
        assert "killed" not in error["message"]

    def test_while_waiting(self, watched: Watched) -> None:
        live = watched.live
        with raw_post(live, "/v1/completions", ENDLESS) as connection:
            watched.submitted(1)
            live.call(live.client.kill)
            assert connection.recv(12) == b"HTTP/1.1 503"

    def test_afterwards(self, watched: Watched) -> None:
        live = watched.live
        live.call(live.client.kill)
        for stream in (False, True):
            response = live.complete("count", stream=stream)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "engine_dead"
            assert response.headers["retry-after"] == "1"
        assert live.http.get("/health/ready").status_code == 503


class TestRefusalsOfTheEngine:
    def test_full_queue(self) -> None:
        with live_server(scripted(max_model_len=10**6), max_queue=1) as live:
            watched = Watched(live)
            with raw_post(live, "/v1/completions", ENDLESS):
                watched.submitted(1)
                for stream in (False, True):
                    response = live.chat("count", stream=stream)
                    assert response.status_code == 429
                    assert response.headers["retry-after"] == "1"
                    assert response.json()["error"]["type"] == "rate_limit_error"

    def test_refusing_one_sample_ends_the_others(self) -> None:
        with live_server(scripted(max_model_len=10**6), max_queue=2) as live:
            watched = Watched(live)
            assert live.http.post("/v1/completions", json={**ENDLESS, "n": 3}).status_code == 429
            assert len(watched.aborted(2)) == 2
            assert watched.open_sequences() == 0


class TestOurOwnMistakes:
    SECRET = "secret of /core/inferplane/x.py <Thing object at 0x7f00deadbeef>"

    @pytest.mark.parametrize("stream", [False, True])
    def test_before_the_first_token(
        self,
        live: LiveServer,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        stream: bool,
    ) -> None:
        def broken(*args: object, **kwargs: object) -> None:
            raise ValueError(self.SECRET)

        with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
            patch.setattr(live.service.generator, "prepare", broken)
            response = live.chat("count", stream=stream)
        assert response.status_code == 500
        error = response.json()["error"]
        assert error["type"] == "server_error" and "secret" not in response.text
        identity = error["message"].rpartition(" ")[2]
        logged = [r.getMessage() for r in caplog.records if identity in r.getMessage()]
        assert len(logged) == 1 and "ValueError" in logged[0] and "broken" in logged[0]
        assert "secret" not in logged[0] and "\n" not in logged[0]
        assert live.chat("count").json()["choices"][0]["message"]["content"] == SCRIPT["count"]

    def test_in_the_middle_of_a_stream(self) -> None:
        with live_server() as live:
            failed = Output(request_id="", finish_reason="error", error=self.SECRET)
            advance = live.core._advance

            def failing(sequence: Any) -> Output:
                output = advance(sequence)
                if len(sequence.made) == 3:
                    failed.request_id = output.request_id
                    return failed
                return output

            live.core._advance = failing  # type: ignore[method-assign]
            response = live.complete("count", stream=True)
            payloads = [line[6:] for line in response.text.split("\n") if line]
            assert [json.loads(p)["choices"][0]["text"] for p in payloads[:2]] == ["o", "n"]
            assert json.loads(payloads[2])["error"]["code"] == "engine_error"
            assert len(payloads) == 3 and "secret" not in response.text
            whole = live.complete("count")
            assert whole.status_code == 500 and "secret" not in whole.text

    def test_an_abort_is_an_error(self, watched: Watched) -> None:
        live = watched.live
        with raw_post(live, "/v1/completions", ENDLESS) as connection:
            (identity,) = watched.submitted(1)
            live.call(lambda: live.client.abort(identity))
            assert connection.recv(12) == b"HTTP/1.1 400"  # which clients do not try again
        native = {"text": "x", "sampling_params": {"max_new_tokens": 900_000}}
        with raw_post(live, "/generate", native) as connection:
            (identity,) = watched.submitted(1)
            live.call(lambda: live.client.abort(identity))
            assert connection.recv(12) == b"HTTP/1.1 200"  # it has a word for that
        assert live.complete("count").status_code == 200


def test_many_at_once_keep_their_own_text(live: LiveServer) -> None:
    """Hashed tokens depend on the whole request: compare each with the same request alone."""
    with httpx.Client(base_url=live.url, timeout=60) as http:

        def ask(i: int) -> str:
            body = {"prompt": f"prompt {i}", "max_tokens": 40, "seed": i}
            return str(http.post("/v1/completions", json=body).json()["choices"][0]["text"])

        alone = [ask(i) for i in range(40)]
    prompts = [f"prompt {i}" for i in range(40)]
    sampling = [{"max_new_tokens": 40, "sampling_seed": i} for i in range(40)]
    together = live.generate(prompts, sampling_params=sampling).json()
    assert [result["text"] for result in together] == alone
    assert len(set(alone)) == 40
