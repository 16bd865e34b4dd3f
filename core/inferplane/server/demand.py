"""What a grammar must hold an answer to, so that its calls are what a request demands: one at
least if the choice is required or named, and arguments of strict tools that obey their schemas."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from inferplane.errors import RequestError
from inferplane.parsers.choose import Parsers
from inferplane.parsers.formats import ToolFormat
from inferplane.sampling_params import Constraint
from inferplane.server.tools import Tool, ToolChoice


def demand(
    parsers: Parsers,
    offered: Sequence[Tool],
    choice: ToolChoice,
    *,
    many: bool,
    in_reasoning: bool,
    constrained: bool,
) -> tuple[ToolFormat | None, Constraint | None]:
    """The format in which calls come, and the constraint. `many`: more calls than one may come;
    `in_reasoning`: the prompt has opened it; `constrained`: the request has another constraint."""
    required = choice.mode == "required"
    strict = [tool.name for tool in offered if tool.strict]
    if not offered or not (required or strict):
        return (parsers.tools if offered else None), None
    if constrained:
        raise RequestError(
            "response_format, and whatever else constrains the output, excludes strict tools and"
            " a tool_choice that requires a call: leave one of them out.",
            param="tool_choice" if required else "tools",
            code="invalid_value",
        )
    form = parsers.forced()
    own = parsers.tools is not None and parsers.tools.writing is not None
    if not required and not own:
        raise _not_strict(parsers, strict[0], "how a grammar writes such calls is not known")
    if not required and form.bare and parsers.reasoning is not None and not in_reasoning:
        raise _not_strict(parsers, strict[0], "it may begin behind reasoning without any marker")
    if not required and form.channels and not parsers.special:
        raise _not_strict(parsers, strict[0], "its markers are no special tokens of the model")
    assert form.writing is not None
    functions = [
        (tool.name, _schema(tool), not (tool.strict or required))
        for tool in offered
        if choice.name in (None, tool.name)
    ]
    spec = form.writing.spec(functions, required=required, many=many and choice.name is None)
    thinks = parsers.reasoning
    if thinks is not None and not in_reasoning and thinks.opens in parsers.special:
        spec["blocks"] = [[thinks.opens, thinks.closes]]  # of tokens that are in no free text
    return form, Constraint("structural_tag", json.dumps(spec, ensure_ascii=False))


def may_call_early(parsers: Parsers, choice: ToolChoice) -> bool:
    """Whether a call may end the reasoning, so that a grammar must watch that, too."""
    form = parsers.reasoning
    return form is not None and form.calls_end_it and choice.mode != "required"


def _schema(tool: Tool) -> Mapping[str, Any]:
    if tool.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **tool.parameters}


def _not_strict(parsers: Parsers, name: str, why: str) -> RequestError:
    return RequestError(
        f"strict is not supported for calls that the model may make in its own format"
        f" ({parsers.tools_name}), as {why}: send tool_choice 'required', or leave strict out of"
        f" '{name}'.",
        param="tools",
        code="unsupported_parameter",
    )
