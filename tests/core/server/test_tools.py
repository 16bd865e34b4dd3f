"""Tools and reasoning in chat completions, over a fake engine that says what the test wants."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from inferplane.parsers.formats import TOOLS, ToolFormat
from inferplane.testing.fake_engine import Behaviour
from inferplane.text.tokenizer import Tokenizer
from tests.core.server.byte_model import EOS, TOOL_TEMPLATE, TURN, byte_tokenizer
from tests.core.server.live_server import NAME, LiveServer, events, live_server

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "It rains?", "parameters": CITY},
}
TIME = {"type": "function", "function": {"name": "time"}}
USER = {"role": "user", "content": "hi"}
ASK: dict[str, Any] = {"messages": [USER], "tools": [WEATHER, TIME]}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
TWO = f'I look.\n{CALL}\n<tool_call>\n{{"name": "time", "arguments": {{}}}}\n</tool_call>'


@contextmanager
def saying(
    answer: str | list[int],
    *,
    tokenizer: Tokenizer | None = None,
    burst: int = 1,
    **settings: Any,
) -> Iterator[LiveServer]:
    """A server whose model gives this answer to whatever it is asked."""
    tokens = [*answer.encode(), EOS] if isinstance(answer, str) else answer
    behaviour = Behaviour(answer=tokens, burst=burst, max_model_len=4096, vocab_size=300)
    tokenizer = tokenizer or byte_tokenizer(template=TOOL_TEMPLATE)
    with live_server(behaviour, tokenizer=tokenizer, **settings) as live:
        yield live


def post(live: LiveServer, **fields: Any) -> httpx.Response:
    return live.http.post("/v1/chat/completions", json={**ASK, **fields})


def choice(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def streamed(response: httpx.Response) -> tuple[dict[str, Any], str]:
    """The message that the chunks add up to, and the finish reason."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    reason = ""
    for chunk in events(response):
        for part in chunk["choices"]:
            delta = part["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning_content"] += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls", []):
                if "id" in call:
                    assert call["index"] == len(message["tool_calls"])
                    message["tool_calls"].append(call)
                else:
                    function = message["tool_calls"][call["index"]]["function"]
                    function["arguments"] += call["function"]["arguments"]
            reason = part["finish_reason"] or reason
    return message, reason


def prompt_of(live: LiveServer) -> str:
    return live.service.generator.tokenizer.decode(live.core.submitted[-1].prompt)


@pytest.mark.parametrize("burst", [1, 5, 1000])
def test_calls(burst: int) -> None:
    with saying(TWO, burst=burst) as live:
        whole = choice(post(live))
        message, reason = streamed(post(live, stream=True))
    assert whole["finish_reason"] == reason == "tool_calls"
    assert whole["message"]["content"] == message["content"] == "I look."
    calls = whole["message"]["tool_calls"]
    named = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]
    assert named == [("weather", {"city": "Köln"}), ("time", {})]
    assert len({call["id"] for call in calls}) == 2
    for a, b in zip(calls, message["tool_calls"], strict=True):
        assert {**b, "id": "", "index": 0} == {**a, "id": "", "index": 0}


def test_content_is_null_beside_calls_alone() -> None:
    with saying(CALL) as live:
        assert choice(post(live))["message"]["content"] is None
        one = choice(post(live, parallel_tool_calls=False))
    assert len(one["message"]["tool_calls"]) == 1


def test_one_call_where_one_is_allowed() -> None:
    with saying(TWO) as live:
        fields = {"parallel_tool_calls": False}
        assert len(choice(post(live, **fields))["message"]["tool_calls"]) == 1
        assert len(streamed(post(live, stream=True, **fields))[0]["tool_calls"]) == 1


def test_tools_are_only_for_who_offers_them() -> None:
    with saying(CALL) as live:
        none = choice(post(live, tool_choice="none"))
        assert "tools as" not in prompt_of(live)
        without = choice(post(live, tools=[]))
        assert '"weather"' not in prompt_of(live)
        post(live)
        assert '"name": "weather", "description": "It rains?"' in prompt_of(live)
    for answer in (none, without):
        assert answer["message"]["content"] == CALL and answer["finish_reason"] == "stop"
        assert "tool_calls" not in answer["message"]


def test_cut_short() -> None:
    with saying(CALL) as live:
        answer = choice(post(live, max_tokens=55))
    assert answer["finish_reason"] == "length"
    function = answer["message"]["tool_calls"][0]["function"]
    assert function["name"] == "weather" and CALL[:55].endswith(function["arguments"])


THOUGHT = "<think>\nHm, Köln?\n</think>\n\nIt rains."


@pytest.mark.parametrize("burst", [1, 4, 1000])
def test_reasoning(burst: int) -> None:
    with saying(THOUGHT, burst=burst) as live:
        response = post(live)
        whole = choice(response)["message"]
        details = response.json()["usage"]["completion_tokens_details"]
        message, _ = streamed(post(live, stream=True))
        together = choice(post(live, separate_reasoning=False))["message"]
    assert whole["content"] == message["content"] == "It rains."
    assert whole["reasoning_content"] == message["reasoning_content"] == "Hm, Köln?"
    assert together["content"] == THOUGHT and "reasoning_content" not in together
    # from the last byte of the tag that opens to the last byte of the one that closes
    assert details == {"reasoning_tokens": len(THOUGHT.partition("\n\n")[0].encode()) - 6}


