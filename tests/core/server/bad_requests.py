"""The table of requests that must be refused: (route, body or raw bytes, param named)."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.core.server.bad_messages import CONTENTS, MESSAGE_LISTS, MESSAGES, PAST_CALLS

CHAT, COMPLETIONS, NATIVE = "/v1/chat/completions", "/v1/completions", "/generate"
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"

GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES},
    COMPLETIONS: {"prompt": "hi"},
    NATIVE: {"text": "hi"},
    TOKENIZE: {"prompt": "hi"},
    DETOKENIZE: {"tokens": [1]},
}

NOT_NUMBER = ["1", True, [1], {}]
NOT_INT = [*NOT_NUMBER, 1.5]
NOT_BOOL = ["true", 1, [], {}]
NOT_TEXT = [1, True, ["x"], {}]
HUGE = 2**70


@dataclass(frozen=True)
class Case:
    route: str
    body: bytes
    param: str | None
    name: str
    status: int = 400


FLOATS: dict[str, list[Any]] = {
    "temperature": [-0.1, 1e9],
    "top_p": [0, 1.01, -1],
    "min_p": [-0.1, 1.1],
    "repetition_penalty": [0, -1, 11],
    "frequency_penalty": [-2.1, 2.1],
    "presence_penalty": [-2.1, 2.1],
}
INTS: dict[str, list[Any]] = {
    "top_k": [-2, 2**31, HUGE],
    "n": [0, -1, 129, HUGE],
    "seed": [2**64, -(2**63) - 1, HUGE],
    "max_tokens": [-1, 513, 2**31, HUGE],
    "min_tokens": [-1, 600, HUGE],
}
BOOLS = ["ignore_eos", "skip_special_tokens"]
LISTS: dict[str, list[Any]] = {
    "stop": [1, {}, [1], ["a", None], [""], "", ["x"] * 17, ["x"] * 2000, ["y" * 1025]],
    "stop_token_ids": ["1", 1, ["1"], [1.5], [True], [-1], [259], [HUGE], [1] * 65, [1] * 2000],
    "logit_bias": [
        [1],
        "x",
        {"a": 1},
        {"1.0": 1},
        {"-1": 1},
        {"": 1},
        {"1": "1"},
        {"1": True},
        {"1": 101},
        {"1": -101},
        {"259": 1},
        {"99999999999": 1},
        {"9" * 40: 1},
        {"\u0661": 1},
        {str(i): 1 for i in range(1025)},
    ],
}
NATIVE_NAMES = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "seed": "sampling_seed",
}


def sampling() -> Iterator[Case]:
    """Sampling fields on all three routes."""
    for table, wrong in ((FLOATS, NOT_NUMBER), (INTS, NOT_INT), (LISTS, [])):
        for field, out_of_range in table.items():
            for value in [*wrong, *out_of_range]:
                yield from _everywhere(field, value)
    for field in BOOLS:
        for value in NOT_BOOL:
            yield from _everywhere(field, value)


def _everywhere(field: str, value: Any) -> Iterator[Case]:
    for route in (CHAT, COMPLETIONS):
        yield _with(route, field, value)
    spelled = NATIVE_NAMES.get(field, field)
    yield _with(NATIVE, "sampling_params", {spelled: value}, f"sampling_params.{spelled}")


OPENAI_FIELDS: dict[str, list[Any]] = {
    "rid": [1, "", "a b", "x" * 65],
    "extra_key": [*NOT_TEXT, "x" * 600],
    "no_stop_trim": NOT_BOOL,
    "stop_regex": ["x"],
    "continue_final_message": [True],
    "return_hidden_states": [True],
    "custom_logit_processor": ["x"],
    "lora_path": ["x"],
    "watermark": [{}],
    "model": [1, [], {}],
    "stream": NOT_BOOL,
    "include_stop_str_in_output": NOT_BOOL,
    "prompt_logprobs": [*NOT_INT, -1, 21],
    "user": NOT_TEXT,
    "metadata": ["x", 1, [1]],
    "cache_salt": [*NOT_TEXT, "x" * 600],
    "priority": [*NOT_INT, 2**31, HUGE],
    "service_tier": ["flex", "priority", 1],
    "store": ["x", 1, True],
    "stream_options": [{"include_usage": True}, "x", 1],
    "response_format": [
        {},
        "text",
        1,
        {"type": "json"},
        {"type": ["text"]},
        {"type": "structural_tag"},
        {"type": "json_schema", "json_schema": {"schema": {"uniqueItems": True}}},
        {"type": "json_schema", "json_schema": {"schema": {"pattern": "a(?=b)"}}},
        {"type": "json_schema", "json_schema": {"schema": False}},
    ],
    "json_schema": [1, "x", "[1", "1", "false", {"format": "regex"}, {"contains": {}}],
    "guided_json": [1, "x", [], {"$ref": "#/nowhere"}, {"enum": []}, {"multipleOf": 0}],
    "regex": [1, [], "(", "a(?=b)", r"(a)\1", "x" * 300_000],
    "guided_regex": [1, "[", "a{2,1}"],
    "ebnf": [1, "start: (", "root ::= (", "start: missing"],
    "guided_grammar": [{}, "x"],
    "constrain_after": [1, "x"],
    "guided_choice": ["a", [], [""], [1], ["x"] * 1025],
    "structural_tag": [1, "x", {}, {"structures": [], "triggers": ["x"]}],
    "no_such_field": [1, None],
    "Temperature": [1],
}
CHAT_FIELDS: dict[str, list[Any]] = {
    "max_completion_tokens": [*NOT_INT, -1, 513, HUGE],
    "logprobs": [*NOT_BOOL, 2],
    "tools": [
        [{"type": "function", "function": {"name": "f"}}],
        1,
        "x",
        {},
        [1],
        [{}],
        [{"type": "retrieval"}],
        [{"type": "function"}],
        [{"type": "function", "function": 1}],
        [{"type": "function", "function": {}}],
        [{"type": "function", "function": {"name": "f"}, "x": 1}],
        [{"type": "function", "function": {"name": "f", "x": 1}}],
        [{"type": "function", "function": {"name": ""}}],
        [{"type": "function", "function": {"name": "a b"}}],
        [{"type": "function", "function": {"name": "x" * 65}}],
        [{"type": "function", "function": {"name": 1}}],
        [{"type": "function", "function": {"name": "f", "description": 1}}],
        [{"type": "function", "function": {"name": "f", "parameters": []}}],
        [{"type": "function", "function": {"name": "f", "strict": "yes"}}],
        [{"type": "function", "function": {"name": "f"}}] * 2,
        [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)],
    ],
    "tool_choice": ["auto", "required", "any", 1, {"type": "function"}, {}, ["auto"]],
    "functions": [[{"name": "f"}], 1, [1], [{}], [{"name": "a b"}]],
    "function_call": ["auto", {"name": "f"}, 1],
    "separate_reasoning": NOT_BOOL,
    "audio": [{"voice": "x"}],
    "modalities": [["audio"], ["text", "audio"], "text", 1],
    "prediction": [{"type": "content", "content": "x"}],
    "reasoning_effort": ["huge", 1, {}],
    "verbosity": ["low"],
    "web_search_options": [{"user_location": None}],
    "parallel_tool_calls": NOT_BOOL,
    "add_generation_prompt": NOT_BOOL,
    "chat_template_kwargs": ["x", 1, [1]],
    "prompt": ["hi"],
    "top_logprobs": [1, "1", True, -1],
}
COMPLETION_FIELDS: dict[str, list[Any]] = {
    "echo": NOT_BOOL,
    "logprobs": [*NOT_INT, -1, 21, HUGE],
    "best_of": ["1", 2, 0, HUGE],
    "suffix": ["x", 1],
    "messages": [MESSAGES],
    "tools": [[]],
}
NATIVE_FIELDS: dict[str, list[Any]] = {
    "stream": NOT_BOOL,
    "return_logprob": NOT_BOOL,
    "logprob_start_len": ["1", True, [], [1, 2], ["1"], {}, 1.5, -2],
    "top_logprobs_num": ["1", True, [], [1, 2], ["1"], {}, 1.5, -1, 21],
    "rid": [1, "", "a b", "x" * 65, "a\n", "\u00e9", ["a", "b"], []],
    "sampling_params": [1, "x", [1], [{}, {}]],
    "image_data": ["x"],
    "lora_path": ["x"],
    "input_embeds": [[[0.1]]],
    "session_params": [{"id": 1}],
    "bootstrap_host": ["10.0.0.1"],
    "incremental_streaming_output": NOT_BOOL,
    "return_prompt_token_ids": NOT_BOOL,
    "token_ids_logprob": ["1", True, {}, 1.5, [1.5], [True], ["1"], [1, [1]], [[1], [2]]],
    "return_entropy": [True],
    "kv_hints": [{}],
    "temperature": [1],
}


def fields() -> Iterator[Case]:
    for route in (CHAT, COMPLETIONS):
        for field, values in OPENAI_FIELDS.items():
            for value in values:
                yield _with(route, field, value)
    for route, table in (
        (CHAT, CHAT_FIELDS),
        (COMPLETIONS, COMPLETION_FIELDS),
        (NATIVE, NATIVE_FIELDS),
    ):
        for field, values in table.items():
            for value in values:
                yield _with(route, field, value)
    for name, bad in {
        "regex": "(",
        "json_schema": "x",
        "ebnf": "x",
        "structural_tag": "x",
        "stop_regex": "x",
        "unknown": "x",
    }.items():
        yield _with(NATIVE, "sampling_params", {name: bad}, f"sampling_params.{name}")
    for route in (CHAT, COMPLETIONS):
        body = {**GOOD[route], "stream": True, "stream_options": {"include_usage": 1}}
        yield _case(route, body, "stream_options.include_usage")
        yield _case(route, {**body, "stream_options": {"x": 1}}, "stream_options.x")
        yield _case(route, {**GOOD[route], "metadata": {"a": 1}}, "metadata.a")
        yield _case(route, {**GOOD[route], "min_tokens": 9, "max_tokens": 5}, "min_tokens")
    both = {"max_tokens": 1, "max_completion_tokens": 2}
    yield _case(CHAT, {**GOOD[CHAT], **both}, "max_tokens")
    yield _case(CHAT, {**GOOD[CHAT], "logprobs": True, "top_logprobs": 21}, "top_logprobs")
    for name, value in {"messages": [], "enable_thinking": 1, "x": True, "thinking": {}}.items():
        options = {"chat_template_kwargs": {name: value}}
        yield _case(CHAT, {**GOOD[CHAT], **options}, f"chat_template_kwargs.{name}")


PROMPTS: list[Any] = [
    None,
    "",
    [],
    [[]],
    [""],
    ["a", ""],
    1,
    1.5,
    True,
    {},
    {"a": 1},
    [1, "a"],
    ["a", 1],
    [1.5],
    [True],
    [None],
    [[1], "a"],
    [[1, "a"]],
    [[[1]]],
    [-1],
    [259],
    [HUGE],
    [[1], [259]],
    [1] * 512,
    [1] * 600,
    "x" * 512,
    "x" * 5000,
    "x" * 200_000,
    ["a"] * 257,
    [[1]] * 257,
]


def prompts() -> Iterator[Case]:
    for value in PROMPTS:
        yield _with(COMPLETIONS, "prompt", value)
        name = "text" if isinstance(value, str) or value is None else "input_ids"
        yield _case(NATIVE, {name: value}, "text" if value is None else name)
    yield _case(COMPLETIONS, {"model": "tiny"}, "prompt")
    yield _case(NATIVE, {}, "text")
    yield _case(NATIVE, {"text": "a", "input_ids": [1]}, "input_ids")
    yield _case(COMPLETIONS, {"prompt": ["a"] * 100, "n": 11}, "n")
    yield _case(CHAT, {"model": "tiny"}, "messages")
    for name, (content, param) in CONTENTS.items():
        yield _case(CHAT, {"messages": [{"role": "user", "content": content}]}, param, name)
    for name, (messages, param) in MESSAGE_LISTS.items():
        yield _case(CHAT, {"messages": messages}, param, name)
    for name, (calls, param) in PAST_CALLS.items():
        past = {"role": "assistant", "content": None, "tool_calls": calls}
        yield _case(CHAT, {"messages": [*MESSAGES, past]}, f"messages[1].tool_calls{param}", name)
    for value in (1, True, {}, [1], [""], "", [], ["a", 1], [["a"]]):
        yield _with(TOKENIZE, "prompt", value)
    yield _case(TOKENIZE, {}, "prompt")
    yield _case(TOKENIZE, {"prompt": "a", "messages": MESSAGES}, "messages")
    yield _case(TOKENIZE, {"messages": [{"role": "x", "content": "y"}]}, "messages[0].role")
    yield _with(TOKENIZE, "add_special_tokens", 1)
    for value in ("1", 1, None, {}, ["1"], [1.0], [True], [-1], [259], [HUGE], [[1]]):
        yield _with(DETOKENIZE, "tokens", value)
    yield _case(DETOKENIZE, {}, "tokens")
    for route in GOOD:
        yield Case(route, json.dumps({**GOOD[route], "model": "gpt"}).encode(), "model", "m", 404)
        yield _with(route, "zzz", 1)


RAW: dict[str, bytes] = {
    "nothing": b"",
    "space": b"  ",
    "text": b"hello",
    "number": b"1",
    "null": b"null",
    "list": b"[]",
    "string": b'"x"',
    "cut": b'{"a": ',
    "two": b"{}{}",
    "comma": b'{"a": 1,}',
    "single quotes": b"{'a': 1}",
    "utf8": b'{"a": "\xff"}',
    "utf8 key": b'{"\xc3(": 1}',
    "utf16": '{"a": 1}'.encode("utf-16"),
    "mark": b"\xef\xbb\xbf{}",
    "surrogate": b'{"a": "\\ud800"}',
    "control": b'{"a": "\x00"}',
    "nan": b'{"temperature": NaN}',
    "infinity": b'{"temperature": Infinity}',
    "minus infinity": b'{"temperature": -Infinity}',
    "too large": b'{"temperature": 1e999}',
    "digits": b'{"seed": ' + b"1" * 100_000 + b"}",
    "deep list": b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}",
    "deep object": b'{"a":' * 70 + b"1" + b"}" * 70,
    "very deep": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "unclosed": b"[" * 1_000_000,
    "many values": b'{"a": [' + b"1," * 2_000_001 + b"1]}",
    "form": b"prompt=hi&n=1",
}


def bodies() -> Iterator[Case]:
    for name, raw in RAW.items():
        for route in (CHAT, COMPLETIONS, NATIVE) if len(raw) < 10_000 else (COMPLETIONS,):
            yield Case(route, raw, None, name)


def _with(route: str, field: str, value: Any, param: str | None = None) -> Case:
    return _case(route, {**GOOD[route], field: value}, param or field)


def _case(route: str, body: dict[str, Any], param: str, name: str | None = None) -> Case:
    raw = json.dumps(body).encode()
    text = name or raw.decode()[-40:]
    return Case(route, raw, param, f"{param}-{text}")


CASES: list[Case] = [*sampling(), *fields(), *prompts(), *bodies()]
