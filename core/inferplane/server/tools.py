"""The tools that a request offers to the model, checked, whatever API they came by."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from inferplane.errors import RequestError

MAX_TOOLS = 128
NAME = re.compile("[a-zA-Z0-9_.:-]{1,64}")
MAX_DESCRIPTION = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call. `parameters` is the JSON schema of its arguments, None
    if it has none; `strict` demands arguments that obey it."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False

    def for_template(self) -> dict[str, Any]:
        """As chat templates read tools: OpenAI's form."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model may (auto), must (required) or must not (none) call a tool; with a `name`
    it must call that one."""

    mode: Literal["auto", "required", "none"] = "auto"
    name: str | None = None


AUTO = ToolChoice()


def checked_tools(where: str, tools: Any) -> list[Tool]:
    """OpenAI's `tools`: [{"type": "function", "function": {...}}]."""
    found = []
    for at, tool in _each(where, tools):
        if not isinstance(tool, dict):
            raise _invalid(at, "must be an object", "invalid_type")
        if tool.get("type") != "function":
            raise _invalid(f"{at}.type", "must be 'function'")
        _known(at, tool, ("type", "function"))
        found.append(checked_function(f"{at}.function", tool.get("function")))
    return _distinct(where, found)


def checked_functions(where: str, functions: Any) -> list[Tool]:
    """OpenAI's older `functions`: the bare functions."""
    return _distinct(where, [checked_function(at, item) for at, item in _each(where, functions)])


def checked_function(where: str, function: Any) -> Tool:
    """{"name": ..., "description": ..., "parameters": ..., "strict": ...}"""
    if function is None:
        raise _invalid(where, "is missing", "missing_required_parameter")
    if not isinstance(function, dict):
        raise _invalid(where, "must be an object", "invalid_type")
    _known(where, function, ("name", "description", "parameters", "strict"))
    name, description = function.get("name"), function.get("description")
    if name is None:
        raise _invalid(f"{where}.name", "is missing", "missing_required_parameter")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise _invalid(f"{where}.name", f"must match {NAME.pattern}")
    if description is not None and not (
        isinstance(description, str) and len(description) <= MAX_DESCRIPTION
    ):
        raise _invalid(
            f"{where}.description", f"must be a string of at most {MAX_DESCRIPTION} characters"
        )
    parameters, strict = function.get("parameters"), function.get("strict")
    if parameters is not None and not isinstance(parameters, dict):
        raise _invalid(f"{where}.parameters", "must be a JSON schema object", "invalid_type")
    if strict is not None and not isinstance(strict, bool):
        raise _invalid(f"{where}.strict", "must be true or false", "invalid_type")
    return Tool(name=name, description=description, parameters=parameters, strict=bool(strict))


def checked_choice(where: str, choice: Any, tools: Sequence[Tool]) -> ToolChoice:
    """OpenAI's `tool_choice`; None means auto where there are tools."""
    if not tools and choice not in (None, "none"):
        raise _invalid(where, "is only allowed with tools")
    match choice:
        case None:
            return AUTO
        case "auto" | "none" | "required":
            return ToolChoice(choice)
        case {"type": "function", "function": {"name": str(name)}} if (
            len(choice) == 2 and len(choice["function"]) == 1
        ):
            return named(where, name, tools)
        case dict():
            raise _invalid(where, "must be {'type': 'function', 'function': {'name': ...}}")
    raise _invalid(where, "must be 'auto', 'required', 'none' or a function")


def older_choice(where: str, choice: Any, functions: Sequence[Tool]) -> ToolChoice:
    """OpenAI's older `function_call`."""
    if not functions and choice not in (None, "none"):
        raise _invalid(where, "is only allowed with functions")
    match choice:
        case None:
            return AUTO
        case "auto" | "none":
            return ToolChoice(choice)
        case {"name": str(name)} if len(choice) == 1:
            return named(where, name, functions)
    raise _invalid(where, "must be 'auto', 'none' or {'name': ...}")


def named(where: str, name: str, tools: Sequence[Tool]) -> ToolChoice:
    """The choice of one tool by name."""
    if name not in {tool.name for tool in tools}:
        raise _invalid(where, f"names the function '{name[:64]}', which is not among the tools")
    return ToolChoice("required", name)


def _each(where: str, items: Any) -> list[tuple[str, Any]]:
    if not isinstance(items, list):
        raise _invalid(where, "must be a list", "invalid_type")
    if len(items) > MAX_TOOLS:
        raise _invalid(where, f"has {len(items)} entries, at most {MAX_TOOLS}")
    return [(f"{where}[{i}]", item) for i, item in enumerate(items)]


def _distinct(where: str, tools: list[Tool]) -> list[Tool]:
    seen: set[str] = set()
    for tool in tools:
        if tool.name in seen:
            raise _invalid(where, f"has two functions named '{tool.name}'")
        seen.add(tool.name)
    return tools


def _known(where: str, value: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for key in value:
        if key not in names:
            raise _invalid(f"{where}.{key[:64]}", "is unknown", "unknown_parameter")


def _invalid(param: str, what: str, code: str = "invalid_value") -> RequestError:
    return RequestError(f"'{param}' {what}.", param=param, code=code)