def test_reasoning_that_the_prompt_opens_and_calls() -> None:
    with saying(f"Hm.\n</think>\n\n{CALL}") as live:
        message = choice(post(live, reasoning_effort="high"))["message"]
        assert prompt_of(live).endswith("assistant:<think>\n")
        assert message["reasoning_content"] == "Hm."
        assert message["tool_calls"][0]["function"]["name"] == "weather"
        post(live, reasoning_effort="none")
        assert prompt_of(live).endswith("assistant:")


def test_no_reasoning_no_tokens() -> None:
    with saying("Hi.") as live:
        usage = post(live).json()["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_history() -> None:
    with saying("It rains.") as live:
        call = choice_of_call("call_1", "weather", '{"city": "Köln", "n": 1}')
        messages = [
            USER,
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Hm.",
                "tool_calls": [call],
            },
            {
                "role": "tool",
                "tool_call_id": "call_1",
                "content": [{"type": "text", "text": "rain"}],
            },
        ]
        assert choice(post(live, messages=messages))["message"]["content"] == "It rains."
        prompt = prompt_of(live)
        assert '<tool_call>{"name": "weather", "arguments": {"city": "Köln", "n": 1}}' in prompt
        assert "<think>Hm.</think>" in prompt and "tool: rain" in prompt


def choice_of_call(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_an_answer_can_be_sent_back() -> None:
    with saying(TWO) as live:
        message = choice(post(live))["message"]
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": "x"}
            for call in message["tool_calls"]
        ]
        assert post(live, messages=[USER, message, *results]).status_code == 200


