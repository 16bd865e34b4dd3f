"""POST /v1/chat/completions."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from inferplane.errors import RequestError
from inferplane.generation import Delta, Sample
from inferplane.sampling_params import MAX_LOGPROBS
from inferplane.server import body
from inferplane.server.encode import json_response
from inferplane.server.logprobs import chat_logprobs, prompt_logprobs
from inferplane.server.messages import checked_messages
from inferplane.server.openai_fields import OpenAIFields
from inferplane.server.sampling import refuse_unsupported, renamed
from inferplane.server.service import Service, Usage, namespace, new_id, openai_finish
from inferplane.server.streaming import EventStream

UNSUPPORTED_CHAT = (
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "audio",
    "prediction",
    "web_search_options",
    "reasoning_effort",
    "verbosity",
)
TEMPLATE_OPTIONS = ("enable_thinking", "thinking", "add_vision_id", "date_string")
"""the only variables that a request may set in a chat template"""


class ChatRequest(OpenAIFields):
    messages: list[Any]
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


async def chat(service: Service, request: Request) -> Response:
    asked = await body.read(request, ChatRequest)
    service.check_model(asked.model)
    asked.check()
    chosen: dict[str, Any] = {"logprobs": None}
    if asked.logprobs:
        chosen["logprobs"] = asked.top_logprobs or 0
    names = {"prompt": "messages"}
    if asked.max_completion_tokens is not None:
        chosen["max_tokens"] = asked.max_completion_tokens
        names["max_tokens"] = "max_completion_tokens"
    constraint = asked.constraint()
    if constraint is not None:
        chosen |= constraint[0].fields()
        names[constraint[0].kind] = constraint[1]
    messages = checked_messages(asked.messages)
    options = asked.template_options()
    if asked.add_generation_prompt is not None:
        options = {**options, "add_generation_prompt": asked.add_generation_prompt}
    with renamed(**names):
        params = asked.sampling_params(service.defaults, **chosen)
        await service.generator.check(params)
        prompt = await service.generator.encode_chat(messages, **options)
        samples = service.generator.prepare(
            [prompt],
            params,
            namespace=namespace(request, asked.cache_salt),
            priority=asked.priority or 0,
        )
    answer = Answer(service, asked, samples)
    if asked.stream:
        return EventStream(request, answer.chunks())
    return await answer.whole(request)


class Answer:
    """One chat completion on its way out."""

    def __init__(self, service: Service, asked: ChatRequest, samples: Sequence[Sample]) -> None:
        self._service = service
        self._asked = asked
        self._samples = samples
        self._usage = Usage(samples)
        self._tokenizer = service.generator.tokenizer
        self._head = {
            "id": new_id("chatcmpl-"),
            "created": int(service.now()),
            "model": asked.model or service.names[0],
        }

    async def whole(self, request: Request) -> Response:
        choices = []
        done = await self._service.complete(request, self._samples)
        for sample, completion in zip(self._samples, done, strict=True):
            self._usage.add(sample.index, completion)
            logprobs = None
            if self._asked.logprobs:
                logprobs = self._logprobs(completion.logprobs)
            message = {"role": "assistant", "content": completion.text, "refusal": None}
            choices.append(
                {
                    "index": sample.index,
                    "message": message,
                    "logprobs": logprobs,
                    "finish_reason": openai_finish(completion.finish_reason),
                }
            )
        result: dict[str, Any] = {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": self._usage.body(),
        }
        if done[0].prompt_logprobs is not None:
            result["prompt_logprobs"] = prompt_logprobs(self._tokenizer, done[0].prompt_logprobs)
        return json_response(result)

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        opened: set[int] = set()
        async with aclosing(self._service.stream(self._samples)) as deltas:
            async for delta in deltas:
                self._usage.add(delta.index, delta)
                if delta.index not in opened:
                    opened.add(delta.index)
                    yield self._opening(delta)
                if delta.text or delta.logprobs or delta.finish_reason is not None:
                    yield self._chunk(delta)
        if self._asked.include_usage:
            yield self._frame([], self._usage.body())

    def _opening(self, delta: Delta) -> dict[str, Any]:
        message = {"role": "assistant", "content": ""}
        choice = {"index": delta.index, "delta": message, "logprobs": None, "finish_reason": None}
        frame = self._frame([choice], None)
        if delta.prompt_logprobs is not None:
            frame["prompt_logprobs"] = prompt_logprobs(self._tokenizer, delta.prompt_logprobs)
        return frame

    def _chunk(self, delta: Delta) -> dict[str, Any]:
        logprobs = None
        if self._asked.logprobs and delta.logprobs:
            logprobs = self._logprobs(delta.logprobs)
        choice = {
            "index": delta.index,
            "delta": {"content": delta.text} if delta.text else {},
            "logprobs": logprobs,
            "finish_reason": openai_finish(delta.finish_reason),
        }
        return self._frame([choice], None)

    def _frame(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        frame = {**self._head, "object": "chat.completion.chunk", "choices": choices}
        if self._asked.include_usage:
            frame["usage"] = usage
        return frame

    def _logprobs(self, logprobs: Any) -> dict[str, Any]:
        return chat_logprobs(self._tokenizer, logprobs, self._asked.top_logprobs or 0)
