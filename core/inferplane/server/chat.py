"""POST /v1/chat/completions."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Annotated, Any, ClassVar

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from inferplane.errors import RequestError
from inferplane.parsers.events import Arguments, Event, Reasoning, Text, ToolCall
from inferplane.sampling_params import MAX_LOGPROBS
from inferplane.server import body
from inferplane.server.encode import json_response
from inferplane.server.logprobs import chat_logprobs, prompt_logprobs
from inferplane.server.messages import checked_messages
from inferplane.server.openai_fields import OpenAIFields
from inferplane.server.sampling import refuse_unsupported, renamed
from inferplane.server.service import Service, namespace, new_id
from inferplane.server.shapes import Messages
from inferplane.server.streaming import EventStream
from inferplane.server.tools import (
    Tool,
    ToolChoice,
    checked_choice,
    checked_functions,
    checked_tools,
    older_choice,
)
from inferplane.server.turn import Answer, Ask, Step, Turn, begin

UNSUPPORTED_CHAT = (
    "audio",
    "prediction",
    "web_search_options",
    "verbosity",
)
TEMPLATE_OPTIONS = ("enable_thinking", "thinking", "add_vision_id", "date_string")
"""the only variables that a request may set in a chat template"""


class ChatRequest(OpenAIFields):
    refused: ClassVar[tuple[str, ...]] = (*OpenAIFields.refused, *UNSUPPORTED_CHAT)

    messages: Messages
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[str], Field(max_length=8)] | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    reasoning_effort: Any = None
    separate_reasoning: bool | None = None
    verbosity: Any = None

    def check(self) -> None:
        self.check_common()
        refuse_unsupported(self, UNSUPPORTED_CHAT)
        if self.modalities not in (None, ["text"]):
            raise RequestError(
                "modalities other than ['text'] are not supported by this server yet.",
                param="modalities",
                code="unsupported_parameter",
            )
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise RequestError(
                "max_tokens and max_completion_tokens exclude each other: send the latter.",
                param="max_tokens",
                code="invalid_value",
            )
        if self.top_logprobs is not None:
            if not self.logprobs:
                raise RequestError(
                    "top_logprobs is only allowed when logprobs is true",
                    param="top_logprobs",
                    code="invalid_value",
                )
            if not 0 <= self.top_logprobs <= MAX_LOGPROBS:
                raise RequestError(
                    f"top_logprobs is {self.top_logprobs}, outside [0, {MAX_LOGPROBS}]",
                    param="top_logprobs",
                    code="invalid_value",
                )

    def template_options(self) -> dict[str, Any]:
        options = self.chat_template_kwargs or {}
        for name, value in options.items():
            param = f"chat_template_kwargs.{name[:64]}"
            if name not in TEMPLATE_OPTIONS:
                raise RequestError(
                    f"'{param}' is not one of {', '.join(TEMPLATE_OPTIONS)}.",
                    param=param,
                    code="unknown_parameter",
                )
            if not isinstance(value, bool | str) or len(str(value)) > 64:
                raise RequestError(
                    f"'{param}' must be true, false or a short string.",
                    param=param,
                    code="invalid_type",
                )
        return options

    def offered(self) -> tuple[list[Tool], ToolChoice]:
        """The tools, in today's form or in the older one of functions."""
        if not self.functions and self.function_call in (None, "none"):
            tools = checked_tools("tools", self.tools) if self.tools is not None else []
            return tools, checked_choice("tool_choice", self.tool_choice, tools)
        for name in ("tools", "tool_choice"):
            if getattr(self, name) is not None:
                raise RequestError(
                    f"'{name}' excludes 'functions' and 'function_call', its older form.",
                    param=name,
                    code="invalid_value",
                )
        functions = checked_functions("functions", self.functions or [])
        return functions, older_choice("function_call", self.function_call, functions)

    def ask(self, service: Service, namespace: str) -> Ask:
        """The turn that this request asks for."""
        chosen: dict[str, Any] = {"logprobs": None}
        if self.logprobs:
            chosen["logprobs"] = self.top_logprobs or 0
        if self.max_completion_tokens is not None:
            chosen["max_tokens"] = self.max_completion_tokens
        constraint = self.constraint()
        if constraint is not None:
            chosen |= constraint[0].fields()
        messages = checked_messages(self.messages)
        tools, choice = self.offered()
        template = self.template_options()
        if self.add_generation_prompt is not None:
            template = {**template, "add_generation_prompt": self.add_generation_prompt}
        return Ask(
            messages=messages,
            params=self.sampling_params(service.defaults, **chosen),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls is not False and not self.functions,
            reasoning_effort=self.reasoning_effort,
            separate_reasoning=self.separate_reasoning is not False,
            template=template,
            namespace=namespace,
            priority=self.priority or 0,
        )


