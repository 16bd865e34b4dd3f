"""Ollama's endpoints: lines of JSON unless `stream` is false, durations in nanoseconds."""

import datetime
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import inferplane
from inferplane.generation import Delta, Sample
from inferplane.parsers.events import Arguments, Event, Reasoning, Text, ToolCall
from inferplane.server import body
from inferplane.server.arguments import object_of
from inferplane.server.encode import json_response, line
from inferplane.server.errors import OLLAMA, error_body
from inferplane.server.ollama.fields import (
    SPELLINGS,
    ChatRequest,
    Common,
    GenerateRequest,
    ShowRequest,
    checked_messages,
)
from inferplane.server.refusals import missing
from inferplane.server.sampling import renamed
from inferplane.server.service import Service, Usage, namespace, openai_finish
from inferplane.server.streaming import EventStream, Framing, while_connected
from inferplane.server.tools import checked_tools
from inferplane.server.turn import Ask, begin

LINES = Framing("application/x-ndjson", line, lambda error: line(error_body(error, OLLAMA)[1]), b"")

Piece = tuple[list[Event], str | None]
"""(what is new, why the answer ended)"""
Shape = Callable[[str, str, list[dict[str, Any]]], dict[str, Any]]
"""text, thinking and calls as the endpoint shows them"""


async def chat(service: Service, request: Request) -> Response:
    asked = await body.read(request, ChatRequest)
    service.check_model(asked.model)
    asked.check()
    if asked.messages == []:
        return _loaded(service, asked, _message)
    tools = [] if asked.tools in (None, []) else checked_tools("tools", asked.tools)
    with renamed(**SPELLINGS, prompt="messages", reasoning_effort="think"):
        ask = Ask(
            messages=checked_messages(asked.messages),
            params=asked.params(service.defaults),
            tools=tools,
            reasoning_effort=asked.effort,
            template=asked.template(),
            namespace=namespace(request, None),
        )
        turn = await begin(service, ask)
    answer = Answer(service, asked.model, _message, turn.usage)
    return await answer.respond(request, asked, _pieces(turn.stream()))


async def generate(service: Service, request: Request) -> Response:
    """A prompt in the model's template, or as it is (`raw`)."""
    asked = await body.read(request, GenerateRequest)
    service.check_model(asked.model)
    asked.check()
    if not asked.prompt:
        return _loaded(service, asked, _response)
    with renamed(**SPELLINGS, messages="prompt", reasoning_effort="think"):
        if asked.raw:
            ids = await service.generator.encode(asked.prompt)
            params = asked.params(service.defaults)
            await service.generator.check(params)
            space = namespace(request, None)
            samples = service.generator.prepare([ids], params, namespace=space)
            usage = Usage(samples)
            pieces = _raw_pieces(service, samples, usage)
        else:
            messages = [{"role": "user", "content": asked.prompt}]
            if asked.system is not None:
                messages.insert(0, {"role": "system", "content": asked.system})
            ask = Ask(
                messages=messages,
                params=asked.params(service.defaults),
                reasoning_effort=asked.effort,
                template=asked.template(),
                namespace=namespace(request, None),
            )
            turn = await begin(service, ask)
            usage, pieces = turn.usage, _pieces(turn.stream())
    answer = Answer(service, asked.model, _response, usage)
    return await answer.respond(request, asked, pieces)


async def _pieces(steps: AsyncGenerator[Any, None]) -> AsyncGenerator[Piece, None]:
    async with aclosing(steps):
        async for step in steps:
            yield step.events, step.finish_reason


async def _raw_pieces(
    service: Service, samples: list[Sample], usage: Usage
) -> AsyncGenerator[Piece, None]:
    deltas: AsyncGenerator[Delta, None] = service.stream(samples)
    async with aclosing(deltas):
        async for delta in deltas:
            usage.add(delta.index, delta)
            events: list[Event] = [Text(delta.text)] if delta.text else []
            yield events, openai_finish(delta.finish_reason)


