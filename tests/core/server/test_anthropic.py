"""/v1/messages through Anthropic's client, and how events become content blocks."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from inferplane.parsers.events import Arguments, Reasoning, Text, ToolCall
from inferplane.server.anthropic.blocks import Conversation
from inferplane.server.anthropic.endpoints import Answer
from tests.core.server.fake_turn import FakeTurn, step
from tests.core.server.live_server import CHAT, NAME, SCRIPT, LiveServer, live_server, scripted

anthropic = pytest.importorskip("anthropic", reason="the extra 'test' installs it")

ASK: Any = {"model": NAME, "max_tokens": 64, "messages": [{"role": "user", "content": "count"}]}
CALLS = [
    step(Reasoning("I ")),
    step(Reasoning("think")),
    step(Text("Let me"), Text(" see.")),
    step(ToolCall(0, "call_a", "find"), Arguments(0, '{"x"'), Arguments(0, ": 1}")),
    step(ToolCall(1, "call_b", "stop"), Arguments(1, "{}"), reason="tool_calls"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(scripted(), key="k") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=server.url, api_key="k", max_retries=0) as client:
        yield client


class TestClient:
    def test_message(self, client: Any) -> None:
        message = client.messages.create(**ASK)
        assert message.content[0].text == SCRIPT["count"]
        assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
        assert message.usage.output_tokens == 19
        read = message.usage.cache_read_input_tokens
        assert message.usage.input_tokens + read == len(CHAT.format("count")) - len("<bos>") + 1

    def test_stream(self, client: Any) -> None:
        with client.messages.stream(**ASK) as stream:
            kinds = [event.type for event in stream]
            message = stream.get_final_message()
        assert message.content[0].text == SCRIPT["count"] and message.stop_reason == "end_turn"
        assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
        raw = [event.type for event in client.messages.create(**ASK, stream=True)]
        assert raw[0] == "message_start" and raw[1] == "content_block_start"
        assert raw[-3:] == ["content_block_stop", "message_delta", "message_stop"]

    def test_why_it_ended(self, client: Any) -> None:
        short = client.messages.create(**{**ASK, "max_tokens": 3})
        assert short.stop_reason == "max_tokens" and short.content[0].text == "one"
        stopped = client.messages.create(**ASK, stop_sequences=["two"])
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "two")
        assert stopped.content[0].text == "one "

    def test_system_and_blocks(self, client: Any, server: LiveServer) -> None:
        text = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}
        messages = [
            {"role": "user", "content": [text, {"type": "text", "text": "you"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
            {"role": "user", "content": "b"},
        ]
        client.messages.create(model=NAME, max_tokens=1, system=[text], messages=messages)
        decode = server.service.generator.tokenizer.decode
        assert decode(server.core.submitted[-1].prompt) == (
            "system: hi\nuser: hi\nyou\nassistant: a\nuser: b\nassistant:"
        )

    def test_count_tokens(self, client: Any) -> None:
        counted = client.messages.count_tokens(model=NAME, messages=ASK["messages"])
        assert counted.input_tokens == len(CHAT.format("count")) - len("<bos>") + 1

    def test_errors(self, client: Any, server: LiveServer) -> None:
        with pytest.raises(anthropic.BadRequestError) as bad:
            client.messages.create(**ASK, extra_body={"temperature": -1})
        assert bad.value.body["error"]["type"] == "invalid_request_error"
        assert bad.value.body["error"]["param"] == "temperature"
        with pytest.raises(anthropic.NotFoundError) as unknown:
            client.messages.create(**{**ASK, "model": "claude"})
        assert unknown.value.body["error"]["type"] == "not_found_error"
        with (
            anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as other,
            pytest.raises(anthropic.AuthenticationError),
        ):
            other.messages.create(**ASK)

    def test_death_in_a_stream(self) -> None:
        with (
            live_server(scripted(max_model_len=10**6)) as server,
            anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as client,
        ):
            asked = {**ASK, "max_tokens": 900_000, "messages": [{"role": "user", "content": "x"}]}
            stream = iter(client.messages.create(**asked, stream=True))
            next(stream)
            server.call(server.client.kill)
            with pytest.raises(anthropic.APIStatusError) as dead:
                for _ in stream:
                    pass
            assert dead.value.body["error"]["type"] == "overloaded_error"


class TestBlocks:
    def test_whole(self) -> None:
        turn: Any = FakeTurn(CALLS)
        message = asyncio.run(Answer("m", turn).whole())
        thinking, text, first, second = message["content"]
        assert thinking == {"type": "thinking", "thinking": "I think", "signature": ""}
        assert text == {"type": "text", "text": "Let me see."}
        assert (first["id"], first["name"], first["input"]) == ("call_a", "find", {"x": 1})
        assert (second["name"], second["input"]) == ("stop", {})
        assert message["stop_reason"] == "tool_use"

    def test_streamed(self) -> None:
        async def collect() -> list[dict[str, Any]]:
            turn: Any = FakeTurn(CALLS)
            return [json.loads(json.dumps(e)) async for e in Answer("m", turn).events()]

        blocks: list[dict[str, Any]] = []
        inputs: dict[int, str] = {}
        open_block: int | None = None
        for event in asyncio.run(collect()):
            match event["type"]:
                case "content_block_start":
                    assert open_block is None
                    open_block = event["index"]
                    blocks.append(event["content_block"])
                case "content_block_delta":
                    assert event["index"] == open_block == len(blocks) - 1
                    delta = event["delta"]
                    name = delta["type"].removesuffix("_delta")
                    if name == "input_json":
                        inputs[open_block] = inputs.get(open_block, "") + delta["partial_json"]
                    else:
                        blocks[-1][name] += delta[name]
                case "content_block_stop":
                    assert event["index"] == open_block
                    open_block = None
        for at, text in inputs.items():
            blocks[at]["input"] = json.loads(text)
        turn: Any = FakeTurn(CALLS)
        assert blocks == asyncio.run(Answer("m", turn).whole())["content"]

    def test_a_message_can_be_sent_back(self) -> None:
        turn: Any = FakeTurn(CALLS)
        content = asyncio.run(Answer("m", turn).whole())["content"]
        results = [
            {"type": "tool_result", "tool_use_id": "call_b", "content": "B"},
            {
                "type": "tool_result",
                "tool_use_id": "call_a",
                "content": [{"type": "text", "text": "A"}],
                "is_error": False,
            },
            {"type": "text", "text": "go on"},
        ]
        said = [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": content},
            {"role": "user", "content": results},
        ]
        _, answer, first, second, last = Conversation(said).messages
        assert answer["content"] == "Let me see." and answer["reasoning_content"] == "I think"
        assert [c["function"]["arguments"] for c in answer["tool_calls"]] == [{"x": 1}, {}]
        assert (first["role"], first["name"], first["content"]) == ("tool", "stop", "B")
        assert (second["tool_call_id"], second["content"]) == ("call_a", "A")
        assert last == {"role": "user", "content": "go on"}
