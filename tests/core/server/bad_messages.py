"""Messages that must be refused, with the param that names what is wrong."""

from typing import Any

MESSAGES = [{"role": "user", "content": "hi"}]
CONTENTS: dict[str, tuple[Any, str]] = {
    "missing": (None, "messages[0].content"),
    "number": (1, "messages[0].content"),
    "bool": (True, "messages[0].content"),
    "object": ({"text": "x"}, "messages[0].content"),
    "no parts": ([], "messages[0].content"),
    "many parts": ([{"type": "text", "text": "x"}] * 65, "messages[0].content"),
    "text part": (["x"], "messages[0].content[0]"),
    "no type": ([{"text": "x"}], "messages[0].content[0].type"),
    "type number": ([{"type": 1}], "messages[0].content[0].type"),
    "image": ([{"type": "image_url", "image_url": {"url": "x"}}], "messages[0].content[0].type"),
    "audio": ([{"type": "input_audio"}], "messages[0].content[0].type"),
    "file": ([{"type": "file"}], "messages[0].content[0].type"),
    "no text": ([{"type": "text"}], "messages[0].content[0].text"),
    "text number": ([{"type": "text", "text": 1}], "messages[0].content[0].text"),
    "part field": ([{"type": "text", "text": "x", "y": 1}], "messages[0].content[0].y"),
    "second part": (
        [{"type": "text", "text": "x"}, {"type": "video"}],
        "messages[0].content[1].type",
    ),
}
MESSAGE_LISTS: dict[str, tuple[Any, str]] = {
    "null": (None, "messages"),
    "text": ("hi", "messages"),
    "object": ({"role": "user"}, "messages"),
    "number": (1, "messages"),
    "empty": ([], "messages"),
    "list of text": (["hi"], "messages[0]"),
    "list of null": ([None], "messages[0]"),
    "no role": ([{"content": "x"}], "messages[0].role"),
    "null role": ([{"role": None, "content": "x"}], "messages[0].role"),
    "odd role": ([{"role": "root", "content": "x"}], "messages[0].role"),
    "role number": ([{"role": 1, "content": "x"}], "messages[0].role"),
    "role list": ([{"role": ["user"], "content": "x"}], "messages[0].role"),
    "tool": ([{"role": "tool", "content": "x", "tool_call_id": "y"}], "messages[0].tool_call_id"),
    "tool without id": ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
    "tool id number": (
        [{"role": "tool", "content": "x", "tool_call_id": 1}],
        "messages[0].tool_call_id",
    ),
    "function": ([{"role": "function", "name": "f", "content": "x"}], "messages[0].name"),
    "user with calls": (
        [{"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}],
        "messages[0].tool_calls",
    ),
    "user with result": (
        [{"role": "user", "content": "x", "tool_call_id": "1"}],
        "messages[0].tool_call_id",
    ),
    "user who reasons": (
        [{"role": "user", "content": "x", "reasoning_content": "y"}],
        "messages[0].reasoning_content",
    ),
    "reasoning number": (
        [{"role": "assistant", "content": "x", "reasoning_content": 1}],
        "messages[0].reasoning_content",
    ),
    "no content, no calls": (
        [{"role": "assistant", "content": None, "tool_calls": []}],
        "messages[0].content",
    ),
    "name number": ([{"role": "user", "content": "x", "name": 1}], "messages[0].name"),
    "name long": ([{"role": "user", "content": "x", "name": "x" * 65}], "messages[0].name"),
    "unknown": ([{"role": "user", "content": "x", "zz": 1}], "messages[0].zz"),
    "too many": (MESSAGES * 5000, "messages"),
    "too long": ([{"role": "user", "content": "x" * 600}], "messages"),
    "far too long": ([{"role": "user", "content": "x" * 200_000}], "messages"),
}


CALL: dict[str, Any] = {"id": "1", "type": "function"}
FUNCTION = {"name": "f", "arguments": "{}"}
PAST_CALLS: dict[str, tuple[Any, str]] = {
    "calls": (1, ""),
    "calls object": ({"a": 1}, ""),
    "call": ([1], "[0]"),
    "many": ([{**CALL, "function": FUNCTION}] * 129, ""),
    "no id": ([{"type": "function", "function": FUNCTION}], "[0].id"),
    "id number": ([{"id": 1, "function": FUNCTION}], "[0].id"),
    "id long": ([{"id": "x" * 257, "function": FUNCTION}], "[0].id"),
    "type": ([{**CALL, "type": "custom", "function": FUNCTION}], "[0].type"),
    "field": ([{**CALL, "function": FUNCTION, "x": 1}], "[0].x"),
    "no function": ([CALL], "[0].function"),
    "function": ([{**CALL, "function": "f"}], "[0].function"),
    "function field": ([{**CALL, "function": {**FUNCTION, "x": 1}}], "[0].function.x"),
    "no name": ([{**CALL, "function": {"arguments": "{}"}}], "[0].function.name"),
    "name": ([{**CALL, "function": {**FUNCTION, "name": "a b"}}], "[0].function.name"),
    "no arguments": ([{**CALL, "function": {"name": "f"}}], "[0].function.arguments"),
}
for _bad in ({"a": 1}, 1, "[1]", "{", "1", "null", '{"a": NaN}', "[" * 5000, "x"):
    PAST_CALLS[f"arguments {_bad!r:.20}"] = (
        [{**CALL, "function": {"name": "f", "arguments": _bad}}],
        "[0].function.arguments",
    )
