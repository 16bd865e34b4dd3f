"""POST /v1/messages and /v1/messages/count_tokens."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from inferplane.parsers.events import Arguments, Event, Reasoning, Text, ToolCall
from inferplane.sampling_params import SamplingParams
from inferplane.server import body
from inferplane.server.anthropic.blocks import (
    Conversation,
    checked_choice,
    checked_tools,
    system_text,
)
from inferplane.server.arguments import object_of
from inferplane.server.body import Schema
from inferplane.server.encode import json_response, named_event
from inferplane.server.errors import ANTHROPIC, error_body
from inferplane.server.openai_fields import ShortText
from inferplane.server.refusals import invalid
from inferplane.server.sampling import MAX_ITEMS, TokenIds, refuse_unsupported, renamed
from inferplane.server.service import Service, Usage, namespace, new_id, tenant
from inferplane.server.shapes import UserMessages
from inferplane.server.streaming import EVENT_STREAM, EventStream, Framing, while_connected
from inferplane.server.turn import THINKING, Ask, Step, Turn, begin

UNSUPPORTED = (
    "container",
    "context_management",
    "mcp_servers",
    "output_config",
    "output_format",
    "inference_geo",
)
MIN_BUDGET = 1024

EVENTS = Framing(
    EVENT_STREAM,
    named_event,
    lambda error: named_event(error_body(error, ANTHROPIC)[1]),
    b"",
)
Stops = Annotated[list[str], Field(max_length=MAX_ITEMS, fail_fast=True)]


class Metadata(Schema):
    user_id: ShortText | None = None


class Thinking(Schema):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=MIN_BUDGET, le=2**31 - 1)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class CountRequest(Schema):
    """What a prompt is made of."""

    refused: ClassVar[tuple[str, ...]] = UNSUPPORTED

    model: str
    messages: UserMessages
    system: Any = None
    tools: Any = None
    tool_choice: Any = None
    thinking: Thinking | None = None
    container: Any = None
    context_management: Any = None
    mcp_servers: Any = None
    output_config: Any = None
    output_format: Any = None
    inference_geo: Any = None

    def check(self) -> None:
        refuse_unsupported(self, UNSUPPORTED)

    def ask(self, params: SamplingParams, namespace: str) -> Ask:
        messages = Conversation(self.messages).messages
        system = system_text(self.system)
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
        tools = checked_tools(self.tools)
        choice, parallel = checked_choice(self.tool_choice, tools)
        thinking = {}
        if self.thinking is not None:
            thinking = dict.fromkeys(THINKING, self.thinking.type != "disabled")
        return Ask(
            messages=messages,
            params=params,
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=parallel,
            template=thinking,
            namespace=namespace,
        )


class MessagesRequest(CountRequest):
    """`metadata`, `service_tier`, cache_control and the budget of `thinking`, which max_tokens
    includes, have no effect. `cache_salt`, `min_p` and `seed` are ours."""

    no_effect: ClassVar[tuple[str, ...]] = ("metadata", "service_tier", "thinking.budget_tokens")

    max_tokens: int
    stop_sequences: Stops | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop_token_ids: TokenIds | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    cache_salt: ShortText | None = None

    def check(self) -> None:
        super().check()
        if self.max_tokens < 1:
            raise invalid("max_tokens", f"is {self.max_tokens}, must be at least 1")
        thinking = self.thinking
        if thinking is not None and thinking.type == "enabled":
            if thinking.budget_tokens is None:
                raise invalid("thinking.budget_tokens", "is missing", "missing_required_parameter")
            if thinking.budget_tokens >= self.max_tokens:
                raise invalid("thinking.budget_tokens", "must be less than max_tokens")

    def sampling(self, defaults: Any) -> SamplingParams:
        names = ("temperature", "top_k", "top_p", "min_p", "seed", "stop_token_ids", "max_tokens")
        said = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return SamplingParams(**{**defaults, **said, "stop": self.stop_sequences or []})


async def messages(service: Service, request: Request) -> Response:
    asked = await body.read(request, MessagesRequest)
    service.check_model(asked.model)
    asked.check()
    space = namespace(request, asked.cache_salt)
    with renamed(prompt="messages", stop="stop_sequences"):
        turn = await begin(service, asked.ask(asked.sampling(service.defaults), space))
    answer = Answer(asked.model, turn)
    turn.owner = (tenant(request), answer.id)
    if asked.stream:
        return EventStream(request, answer.events(), EVENTS)
    return json_response(await while_connected(request.receive, answer.whole()))


async def count_tokens(service: Service, request: Request) -> Response:
    asked = await body.read(request, CountRequest)
    service.check_model(asked.model)
    asked.check()
    with renamed(prompt="messages"):
        turn = await begin(service, asked.ask(SamplingParams(), ""))
    return json_response({"input_tokens": len(turn.samples[0].submit.prompt)})


class Answer:
    """One message on its way out; `_blocks` are its content so far."""

    def __init__(self, model: str, turn: Turn) -> None:
        self._turn = turn
        self._blocks: list[dict[str, Any]] = []
        self._written = ""
        """JSON text of the open block's input"""
        self._open = False
        self.id = new_id("msg_")
        self._head = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": model,
        }

    async def whole(self) -> dict[str, Any]:
        last: dict[str, Any] = {}
        async with aclosing(self._turn.stream()) as steps:
            async for step in steps:
                for _ in self._take(step):
                    pass
                last = _stop(step)
        for _ in self._close():
            pass
        return {**self._head, "content": self._blocks, **last, "usage": _usage(self._turn.usage)}

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        last: dict[str, Any] = {}
        started = False
        async with aclosing(self._turn.stream()) as steps:
            async for step in steps:
                if not started:
                    started = True
                    yield self._start()
                    yield {"type": "ping"}
                for event in self._take(step):
                    yield event
                last = _stop(step)
        for event in self._close():
            yield event
        usage = _usage(self._turn.usage)
        yield {"type": "message_delta", "delta": last, "usage": usage}
        yield {"type": "message_stop"}

    def _start(self) -> dict[str, Any]:
        message: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(self._turn.usage),
        }
        return {"type": "message_start", "message": message}

    def _take(self, step: Step) -> Iterator[dict[str, Any]]:
        for event in step.events:
            yield from self._event(event)

    def _event(self, event: Event) -> Iterator[dict[str, Any]]:
        match event:
            case Text(text):
                if not self._in("text"):
                    yield from self._begin({"type": "text", "text": ""})
                self._blocks[-1]["text"] += text
                yield self._delta({"type": "text_delta", "text": text})
            case Reasoning(text):
                if not self._in("thinking"):
                    yield from self._begin({"type": "thinking", "thinking": "", "signature": ""})
                self._blocks[-1]["thinking"] += text
                yield self._delta({"type": "thinking_delta", "thinking": text})
            case ToolCall(_, identity, name):
                block = {"type": "tool_use", "id": identity, "name": name, "input": {}}
                yield from self._begin(block)
            case Arguments(_, text):
                self._written += text
                yield self._delta({"type": "input_json_delta", "partial_json": text})

    def _in(self, kind: str) -> bool:
        return self._open and self._blocks[-1]["type"] == kind

    def _begin(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._close()
        self._open = True
        self._blocks.append(block)
        at = len(self._blocks) - 1
        yield {"type": "content_block_start", "index": at, "content_block": dict(block)}

    def _close(self) -> Iterator[dict[str, Any]]:
        if not self._open:
            return
        self._open = False
        if self._blocks[-1]["type"] == "tool_use":
            self._blocks[-1]["input"] = object_of(self._written)
            self._written = ""
        yield {"type": "content_block_stop", "index": len(self._blocks) - 1}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}


def _stop(step: Step) -> dict[str, Any]:
    """Why the message ended."""
    sequence = step.matched if isinstance(step.matched, str) else None
    match step.finish_reason:
        case "length":
            reason = "max_tokens"
        case "tool_calls":
            reason = "tool_use"
        case _:
            reason = "end_turn" if sequence is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": sequence}


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic counts what came from the cache apart."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.output,
    }
