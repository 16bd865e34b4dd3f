"""What a chat template can do, told by rendering small conversations with it."""

from collections.abc import Callable, Sequence
from typing import Any

from inferplane.errors import RequestError

Render = Callable[[Sequence[dict[str, Any]], Sequence[dict[str, Any]] | None], str]

NAME, KEY = "probe_function", "probe_key"
ID = "abcdefghi"
"""Mistral's templates want ids of nine letters"""
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "A probe.",
        "parameters": {
            "type": "object",
            "properties": {KEY: {"type": "string", "description": "A key."}},
            "required": [KEY],
        },
    },
}
USER = {"role": "user", "content": "Hello"}


def shows_tools(render: Render) -> bool:
    """Whether the model gets to see the tools."""
    try:
        return NAME in render([USER], [TOOL])
    except RequestError:
        return False


def wants_text(render: Render) -> bool:
    """Whether the arguments of past calls must be JSON text: where a dict cannot be rendered, or
    comes out as Python writes it."""
    try:
        text = render(_history({KEY: "value"}), [TOOL])
    except RequestError:
        return _renders(render, f'{{"{KEY}": "value"}}')
    return f"'{KEY}'" in text


def _renders(render: Render, arguments: Any) -> bool:
    try:
        return KEY in render(_history(arguments), [TOOL])
    except RequestError:
        return False


def _history(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": ID, "type": "function", "function": {"name": NAME, "arguments": arguments}}
    return [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": ID, "name": NAME},
    ]