async def chat(service: Service, request: Request) -> Response:
    asked = await body.read(request, ChatRequest)
    service.check_model(asked.model)
    asked.check()
    names = {"prompt": "messages"}
    if asked.max_completion_tokens is not None:
        names["max_tokens"] = "max_completion_tokens"
    if asked.functions:
        names |= {"tools": "functions", "tool_choice": "function_call"}
    constraint = asked.constraint()
    if constraint is not None:
        names[constraint[0].kind] = constraint[1]
    with renamed(**names):
        ask = asked.ask(service, namespace(request, asked.salt))
        turn = await begin(service, ask)
    answer = ChatAnswer(service, asked, turn)
    turn.owner = asked.owner(request, answer.id)
    if asked.stream:
        return EventStream(request, answer.chunks())
    return await answer.whole(request)


class ChatAnswer:
    """One chat completion on its way out: a Turn in OpenAI's shapes."""

    def __init__(self, service: Service, asked: ChatRequest, turn: Turn) -> None:
        self._asked = asked
        self._turn = turn
        self._tokenizer = service.generator.tokenizer
        self.id = new_id("chatcmpl-")
        self._head = {
            "id": self.id,
            "created": int(service.now()),
            "model": asked.model or service.names[0],
        }

    async def whole(self, request: Request) -> Response:
        answers = await self._turn.complete(request)
        result: dict[str, Any] = {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(answer) for answer in answers],
            "usage": self._turn.usage.body(),
        }
        scored = answers[0].completion.prompt_logprobs
        if scored is not None:
            result["prompt_logprobs"] = prompt_logprobs(self._tokenizer, scored)
        return json_response(result)

    def _choice(self, answer: Answer) -> dict[str, Any]:
        parsed = answer.parsed
        content = None if parsed.calls and not parsed.text else parsed.text
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if parsed.reasoning:
            message["reasoning_content"] = parsed.reasoning
        if parsed.calls and self._asked.functions:
            call = parsed.calls[0]
            message["function_call"] = {"name": call.name, "arguments": call.arguments}
        elif parsed.calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in parsed.calls
            ]
        logprobs = None
        if self._asked.logprobs:
            logprobs = self._logprobs(answer.completion.logprobs)
        return {
            "index": answer.index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": self._reason(answer.finish_reason),
            "matched_stop": answer.completion.matched,
        }

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        opened: set[int] = set()
        async with aclosing(self._turn.stream()) as steps:
            async for step in steps:
                if step.index not in opened:
                    opened.add(step.index)
                    yield self._opening(step)
                for chunk in self._chunks_of(step):
                    yield chunk
        if self._asked.include_usage:
            yield self._frame([], self._turn.usage.body())

    def _opening(self, step: Step) -> dict[str, Any]:
        message = {"role": "assistant", "content": ""}
        choice = {"index": step.index, "delta": message, "logprobs": None, "finish_reason": None}
        frame = self._frame([choice], None)
        if step.prompt_logprobs is not None:
            frame["prompt_logprobs"] = prompt_logprobs(self._tokenizer, step.prompt_logprobs)
        return frame

    def _chunks_of(self, step: Step) -> Iterator[dict[str, Any]]:
        """A chunk for each event; the logprobs come with the first, the reason with the last."""
        shape = _older_delta if self._asked.functions else _delta
        deltas = [shape(event) for event in step.events]
        if not deltas and (step.logprobs or step.finish_reason is not None):
            deltas = [{}]
        logprobs = None
        if self._asked.logprobs and step.logprobs:
            logprobs = self._logprobs(step.logprobs)
        for at, delta in enumerate(deltas, 1):
            choice = {
                "index": step.index,
                "delta": delta,
                "logprobs": logprobs,
                "finish_reason": self._reason(step.finish_reason) if at == len(deltas) else None,
            }
            if choice["finish_reason"] is not None:
                choice["matched_stop"] = step.matched
            logprobs = None
            yield self._frame([choice], None)

    def _frame(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        frame = {**self._head, "object": "chat.completion.chunk", "choices": choices}
        if self._asked.include_usage:
            frame["usage"] = usage
        return frame

    def _reason(self, reason: str | None) -> str | None:
        return "function_call" if reason == "tool_calls" and self._asked.functions else reason

    def _logprobs(self, logprobs: Any) -> dict[str, Any]:
        return chat_logprobs(self._tokenizer, logprobs, self._asked.top_logprobs or 0)


def _delta(event: Event) -> dict[str, Any]:
    match event:
        case Text(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text}
        case ToolCall(index, id, name):
            function = {"name": name, "arguments": ""}
            return {
                "tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]
            }
        case Arguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def _older_delta(event: Event) -> dict[str, Any]:
    """For requests with `functions`."""
    match event:
        case ToolCall(_, _, name):
            return {"function_call": {"name": name, "arguments": ""}}
        case Arguments(_, text):
            return {"function_call": {"arguments": text}}
        case _:
            return _delta(event)