def _message(text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = calls
    return {"message": message}


def _response(text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    return {"response": text, **({"thinking": thinking} if thinking else {})}


def _loaded(service: Service, asked: Common, shape: Shape) -> Response:
    """Ollama loads a model for a request that asks nothing; ours is there."""
    head = {"model": asked.model, "created_at": _time(service.now())}
    return json_response({**head, **shape("", "", []), "done": True, "done_reason": "load"})


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()


class Answer:
    """One answer on its way out. Calls are shown whole."""

    def __init__(self, service: Service, model: str, shape: Shape, usage: Usage) -> None:
        self._service = service
        self._model = model
        self._shape = shape
        self._usage = usage
        self._started = service.clock()
        self._first: float | None = None
        self._reason: str | None = None
        self._calls: list[tuple[ToolCall, list[str]]] = []

    async def respond(
        self, request: Request, asked: Common, pieces: AsyncGenerator[Piece, None]
    ) -> Response:
        if asked.streams:
            return EventStream(request, self._lines(pieces), LINES)
        return json_response(await while_connected(request.receive, self._whole(pieces)))

    async def _whole(self, pieces: AsyncGenerator[Piece, None]) -> dict[str, Any]:
        text = thinking = ""
        async with aclosing(self._timed(pieces)) as timed:
            async for piece in timed:
                new_text, new_thinking = self._take(piece)
                text, thinking = text + new_text, thinking + new_thinking
        return self._last(text, thinking)

    async def _lines(self, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Any, None]:
        async with aclosing(self._timed(pieces)) as timed:
            async for piece in timed:
                text, thinking = self._take(piece)
                if text or thinking:
                    yield {**self._head(), **self._shape(text, thinking, []), "done": False}
        if self._calls:
            yield {**self._head(), **self._shape("", "", self._shown_calls()), "done": False}
            self._calls = []
        yield self._last("", "")

    async def _timed(self, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
        async with aclosing(pieces):
            async for piece in pieces:
                self._first = self._first or self._service.clock()
                yield piece

    def _take(self, piece: Piece) -> tuple[str, str]:
        """(text, thinking) of the events; calls are kept."""
        text = thinking = ""
        events, self._reason = piece
        for event in events:
            match event:
                case Text(new):
                    text += new
                case Reasoning(new):
                    thinking += new
                case ToolCall():
                    self._calls.append((event, []))
                case Arguments(index, new):
                    self._calls[index][1].append(new)
        return text, thinking

    def _shown_calls(self) -> list[dict[str, Any]]:
        return [
            {
                "id": call.id,
                "function": {
                    "index": call.index,
                    "name": call.name,
                    "arguments": object_of("".join(pieces)),
                },
            }
            for call, pieces in self._calls
        ]

    def _head(self) -> dict[str, Any]:
        return {"model": self._model, "created_at": _time(self._service.now())}

    def _last(self, text: str, thinking: str) -> dict[str, Any]:
        now = self._service.clock()
        first = self._first or now
        return {
            **self._head(),
            **self._shape(text, thinking, self._shown_calls()),
            "done": True,
            "done_reason": "length" if self._reason == "length" else "stop",
            "total_duration": _nanoseconds(now - self._started),
            "load_duration": 0,
            "prompt_eval_count": self._usage.prompt,
            "prompt_eval_duration": _nanoseconds(first - self._started),
            "eval_count": self._usage.output,
            "eval_duration": _nanoseconds(now - first),
        }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _details(service: Service) -> dict[str, Any]:
    family = service.client.info.architecture
    return {
        "parent_model": "",
        "format": "",
        "family": family,
        "families": [family],
        "parameter_size": "",
        "quantization_level": service.client.info.dtype,
    }


def _capabilities(service: Service) -> list[str]:
    template = service.generator.tokenizer.chat_template
    tools = template is not None and template.shows_tools and service.parsers.tools is not None
    found = {"completion": True, "tools": tools, "thinking": service.parsers.reasoning is not None}
    return [name for name, has in found.items() if has]


async def tags(service: Service, request: Request) -> Response:
    name = service.names[0]
    model = {
        "name": name,
        "model": name,
        "modified_at": _time(service.started),
        "details": _details(service),
    }
    return json_response({"models": [model]})


async def show(service: Service, request: Request) -> Response:
    asked = await body.read(request, ShowRequest)
    name = asked.model or asked.name
    if name is None:
        raise missing("model")
    service.check_model(name)
    info = service.client.info
    family = info.architecture
    return json_response(
        {
            "modelfile": "",
            "parameters": "\n".join(f"{k} {v}" for k, v in service.defaults.items()),
            "template": "",
            "details": _details(service),
            "model_info": {
                "general.architecture": family,
                f"{family}.context_length": info.max_model_len,
                f"{family}.vocab_size": info.vocab_size,
            },
            "capabilities": _capabilities(service),
            "modified_at": _time(service.started),
        }
    )


async def version(service: Service, request: Request) -> Response:
    return json_response({"version": inferplane.__version__})
