"""Ollama's endpoints through its client, and how events become lines."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import pytest

from inferplane.parsers.events import Arguments, Reasoning, Text, ToolCall
from inferplane.server.ollama.endpoints import Answer, _message, _pieces
from inferplane.server.ollama.fields import checked_messages
from inferplane.server.service import Usage
from tests.core.server.fake_turn import FakeTurn, step
from tests.core.server.live_server import CHAT, NAME, SCRIPT, LiveServer, live_server, scripted

ollama = pytest.importorskip("ollama", reason="the extra 'test' installs it")

MESSAGES = [{"role": "user", "content": "emoji"}]


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[Any]:
    with ollama.Client(host=live.url) as client:
        yield client


class TestClient:
    def test_chat(self, client: Any) -> None:
        answer = client.chat(model=NAME, messages=MESSAGES)
        assert answer.message.content == SCRIPT["emoji"] and answer.done_reason == "stop"
        assert answer.eval_count == 26
        assert answer.prompt_eval_count == len(CHAT.format("emoji")) - len("<bos>") + 1
        assert answer.total_duration >= answer.eval_duration >= 0

    def test_chat_stream(self, client: Any) -> None:
        *parts, last = client.chat(model=f"{NAME}:latest", messages=MESSAGES, stream=True)
        assert "".join(part.message.content for part in parts) == SCRIPT["emoji"]
        assert not any(part.done for part in parts) and last.done
        assert last.done_reason == "stop" and last.eval_count == 26

    def test_options(self, client: Any, live: LiveServer) -> None:
        options = {
            "temperature": 0.25,
            "top_k": 3,
            "top_p": 0.5,
            "min_p": 0.125,
            "seed": 9,
            "repeat_penalty": 1.5,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.25,
            "num_predict": 4,
            "num_ctx": 4096,
            "stop": ["zz"],
        }
        answer = client.chat(model=NAME, messages=MESSAGES, options=options, keep_alive="5m")
        assert answer.done_reason == "length" and answer.eval_count == 4
        submit = live.core.submitted[-1]
        assert (submit.params.repetition_penalty, submit.params.stop) == (1.5, ["zz"])
        assert (submit.params.top_k, submit.seed, submit.max_tokens) == (3, 9, 4)
        client.chat(model=NAME, messages=MESSAGES, options={"num_predict": -1})
        assert live.core.submitted[-1].max_tokens == 512 - len(submit.prompt)

    def test_formats(self, client: Any, live: LiveServer) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        few = {"num_predict": 1}
        for form in (schema, "json"):
            client.chat(model=NAME, messages=MESSAGES, format=form, options=few)
            found = json.loads(live.core.submitted[-1].params.json_schema or "")
            assert found == (schema if form == schema else {"type": "object"})
        with pytest.raises(ollama.ResponseError) as refused:
            client.generate(model=NAME, prompt="x", format={"type": "x"})
        assert refused.value.status_code == 400

    def test_generate(self, client: Any, live: LiveServer) -> None:
        assert client.generate(model=NAME, prompt="emoji").response == SCRIPT["emoji"]
        assert client.generate(model=NAME, prompt="emoji", raw=True).response == SCRIPT["emoji"]
        assert live.core.submitted[-1].prompt == [*b"emoji"]
        parts = client.generate(model=NAME, prompt="emoji", raw=True, stream=True)
        assert "".join(part.response for part in parts) == SCRIPT["emoji"]
        client.generate(model=NAME, prompt="a", system="s", options={"num_predict": 1})
        tokenizer = live.service.generator.tokenizer
        prompt = tokenizer.decode(live.core.submitted[-1].prompt)
        assert prompt == "system: s\nuser: a\nassistant:"

    def test_asking_nothing(self, client: Any) -> None:
        assert client.generate(model=NAME).done_reason == "load"
        assert client.chat(model=NAME, messages=[]).done_reason == "load"

    def test_models(self, client: Any, live: LiveServer) -> None:
        (model,) = client.list().models
        assert model.model == NAME and model.details.family == "fake"
        shown = client.show(NAME)
        assert shown.modelinfo["fake.context_length"] == 512
        assert "completion" in shown.capabilities
        assert live.http.get("/api/version").json()["version"].startswith("0.")

    def test_errors(self, client: Any) -> None:
        with pytest.raises(ollama.ResponseError, match="'gpt' does not exist") as unknown:
            client.chat(model="gpt", messages=MESSAGES)
        assert unknown.value.status_code == 404
        with pytest.raises(ollama.ResponseError, match=r"options.temperature is -1"):
            client.chat(model=NAME, messages=MESSAGES, options={"temperature": -1})

    def test_death_in_a_stream(self) -> None:
        with live_server(scripted(max_model_len=10**6)) as server:
            body = {"model": NAME, "messages": [{"role": "user", "content": "x"}]}
            with server.http.stream("POST", "/api/chat", json=body) as response:
                assert response.headers["content-type"] == "application/x-ndjson"
                lines = response.iter_lines()
                assert json.loads(next(lines))["done"] is False
                server.call(server.client.kill)
                last = json.loads([*lines][-1])
            assert last["error"].startswith("The server is not ready")


class TestEvents:
    STEPS = (
        step(Reasoning("I think")),
        step(Text("Let me"), Text(" see.")),
        step(ToolCall(0, "call_a", "find"), Arguments(0, '{"x"')),
        step(Arguments(0, ": 1}"), ToolCall(1, "call_b", "stop"), Arguments(1, "{}")),
        step(reason="tool_calls"),
    )

    def pieces(self) -> AsyncGenerator[Any, None]:
        return _pieces(FakeTurn(self.STEPS).stream())

    def test_whole_and_lines(self, live: LiveServer) -> None:
        whole = asyncio.run(Answer(live.service, "m", _message, Usage([]))._whole(self.pieces()))
        message = whole["message"]
        assert (message["content"], message["thinking"]) == ("Let me see.", "I think")
        calls = [call["function"] for call in message["tool_calls"]]
        assert calls == [
            {"index": 0, "name": "find", "arguments": {"x": 1}},
            {"index": 1, "name": "stop", "arguments": {}},
        ]
        assert whole["done_reason"] == "stop"

        async def collect() -> list[dict[str, Any]]:
            answer = Answer(live.service, "m", _message, Usage([]))
            return [line async for line in answer._lines(self.pieces())]

        *parts, last = asyncio.run(collect())
        texts = [part["message"] for part in parts]
        assert [text.get("thinking") for text in texts] == ["I think", None, None]
        assert texts[1]["content"] == "Let me see."
        assert texts[2]["tool_calls"] == message["tool_calls"]
        assert last["done"] and "tool_calls" not in last["message"]

    def test_results_find_their_calls(self) -> None:
        def call(name: str) -> dict[str, Any]:
            return {"function": {"name": name, "arguments": {"q": name}}}

        checked = checked_messages(
            [
                {"role": "user", "content": "?"},
                {"role": "assistant", "tool_calls": [call("a"), call("b"), call("a")]},
                {"role": "tool", "content": "B", "tool_name": "b"},
                {"role": "tool", "content": "A1"},
                {"role": "tool", "content": "A2", "tool_name": "a"},
            ]
        )
        first, second, third = (call["id"] for call in checked[1]["tool_calls"])
        assert [m["tool_call_id"] for m in checked[2:]] == [second, first, third]


def test_a_stream_is_the_default(live: LiveServer) -> None:
    response = httpx.post(f"{live.url}/api/chat", json={"model": NAME, "messages": MESSAGES})
    assert len(response.text.splitlines()) > 5
