"""Tools on the responses, messages and Ollama APIs, with a model that calls two of them."""

import json
from typing import Any

import openai
import pydantic
import pytest

from tests.core.server.live_server import NAME
from tests.core.server.test_tools import CALL, CITY, TWO, saying

RESPONSES_TOOL: Any = {"type": "function", "name": "weather", "parameters": CITY, "strict": None}
TIME: Any = {"type": "function", "name": "time", "parameters": None, "strict": None}


@pytest.mark.parametrize("burst", [1, 1000])
def test_responses(burst: int) -> None:
    with (
        saying(TWO, burst=burst) as live,
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client,
    ):
        tools = [RESPONSES_TOOL, TIME]
        whole = client.responses.create(model=NAME, input="hi", tools=tools)
        with client.responses.stream(model=NAME, input="hi", tools=tools) as stream:
            for _ in stream:
                pass
            streamed = stream.get_final_response()
        for answer in (whole, streamed):
            assert answer.output_text == "I look."
            _, first, second = answer.output
            assert first.type == second.type == "function_call"
            assert json.loads(first.arguments) == {"city": "Köln"}
            assert (first.name, second.name, second.arguments) == ("weather", "time", "{}")
        calls = [item for item in whole.output if item.type == "function_call"]
        results: Any = [
            {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
            for call in calls
        ]
        client.responses.create(
            model=NAME, input=results, previous_response_id=whole.id, tools=tools
        )
        prompt = live.service.generator.tokenizer.decode(live.core.submitted[-1].prompt)
        assert prompt.count("sun") == 2 and "weather" in prompt and "I look." in prompt


def test_one_call_alone() -> None:
    with (
        saying(TWO) as live,
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client,
    ):
        answer = client.responses.create(
            model=NAME, input="hi", tools=[RESPONSES_TOOL, TIME], parallel_tool_calls=False
        )
        assert [item.type for item in answer.output] == ["message", "function_call"]


def test_messages() -> None:
    anthropic = pytest.importorskip("anthropic", reason="the extra 'test' installs it")
    tool = {"name": "weather", "description": "It rains?", "input_schema": CITY}
    ask: Any = {
        "model": NAME,
        "max_tokens": 999,
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [tool, {"name": "time", "input_schema": {"type": "object"}}],
    }
    with (
        saying(TWO) as live,
        anthropic.Anthropic(base_url=live.url, api_key="x", max_retries=0) as client,
    ):
        whole = client.messages.create(**ask)
        with client.messages.stream(**ask) as stream:
            for _ in stream:
                pass
            streamed = stream.get_final_message()
        for message in (whole, streamed):
            assert message.stop_reason == "tool_use"
            text, first, second = message.content
            assert (text.text, first.input, second.input) == ("I look.", {"city": "Köln"}, {})
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "sun"}
            for block in whole.content[1:]
        ]
        said = [
            *ask["messages"],
            {"role": "assistant", "content": whole.content},
            {"role": "user", "content": results},
        ]
        client.messages.create(**{**ask, "messages": said})
        prompt = live.service.generator.tokenizer.decode(live.core.submitted[-1].prompt)
        assert prompt.count("sun") == 2
        assert client.messages.count_tokens(
            **{name: ask[name] for name in ("model", "messages", "tools")}
        ).input_tokens == len(live.core.submitted[0].prompt)


def test_ollama() -> None:
    ollama = pytest.importorskip("ollama", reason="the extra 'test' installs it")
    tool = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
    ask: Any = {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "tools": [tool]}
    with saying(CALL) as live, ollama.Client(host=live.url) as client:
        whole = client.chat(**ask)
        (call,) = whole.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("weather", {"city": "Köln"})
        streamed = [part.message.tool_calls for part in client.chat(**ask, stream=True)]
        assert [calls for calls in streamed if calls] == [[call]]
        said = [*ask["messages"], whole.message, {"role": "tool", "content": "sun"}]
        client.chat(**{**ask, "messages": said})
        prompt = live.service.generator.tokenizer.decode(live.core.submitted[-1].prompt)
        assert "sun" in prompt


class Weather(pydantic.BaseModel):
    city: str


def test_responses_parsed_by_the_client() -> None:
    with (
        saying('{"city": "Köln"}') as live,
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client,
    ):
        parsed = client.responses.parse(model=NAME, input="hi", text_format=Weather)
        assert parsed.output_parsed == Weather(city="Köln")
        schema = json.loads(live.core.submitted[-1].params.json_schema or "")
        assert schema["properties"]["city"]["type"] == "string"
        with client.responses.stream(model=NAME, input="hi", text_format=Weather) as stream:
            for _ in stream:
                pass
            assert stream.get_final_response().output_parsed == Weather(city="Köln")
