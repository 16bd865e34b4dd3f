"""Anthropic's messages and tools, block by block, as templates and a Turn read them."""

from typing import Any

from inferplane.server.messages import MAX_MESSAGES, MAX_PARTS
from inferplane.server.refusals import (
    invalid,
    kind_of,
    known,
    list_at,
    missing,
    object_at,
    text_at,
    unsupported,
)
from inferplane.server.tools import MAX_TOOLS, Tool, ToolChoice, checked_function, named

MAX_ID = 128
TEXT_FIELDS = ("type", "text", "cache_control", "citations")
"""cache_control has no effect: every prefix is cached"""
BLOCKS = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
}

Message = dict[str, Any]


def system_text(system: Any) -> str | None:
    if system is None or isinstance(system, str):
        return system
    return "\n".join(_text(at, block) for at, block in list_at("system", system, MAX_PARTS))


class Conversation:
    """The messages, checked. A user's message with results of tools becomes a message for each."""

    def __init__(self, given: Any) -> None:
        self.messages: list[Message] = []
        self._names: dict[str, str] = {}
        at = ""
        for at, message in list_at("messages", given, MAX_MESSAGES):
            self._add(at, object_at(at, message))
        if self.messages[-1]["role"] == "assistant":
            raise unsupported(f"{at}.role", "a last message of the assistant, to be continued,")

    def _add(self, at: str, message: dict[str, Any]) -> None:
        known(at, message, ("role", "content"))
        role = message.get("role")
        if role is None:
            raise missing(f"{at}.role")
        if not isinstance(role, str) or role not in BLOCKS:
            raise invalid(f"{at}.role", "must be 'user' or 'assistant'")
        content = message.get("content")
        if content is None:
            raise missing(f"{at}.content")
        if isinstance(content, str):
            self.messages.append({"role": role, "content": content})
            return
        blocks = list_at(f"{at}.content", content, MAX_PARTS)
        for where, block in blocks:
            kind = kind_of(where, object_at(where, block))
            if kind not in BLOCKS[role]:
                raise unsupported(f"{where}.type", f"'{kind[:64]}' in a message of the {role}")
        if role == "user":
            self._add_user(blocks)
        else:
            self._add_assistant(blocks)

    def _add_user(self, blocks: list[tuple[str, dict[str, Any]]]) -> None:
        texts: list[str] = []
        for where, block in blocks:
            if block["type"] == "text":
                texts.append(_text(where, block))
                continue
            known(where, block, ("type", "tool_use_id", "content", "is_error", "cache_control"))
            identity = text_at(f"{where}.tool_use_id", block.get("tool_use_id"), MAX_ID)
            if identity not in self._names:
                raise invalid(f"{where}.tool_use_id", "is not that of a tool_use before it")
            if not isinstance(block.get("is_error"), bool | None):
                raise invalid(f"{where}.is_error", "must be true or false", "invalid_type")
            text = _result(f"{where}.content", block.get("content"))
            message = {"role": "tool", "tool_call_id": identity, "name": self._names[identity]}
            self.messages.append({**message, "content": text})
        if texts:
            self.messages.append({"role": "user", "content": "\n".join(texts)})

    def _add_assistant(self, blocks: list[tuple[str, dict[str, Any]]]) -> None:
        message: Message = {"role": "assistant", "content": ""}
        for where, block in blocks:
            match block["type"]:
                case "text":
                    message["content"] += _text(where, block)
                case "tool_use":
                    message.setdefault("tool_calls", []).append(self._call(where, block))
                case "thinking":
                    known(where, block, ("type", "thinking", "signature"))
                    text = text_at(f"{where}.thinking", block.get("thinking"))
                    message["reasoning_content"] = message.get("reasoning_content", "") + text
        self.messages.append(message)

    def _call(self, where: str, block: dict[str, Any]) -> dict[str, Any]:
        known(where, block, ("type", "id", "name", "input", "cache_control"))
        identity = text_at(f"{where}.id", block.get("id"), MAX_ID)
        name = text_at(f"{where}.name", block.get("name"), MAX_ID)
        arguments = object_at(f"{where}.input", block.get("input"))
        self._names[identity] = name
        return {
            "id": identity,
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }


def _text(where: str, block: Any) -> str:
    if kind_of(where, object_at(where, block)) != "text":
        raise unsupported(f"{where}.type", "a block other than text")
    known(where, block, TEXT_FIELDS)
    return text_at(f"{where}.text", block.get("text"))


def _result(where: str, content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if content == []:
        return ""
    return "\n".join(_text(at, block) for at, block in list_at(where, content, MAX_PARTS))


def checked_tools(tools: Any) -> list[Tool]:
    """Custom tools; those that Anthropic's servers run are refused."""
    if tools in (None, []):
        return []
    found: list[Tool] = []
    for at, tool in list_at("tools", tools, MAX_TOOLS):
        kind = object_at(at, tool).get("type") or "custom"
        if kind != "custom":
            raise unsupported(f"{at}.type", "a tool that the server runs itself")
        names = ("type", "name", "description", "input_schema", "strict", "cache_control")
        known(at, tool, names)
        schema = tool.get("input_schema")
        if schema is None:
            raise missing(f"{at}.input_schema")
        object_at(f"{at}.input_schema", schema)
        function = {name: tool.get(name) for name in ("name", "description", "strict")}
        found.append(checked_function(at, {**function, "parameters": schema}))
    if len({tool.name for tool in found}) != len(found):
        raise invalid("tools", "has two tools of the same name")
    return found


def checked_choice(choice: Any, tools: list[Tool]) -> tuple[ToolChoice, bool]:
    """(choice, whether several calls are allowed)"""
    if choice is None:
        return ToolChoice(), True
    object_at("tool_choice", choice)
    kind = kind_of("tool_choice", choice)
    known("tool_choice", choice, ("type", "name", "disable_parallel_tool_use"))
    single = choice.get("disable_parallel_tool_use", False)
    if not isinstance(single, bool):
        where = "tool_choice.disable_parallel_tool_use"
        raise invalid(where, "must be true or false", "invalid_type")
    match kind:
        case "auto" | "none":
            return ToolChoice(kind), not single
        case "any":
            if not tools:
                raise invalid("tool_choice", "is 'any', but there are no tools")
            return ToolChoice("required"), not single
        case "tool":
            name = text_at("tool_choice.name", choice.get("name"), MAX_ID)
            return named("tool_choice.name", name, tools), not single
    raise invalid("tool_choice.type", "must be auto, any, tool or none")
