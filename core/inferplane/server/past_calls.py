"""The tool calls in the history of a conversation, and the results that answer them."""

import json
from typing import Any

from inferplane.errors import RequestError
from inferplane.server.tools import NAME

MAX_CALLS = 128
MAX_ID = 256


class PastCalls:
    """Follows one conversation: every result belongs to a call before it. Calls and results in
    OpenAI's older form (function_call, role function) get ids of their own."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._older: dict[str, str] = {}

    def of(self, where: str, role: str, message: dict[str, Any]) -> dict[str, Any]:
        """What a message has of calls and results, as templates read it."""
        allowed = {"assistant": ("tool_calls", "function_call"), "tool": ("tool_call_id",)}
        for key in ("tool_calls", "function_call", "tool_call_id"):
            if message.get(key) not in (None, []) and key not in allowed.get(role, ()):
                raise _invalid(f"{where}.{key}", f"does not belong in a message of role '{role}'")
        if role == "tool":
            return self._result(f"{where}.tool_call_id", message.get("tool_call_id"))
        if role == "function":
            return self._older_result(f"{where}.name", message.get("name"))
        if message.get("tool_calls"):
            return {"tool_calls": self._calls(f"{where}.tool_calls", message["tool_calls"])}
        if message.get("function_call") is not None:
            at = f"{where}.function_call"
            function = _function(at, message["function_call"])
            id = f"fn{len(self._names):07d}"
            self._names[id] = function["name"]
            self._older[function["name"]] = id
            return {"tool_calls": [{"id": id, "type": "function", "function": function}]}
        return {}

    def _calls(self, where: str, calls: Any) -> list[dict[str, Any]]:
        if not isinstance(calls, list):
            raise _invalid(where, "must be a list", "invalid_type")
        if len(calls) > MAX_CALLS:
            raise _invalid(where, f"has {len(calls)} calls, at most {MAX_CALLS}")
        return [self._call(f"{where}[{i}]", call) for i, call in enumerate(calls)]

    def _call(self, where: str, call: Any) -> dict[str, Any]:
        if not isinstance(call, dict):
            raise _invalid(where, "must be an object", "invalid_type")
        for key in call:
            if key not in ("id", "type", "function", "index"):
                raise _invalid(f"{where}.{key[:64]}", "is unknown", "unknown_parameter")
        id = _id(f"{where}.id", call.get("id"))
        if call.get("type", "function") != "function":
            raise _invalid(f"{where}.type", "must be 'function'")
        function = _function(f"{where}.function", call.get("function"))
        self._names[id] = function["name"]
        return {"id": id, "type": "function", "function": function}

    def _result(self, where: str, value: Any) -> dict[str, Any]:
        id = _id(where, value)
        if id not in self._names:
            raise _invalid(where, "is not the id of a tool call before it")
        return {"tool_call_id": id, "name": self._names[id]}

    def _older_result(self, where: str, name: Any) -> dict[str, Any]:
        if not isinstance(name, str) or name not in self._older:
            raise _invalid(where, "is not the name of a function called before")
        return {"tool_call_id": self._older[name], "name": name}


def _id(where: str, value: Any) -> str:
    if value is None:
        raise _invalid(where, "is missing", "missing_required_parameter")
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID:
        raise _invalid(where, f"must be a string of 1 to {MAX_ID} characters")
    return value


def _function(where: str, function: Any) -> dict[str, Any]:
    """Name and arguments of a call; the arguments, JSON text in the request, as a dict."""
    if function is None:
        raise _invalid(where, "is missing", "missing_required_parameter")
    if not isinstance(function, dict):
        raise _invalid(where, "must be an object", "invalid_type")
    for key in function:
        if key not in ("name", "arguments"):
            raise _invalid(f"{where}.{key[:64]}", "is unknown", "unknown_parameter")
    name, text = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise _invalid(f"{where}.name", f"must match {NAME.pattern}")
    if not isinstance(text, str):
        raise _invalid(f"{where}.arguments", "must be a string with JSON", "invalid_type")
    try:
        arguments = json.loads(text, parse_constant=_refuse) if text.strip() else {}
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise _invalid(f"{where}.arguments", "must be the JSON text of an object")
    return {"name": name, "arguments": arguments}


def _refuse(word: str) -> None:
    raise ValueError(word)  # NaN and Infinity are no JSON


def _invalid(param: str, what: str, code: str = "invalid_value") -> RequestError:
    return RequestError(f"'{param}' {what}.", param=param, code=code)
