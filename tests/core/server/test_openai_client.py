"""OpenAI's own Python client against the server."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.core.server.live_server import NAME, SCRIPT, LiveServer, live_server, scripted

KEY = "client-key"
MESSAGES: list[Any] = [{"role": "user", "content": "emoji"}]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(scripted(), key=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=NAME,
        messages=MESSAGES,
        n=2,
        logprobs=True,
        top_logprobs=2,
    )
    assert [choice.message.content for choice in answer.choices] == [SCRIPT["emoji"]] * 2
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 2 * 26
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert logprobs.content[0].token == "I" and len(logprobs.content[0].top_logprobs) == 2


def test_chat_stream(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=NAME,
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=100,
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == SCRIPT["emoji"]
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 26


def test_stream_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(model=NAME, messages=MESSAGES) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == SCRIPT["emoji"]


def test_closing_a_stream(client: OpenAI, server: LiveServer) -> None:
    stream = client.completions.create(model=NAME, prompt="long", stream=True, max_tokens=400)
    next(iter(stream))
    stream.close()
    assert client.completions.create(model=NAME, prompt="count").choices[0].text == SCRIPT["count"]


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(
        model="default", prompt=["count", "stop"], echo=True, logprobs=1, stop=["STOP"]
    )
    assert [choice.text for choice in answer.choices] == ["countone two three four", "stopalpha "]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.text_offset is not None
    assert logprobs.text_offset[:3] == [0, 1, 2]
    stream = client.completions.create(model=NAME, prompt=[*b"count"], stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == SCRIPT["count"]


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "inferplane"


def test_errors(client: OpenAI, server: LiveServer) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=NAME, messages=MESSAGES, temperature=-1)
    assert bad.value.param == "temperature" and bad.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("gpt-4")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=NAME, prompt="x" * 600)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(
            model=NAME,
            messages=MESSAGES,
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
    assert tools.value.param == "tools"
    with (
        OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.models.list()


def test_engine_death() -> None:
    with (
        live_server() as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        server.call(server.client.kill)
        with pytest.raises(openai.InternalServerError) as dead:
            client.completions.create(model=NAME, prompt="count")
        assert dead.value.status_code == 503