def test_special_tokens_as_markers() -> None:
    """They reach the parser, and none of them the client."""
    special = ["[TOOL_CALLS]", "[ARGS]", "[/INST]"]
    template = "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[TOOL_CALLS]{% endif %}x"
    tokenizer = byte_tokenizer(template=template, special=special)
    calls, args, other = range(TURN + 1, TURN + 4)
    answer = [
        *b"Ok",
        TURN,
        other,
        calls,
        *b"weather",
        args,
        *b'{"city": "[ARGS]',
        other,
        *b'"}',
        EOS,
    ]
    with saying(answer, tokenizer=tokenizer) as live:
        assert live.service.parsers.tools_name == "mistral"
        message = choice(post(live))["message"]
        plain = choice(post(live, tool_choice="none"))["message"]
    assert message["content"] == "Ok"
    (call,) = message["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "[ARGS]"}'}
    assert len(call["id"]) == 9
    assert plain["content"] == 'Okweather{"city": "[ARGS]"}'


def test_models_without_tools() -> None:
    for template in ("{{ messages[0].content }} <tool_call>", "{{ tools | tojson }}"):
        with saying("x", tokenizer=byte_tokenizer(template=template)) as live:
            response = post(live)
            assert response.status_code == 400 and response.json()["error"]["param"] == "tools"
            older = post(live, tools=None, functions=[TIME["function"]])
            assert older.json()["error"]["param"] == "functions"
    with saying("x", tool_call_parser="none") as live:
        assert post(live).json()["error"]["param"] == "tools"


def test_efforts_that_a_template_does_not_know() -> None:
    with saying("x", tokenizer=byte_tokenizer(template="{{ messages[0].content }}")) as live:
        body = {"messages": [USER], "reasoning_effort": "low"}
        response = live.http.post("/v1/chat/completions", json=body)
        assert response.json()["error"]["param"] == "reasoning_effort"
        body["reasoning_effort"] = "none"
        assert live.http.post("/v1/chat/completions", json=body).status_code == 200
    own = byte_tokenizer(template="{{ messages[0].content }} {{ reasoning_effort }}")
    with saying("x", tokenizer=own) as live:
        body = {"messages": [USER], "reasoning_effort": "low"}
        assert live.http.post("/v1/chat/completions", json=body).status_code == 200
        assert prompt_of(live) == "hi low"


def test_older_functions() -> None:
    with saying(TWO) as live:
        fields = {"tools": None, "functions": [WEATHER["function"], TIME["function"]]}
        answer = choice(post(live, **fields))
        assert answer["finish_reason"] == "function_call"
        call = answer["message"]["function_call"]
        assert call == {"name": "weather", "arguments": '{"city": "Köln"}'}
        chunks = events(post(live, stream=True, **fields))
        parts = [c["choices"][0]["delta"].get("function_call") for c in chunks]
        assert "".join(part["arguments"] for part in parts if part) == call["arguments"]
        past = {"role": "assistant", "content": None, "function_call": call}
        result = {"role": "function", "name": "weather", "content": "rain"}
        assert post(live, messages=[USER, past, result], **fields).status_code == 200
        assert "tool: rain" in prompt_of(live)


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    with (
        saying(f"<think>Hm.</think>{TWO}", burst=3) as live,
        OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def test_openai_client(client: OpenAI) -> None:
    tools: Any = ASK["tools"]
    messages: Any = ASK["messages"]
    answer = client.chat.completions.create(model=NAME, messages=messages, tools=tools)
    calls = answer.choices[0].message.tool_calls
    assert calls is not None and [c.type for c in calls] == ["function", "function"]
    assert answer.choices[0].message.to_dict()["reasoning_content"] == "Hm."
    with client.chat.completions.stream(model=NAME, messages=messages, tools=tools) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion().choices[0]
    assert kinds.count("tool_calls.function.arguments.done") == 2
    assert "tool_calls.function.arguments.delta" in kinds
    assert final.finish_reason == "tool_calls" and final.message.content == "I look."
    assert final.message.tool_calls is not None
    first = final.message.tool_calls[0].function
    assert (first.name, json.loads(first.arguments)) == ("weather", {"city": "Köln"})


def test_openai_client_refusals(client: OpenAI) -> None:
    messages: Any = ASK["messages"]
    tools: Any = [WEATHER, {"type": "function", "function": {"name": "a b"}}]
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=NAME, messages=messages, tools=tools)
    assert wrong.value.param == "tools[1].function.name"


class TestDemands:
    """What a grammar must hold the output to; the fake engine does not."""

    STRICT = {"type": "function", "function": {**WEATHER["function"], "strict": True}}

    def tag(self, live: LiveServer) -> Any:
        params = live.core.submitted[-1].params
        assert params.structural_tag is not None
        return json.loads(params.structural_tag), params.constrain_after

    @pytest.mark.parametrize("parallel", [True, False])
    def test_required(self, parallel: bool) -> None:
        with saying(CALL) as live:
            fields = {"tool_choice": "required", "parallel_tool_calls": parallel}
            assert choice(post(live, **fields))["finish_reason"] == "tool_calls"
            spec, after = self.tag(live)
        assert spec["at_least_one"] and spec["stop_after_first"] is not parallel and after == ""
        assert spec["triggers"] == ["<tool_call>"]
        first, second = spec["structures"]
        assert first["begin"] == '<tool_call>\n{"name": "weather", "arguments": '
        assert first["schema"] == CITY and first["end"] == "}\n</tool_call>"
        assert second["schema"]["additionalProperties"] is False

    def test_named_and_after_reasoning(self) -> None:
        named = {"type": "function", "function": {"name": "time"}}
        with saying(CALL) as live:
            options = {"chat_template_kwargs": {"enable_thinking": True}}
            assert post(live, tool_choice=named, **options).status_code == 200
            spec, after = self.tag(live)
        assert len(spec["structures"]) == 1 and '"time"' in spec["structures"][0]["begin"]
        assert spec["stop_after_first"] and after == "</think>"

    def test_strict(self) -> None:
        with saying(CALL) as live:
            loose = {"type": "function", "function": {"name": "time", "parameters": CITY}}
            assert post(live, tools=[self.STRICT, loose]).status_code == 200
            spec, _ = self.tag(live)
            assert not spec["at_least_one"] and not spec["stop_after_first"]
            assert [s["schema"] for s in spec["structures"]] == [CITY, {"type": "object"}]
            post(live)
            assert live.core.submitted[-1].params.constraint is None

    def test_a_format_of_its_own(self) -> None:
        call = "<tool_call>\n<function=weather>\n<parameter=city>\nx\n</parameter>\n</function>"
        with saying(call, tool_call_parser="qwen3-coder") as live:
            answer = choice(post(live, tool_choice="required"))
            (made,) = answer["message"]["tool_calls"]
            assert made["function"]["arguments"] == '{"city": "x"}'
            assert post(live, tools=[self.STRICT]).status_code == 200
            structure = self.tag(live)[0]["structures"][0]
            assert structure["begin"] == "<tool_call>\n<function=weather>\n"
            assert structure["pairs"]["texts"] == ["city"] and not structure["pairs"]["loose"]
            hard = {**CITY, "allOf": [{"required": ["city"]}]}
            strict = {"name": "weather", "parameters": hard, "strict": True}
            refused = post(live, tools=[{"type": "function", "function": strict}])
        error = refused.json()["error"]
        assert refused.status_code == 400 and error["param"] == "tools"
        assert "keyword 'allOf' of its parameters" in error["message"]

    def test_a_format_that_a_grammar_cannot_write(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(TOOLS, "mine", ToolFormat(opens=("@call",)))
        call = '{"name": "weather", "parameters": {"city": "x"}}\n'
        with saying(call, tool_call_parser="mine") as live:
            answer = choice(post(live, tool_choice="required"))
            assert self.tag(live)[0]["structures"][0]["begin"].startswith('{"name": "weather"')
            (made,) = answer["message"]["tool_calls"]
            assert made["function"]["arguments"] == '{"city": "x"}'
            refused = post(live, tools=[self.STRICT])
        assert refused.status_code == 400 and "format (mine)" in refused.json()["error"]["message"]
