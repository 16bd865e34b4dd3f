"""POST /v1/responses, and what can be done with a response that was stored."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from inferplane.errors import RequestError
from inferplane.messages import TokenLogprobs
from inferplane.server import body
from inferplane.server.encode import json_response, named_event
from inferplane.server.errors import error_body
from inferplane.server.logprobs import chat_logprobs
from inferplane.server.refusals import invalid
from inferplane.server.responses.items import Conversation
from inferplane.server.responses.output import Event, Output
from inferplane.server.responses.replay import replay
from inferplane.server.responses.request import ResponsesRequest
from inferplane.server.responses.store import Stored
from inferplane.server.sampling import renamed
from inferplane.server.service import Service, Usage, namespace, new_id, tenant
from inferplane.server.streaming import EVENT_STREAM, EventStream, Framing, while_connected
from inferplane.server.turn import Ask, Turn, begin

PARAM = "response_id"
MAX_LISTED = 100

log = logging.getLogger(__name__)


def _error_event(error: Exception) -> bytes:
    """Of a failure that the stream did not foresee."""
    found = error_body(error)[1]["error"]
    fields = {name: found[name] for name in ("code", "message", "param")}
    return named_event({"type": "error", "sequence_number": 0, **fields})


EVENTS = Framing(EVENT_STREAM, named_event, _error_event, b"")


async def create(service: Service, request: Request) -> Response:
    asked = await body.read(request, ResponsesRequest)
    service.check_model(asked.model)
    asked.check()
    job = await _prepared(service, request, asked)
    if asked.background:
        return json_response(job.start_in_background())
    if asked.stream:
        return EventStream(request, job.events(), EVENTS)
    return json_response(await while_connected(request.receive, job.run()))


async def count_tokens(service: Service, request: Request) -> Response:
    """How many tokens the prompt of such a request has."""
    asked = await body.read(request, ResponsesRequest)
    service.check_model(asked.model)
    asked.check()
    job = await _prepared(service, request, asked)
    return json_response({"object": "response.input_tokens", "input_tokens": job.prompt_tokens})


async def _prepared(service: Service, request: Request, asked: ResponsesRequest) -> "Job":
    owner = tenant(request)
    history: Sequence[Mapping[str, Any]] = ()
    if asked.previous_response_id is not None:
        history = _history(service, owner, asked.previous_response_id)
    conversation = Conversation(history)
    conversation.add_all("input", asked.input)
    messages = conversation.messages
    if asked.instructions is not None:
        messages = [{"role": "system", "content": asked.instructions}, *messages]
    tools, choice = asked.checked_tools()
    chosen: dict[str, Any] = {"max_tokens": asked.max_output_tokens, "logprobs": None}
    if asked.wants_logprobs:
        chosen["logprobs"] = asked.top_logprobs or 0
    constraint = asked.constraint()
    if constraint is not None:
        chosen |= constraint.fields()
    names = {
        "prompt": "input",
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "reasoning_effort": "reasoning.effort",
        "json_schema": "text.format.schema",
        "structural_tag": "tools" if constraint is None else "text.format",
    }
    with renamed(**names):
        ask = Ask(
            messages=messages,
            params=asked.sampling_params(service.defaults, **chosen),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=asked.parallel_tool_calls is not False,
            reasoning_effort=None if asked.reasoning is None else asked.reasoning.effort,
            namespace=namespace(request, asked.cache_salt),
            priority=asked.priority or 0,
        )
        turn = await begin(service, ask)
    job = Job(service, owner, asked, conversation, turn)
    turn.owner = (owner, job.id)
    return job


def _history(service: Service, owner: str, identity: str) -> Sequence[dict[str, Any]]:
    stored = service.responses.get(owner, identity, "previous_response_id")
    if not stored.messages:
        raise RequestError(
            f"The response '{identity[:64]}' is {stored.resource['status']}: only one that has "
            "ended can be continued.",
            param="previous_response_id",
            code="invalid_value",
        )
    return stored.messages


class Job:
    """One response on its way."""

    def __init__(
        self,
        service: Service,
        owner: str,
        asked: ResponsesRequest,
        conversation: Conversation,
        turn: Turn,
    ) -> None:
        self._service = service
        self._owner = owner
        self._asked = asked
        self._conversation = conversation
        self._turn = turn
        self._output = Output(self._logprobs if asked.wants_logprobs else None)
        self._number = 0
        self.id = new_id("resp_")
        self._head = {
            "id": self.id,
            "object": "response",
            "created_at": int(service.now()),
            "model": asked.model or service.names[0],
            **asked.echoed(service.defaults),
        }

    @property
    def prompt_tokens(self) -> int:
        return self._turn.usage.prompt

    async def run(self) -> dict[str, Any]:
        """The whole response."""
        cut = False
        async with aclosing(self._turn.stream()) as steps:
            async for step in steps:
                for _ in self._output.take(step):
                    pass
                cut = cut or step.finish_reason == "length"
        for _ in self._output.finish(cut=cut):
            pass
        return self._ended(cut)

    async def events(self) -> AsyncGenerator[Event, None]:
        """All of it, in order and numbered. What the engine refuses has no first event."""
        async with aclosing(self._turn.stream()) as steps:
            step = await anext(steps)
            yield self._numbered("response.created", self._resource("in_progress"))
            yield self._numbered("response.in_progress", self._resource("in_progress"))
            cut = False
            try:
                while True:
                    for event in self._output.take(step):
                        yield self._count(event)
                    cut = cut or step.finish_reason == "length"
                    step = await anext(steps)
            except StopAsyncIteration:
                pass
            except Exception as error:
                yield self._numbered("response.failed", self._failed(error))
                return
        for event in self._output.finish(cut=cut):
            yield self._count(event)
        resource = self._ended(cut)
        yield self._numbered(f"response.{resource['status']}", resource)

    def start_in_background(self) -> dict[str, Any]:
        """Returns the response as it is before anything has happened."""
        resource = self._resource("queued")
        stored = Stored(resource, self._conversation.items)
        stored.task = asyncio.create_task(self._work(stored))
        self._service.responses.put(self._owner, stored)
        return resource

    async def _work(self, stored: Stored) -> None:
        identity = stored.resource["id"]
        try:
            stored.resource = self._resource("in_progress")
            await self.run()
        except Exception as error:
            if self._service.responses.has(self._owner, identity):
                failed = Stored(self._failed(error), self._conversation.items)
                self._service.responses.put(self._owner, failed)

    def _ended(self, cut: bool) -> dict[str, Any]:
        """The finished response, stored if it is to be."""
        resource = self._resource("incomplete" if cut else "completed")
        keep = self._asked.store is not False
        if self._asked.background:  # unless it was deleted meanwhile
            keep = self._service.responses.has(self._owner, resource["id"])
        if keep:
            messages = [*self._conversation.messages, self._output.message()]
            stored = Stored(resource, self._conversation.items, messages)
            self._service.responses.put(self._owner, stored)
        return resource

    def _failed(self, error: Exception) -> dict[str, Any]:
        status, found = error_body(error)
        code = "rate_limit_exceeded" if status == 429 else "server_error"
        reason = {"code": code, "message": found["error"]["message"]}
        return {**self._resource("failed"), "error": reason}

    def _resource(self, status: str) -> dict[str, Any]:
        ended = status in ("completed", "incomplete")
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            **self._head,
            "status": status,
            "completed_at": int(self._service.now()) if status == "completed" else None,
            "error": None,
            "incomplete_details": details,
            "output": self._output.items if ended else [],
            **({"usage": usage_body(self._turn.usage)} if ended else {}),
        }

    def _numbered(self, kind: str, resource: dict[str, Any]) -> Event:
        return self._count({"type": kind, "response": resource})

    def _count(self, event: Event) -> Event:
        event["sequence_number"] = self._number
        self._number += 1
        return event

    def _logprobs(self, logprobs: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
        tokenizer = self._service.generator.tokenizer
        top = self._asked.top_logprobs or 0
        content: list[dict[str, Any]] = chat_logprobs(tokenizer, logprobs, top)["content"]
        return content


def usage_body(usage: Usage) -> dict[str, Any]:
    written = usage.prompt - usage.cached
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": written},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning or 0},
        "total_tokens": usage.prompt + usage.output,
    }


def _stored(service: Service, request: Request) -> Stored:
    return service.responses.get(tenant(request), request.path_params[PARAM], PARAM)


async def retrieve(service: Service, request: Request) -> Response:
    """As it is; or with `stream` its events, once it has ended, those after a number or all."""
    stored = _stored(service, request)
    stream = request.query_params.get("stream", "false")
    if stream not in ("true", "false"):
        raise invalid("stream", "must be true or false")
    after = request.query_params.get("starting_after", "-1")
    if not (after == "-1" or (after.isascii() and after.isdigit() and len(after) < 10)):
        raise invalid("starting_after", "must be the number of an event")
    if stream == "false":
        return json_response(stored.resource)
    return EventStream(request, _replayed(service, request, stored, int(after)), EVENTS)


async def _replayed(
    service: Service, request: Request, stored: Stored, after: int
) -> AsyncGenerator[Event, None]:
    if stored.task is not None:
        await asyncio.wait([stored.task])
        stored = _stored(service, request)
    events = list(replay(stored.resource))[after + 1 :]
    if not events:
        raise invalid("starting_after", "is the number of the last event, or more")
    for event in events:
        yield event


async def delete(service: Service, request: Request) -> Response:
    identity = request.path_params[PARAM]
    service.responses.delete(tenant(request), identity, PARAM)
    return json_response({"id": identity, "object": "response", "deleted": True})


async def cancel(service: Service, request: Request) -> Response:
    """Ends a background response; one that has ended already stays as it is."""
    stored = _stored(service, request)
    if not stored.resource["background"]:
        raise RequestError(
            "Only a response that was asked for with background: true can be cancelled; to end "
            "another, close its connection.",
            param=PARAM,
            code="invalid_value",
        )
    if stored.task is not None:
        stored.task.cancel()
        await asyncio.gather(stored.task, return_exceptions=True)
    stored = _stored(service, request)
    if stored.resource["status"] in ("queued", "in_progress"):
        stored.resource = {**stored.resource, "status": "cancelled"}
    return json_response(stored.resource)


async def input_items(service: Service, request: Request) -> Response:
    """The items of a response's own input, the last one first unless `order` is asc."""
    items = list(_stored(service, request).items)
    query = request.query_params
    limit, order, after = query.get("limit", "20"), query.get("order", "desc"), query.get("after")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4):
        raise invalid("limit", f"must be from 1 to {MAX_LISTED}")
    if not 1 <= int(limit) <= MAX_LISTED:
        raise invalid("limit", f"must be from 1 to {MAX_LISTED}")
    if order not in ("asc", "desc"):
        raise invalid("order", "must be asc or desc")
    if order == "desc":
        items.reverse()
    if after is not None:
        at = next((i for i, item in enumerate(items) if item["id"] == after), None)
        if at is None:
            raise invalid("after", "is not the id of an item of this response")
        items = items[at + 1 :]
    page = items[: int(limit)]
    return json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else "",
            "last_id": page[-1]["id"] if page else "",
            "has_more": len(items) > len(page),
        }
    )
