"""What POST /v1/responses takes."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from inferplane.sampling_params import MAX_LOGPROBS, Constraint
from inferplane.server.body import Schema
from inferplane.server.constraints import of_response_format
from inferplane.server.openai_fields import PRIORITY_LIMIT, ShortText
from inferplane.server.refusals import invalid, kind_of, list_at, object_at, unsupported
from inferplane.server.sampling import CommonSampling, refuse_unsupported, renamed
from inferplane.server.shapes import Input
from inferplane.server.tools import (
    AUTO,
    MAX_TOOLS,
    Tool,
    ToolChoice,
    checked_choice,
    checked_function,
    named,
)

LOGPROBS = "message.output_text.logprobs"
INCLUDE = (LOGPROBS, "reasoning.encrypted_content")
"""the second adds nothing: reasoning comes in the clear, and may be sent back as it came"""
UNSUPPORTED = (
    "conversation",
    "prompt",
    "moderation",
    "max_tool_calls",
    "prompt_cache_options",
    "prompt_cache_retention",
    "context_management",
)


class ReasoningFields(Schema):
    effort: str | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None
    mode: Any = None
    context: Any = None


class TextFields(Schema):
    format: Any = None
    verbosity: Any = None


class ResponseStreamOptions(Schema):
    include_obfuscation: bool | None = None


class ResponsesRequest(CommonSampling):
    """`user`, `safety_identifier`, `prompt_cache_key` and `service_tier` have no effect."""

    refused: ClassVar[tuple[str, ...]] = (
        *UNSUPPORTED,
        "text.verbosity",
        "reasoning.mode",
        "reasoning.context",
    )
    no_effect: ClassVar[tuple[str, ...]] = (
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "service_tier",
        "stream_options",
    )

    input: Input = None
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    previous_response_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningFields | None = None
    text: TextFields | None = None
    include: Annotated[list[str], Field(max_length=16)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    truncation: Literal["disabled"] | None = None
    metadata: Annotated[dict[str, ShortText], Field(max_length=16)] | None = None
    user: ShortText | None = None
    safety_identifier: Annotated[str, Field(max_length=64)] | None = None
    prompt_cache_key: ShortText | None = None
    service_tier: Literal["auto", "default"] | None = None
    cache_salt: ShortText | None = None
    priority: Annotated[int, Field(ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT)] | None = None
    conversation: Any = None
    prompt: Any = None
    moderation: Any = None
    max_tool_calls: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    context_management: Any = None

    def check(self) -> None:
        refuse_unsupported(self, UNSUPPORTED)
        if self.input is None:
            raise invalid("input", "is missing", "missing_required_parameter")
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "is only allowed when stream is true")
        if self.background and self.stream:
            raise unsupported("stream", "a stream of a background response")
        if self.background and self.store is False:
            raise invalid("store", "is false, but a background response must be stored")
        for i, name in enumerate(self.include or ()):
            if name not in INCLUDE:
                raise unsupported(f"include[{i}]", f"'{name[:64]}'")
        if self.top_logprobs is not None and not self.wants_logprobs:
            raise invalid("top_logprobs", f"needs '{LOGPROBS}' in include")
        if self.text is not None and self.text.verbosity is not None:
            raise unsupported("text.verbosity", "verbosity")
        for name in ("mode", "context"):
            if getattr(self.reasoning, name, None) is not None:
                raise unsupported(f"reasoning.{name}", name)

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def constraint(self) -> Constraint | None:
        """What `text.format` demands, which chat completions spell a little differently."""
        given = None if self.text is None else self.text.format
        if given is None:
            return None
        spelled = {"response_format": "text.format"}
        if isinstance(given, dict) and given.get("type") == "json_schema":
            spelled["response_format.json_schema.schema"] = "text.format.schema"
            inner = {name: given[name] for name in given if name != "type"}
            if inner.get("schema") is None:
                raise invalid("text.format.schema", "is missing", "missing_required_parameter")
            given = {"type": "json_schema", "json_schema": inner}
        with renamed(**spelled):
            return of_response_format(given)

    def checked_tools(self) -> tuple[list[Tool], ToolChoice]:
        tools = []
        given = [] if self.tools in (None, []) else list_at("tools", self.tools, MAX_TOOLS)
        for at, tool in given:
            kind = kind_of(at, object_at(at, tool))
            if kind != "function":
                raise unsupported(f"{at}.type", f"a tool of type '{kind[:64]}'")
            tools.append(checked_function(at, {k: v for k, v in tool.items() if k != "type"}))
        if len({tool.name for tool in tools}) != len(tools):
            raise invalid("tools", "has two functions of the same name")
        return tools, self._choice(tools)

    def _choice(self, tools: list[Tool]) -> ToolChoice:
        choice = self.tool_choice
        if choice is None:
            return AUTO
        if isinstance(choice, dict):
            if choice.get("type") == "function" and isinstance(choice.get("name"), str):
                return named("tool_choice", choice["name"], tools)
            raise unsupported("tool_choice", "a tool_choice other than {'type': 'function', ...}")
        return checked_choice("tool_choice", choice, tools)

    def echoed(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a response that say what was asked for."""
        temperature = defaults.get("temperature", 1.0)
        top_p = defaults.get("top_p", 1.0)
        reasoning = self.reasoning or ReasoningFields()
        return {
            "background": bool(self.background),
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": None,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
            "service_tier": "default",
            "store": self.store is not False,
            "temperature": temperature if self.temperature is None else self.temperature,
            "text": {"format": (self.text and self.text.format) or {"type": "text"}},
            "tool_choice": self.tool_choice or "auto",
            "tools": [{"strict": None, "parameters": None, **tool} for tool in self.tools or []],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": top_p if self.top_p is None else self.top_p,
            "truncation": "disabled",
            **({"user": self.user} if self.user is not None else {}),
            "prompt_cache_key": self.prompt_cache_key,
            "safety_identifier": self.safety_identifier,
        }
