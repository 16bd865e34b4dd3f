"""One turn of a conversation: messages and tools in, the model's answer out as events.

Every chat API of the server (OpenAI chat completions and responses, Anthropic messages, Ollama
chat) checks its own request, makes an `Ask`, and renders the `Turn` that `begin` gives in its own
shapes. What a Turn promises them:

- `Ask.messages` are dicts as chat templates read them: `role` is system, user, assistant or tool;
  `content` is a string. An assistant message may have `reasoning_content` (a string) and
  `tool_calls`: [{"id", "type": "function", "function": {"name", "arguments"}}] with `arguments`
  a dict (server/messages.py checks OpenAI's form and makes this of it). A tool message has
  `tool_call_id`, and `name` if known.
- `begin` tokenizes and checks everything, and starts nothing. A RequestError names the field as
  OpenAI's chat API does: messages (or prompt, of the rendered text), tools, tool_choice,
  reasoning_effort, or a field of SamplingParams; other APIs wrap it in `sampling.renamed`.
- `stream()` gives Steps until each choice had one with a `finish_reason`; closing it aborts. A
  Step may have no events. Order matters within a choice only.
- `complete(request)` gives the same, put together, one Answer for each of n choices, in order.
- Both count into `usage`, which is whole when they have ended.
- `finish_reason` is "stop", "length" or "tool_calls" (the answer has a call and was not cut).
  `matched` tells an end of sequence (an id), a stop string (that string), or none of them.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request

from inferplane.errors import RequestError
from inferplane.generation import Completion, Delta, Sample
from inferplane.messages import TokenLogprobs
from inferplane.parsers.events import Arguments, Event, Parsed, Parser, Plain, ToolCall
from inferplane.sampling_params import SamplingParams
from inferplane.server.demand import demand, may_call_early
from inferplane.server.open_requests import Owner
from inferplane.server.sampling import renamed
from inferplane.server.service import Service, Usage, openai_finish
from inferplane.server.streaming import while_connected
from inferplane.server.tools import AUTO, Tool, ToolChoice

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
THINKING = ("enable_thinking", "thinking")
"""the names under which templates switch reasoning on and off"""
TAIL = 24
"""how many tokens at the end of a prompt are enough to see a tag that opens reasoning"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What one turn is asked for; see the module's docstring. `template` are further variables
    of the chat template. Without `separate_reasoning` reasoning is part of the text, tags and
    all."""

    messages: Sequence[Mapping[str, Any]]
    params: SamplingParams
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice = AUTO
    parallel_tool_calls: bool = True
    reasoning_effort: str | None = None
    separate_reasoning: bool = True
    template: Mapping[str, Any] = field(default_factory=dict)
    namespace: str = ""
    priority: int = 0


@dataclass(slots=True)
class Step:
    """What one choice has newly produced; the fields are those of generation.Delta, with events
    in the place of text."""

    index: int
    events: list[Event]
    tokens: list[int]
    logprobs: list[TokenLogprobs]
    prompt_logprobs: list[TokenLogprobs | None] | None
    cached_tokens: int
    finish_reason: str | None
    matched: int | str | None


@dataclass(slots=True)
class Answer:
    """One finished choice. `completion.text` is what the model wrote, unparsed."""

    index: int
    parsed: Parsed
    completion: Completion
    finish_reason: str


class _Choice:
    """The parser of one choice, and what it has seen."""

    def __init__(self, parser: Parser, parallel: bool) -> None:
        self._parser = parser
        self._parallel = parallel
        self.called = False
        self.reasoning_tokens = 0

    def push(self, delta: Delta) -> list[Event]:
        """Token by token while the model reasons, to count the tokens of it."""
        events: list[Event] = []
        start = 0
        for end in delta.ends:
            before = self._parser.in_reasoning
            events += self._parser.push(delta.text[start:end])
            self.reasoning_tokens += before or self._parser.in_reasoning
            start = end
        events += self._parser.push(delta.text[start:])
        if delta.finish_reason is not None:
            events += self._parser.flush()
        return self._kept(events)

    def _kept(self, events: list[Event]) -> list[Event]:
        """Without the calls after the first, if only one was allowed."""
        calls = [event for event in events if isinstance(event, ToolCall | Arguments)]
        self.called = self.called or bool(calls)
        if self._parallel or not any(call.index for call in calls):
            return events
        return [e for e in events if not (isinstance(e, ToolCall | Arguments) and e.index)]

    def finish(self, reason: str | None) -> str | None:
        return "tool_calls" if reason == "stop" and self.called else openai_finish(reason)


class Turn:
    """Sequences that are ready to run, with a parser for each."""

    def __init__(
        self,
        service: Service,
        samples: Sequence[Sample],
        parser: Callable[[], Parser],
        parallel: bool,
    ) -> None:
        self._service = service
        self._choices = {sample.index: _Choice(parser(), parallel) for sample in samples}
        self.samples = samples
        self.owner: Owner | None = None
        """who may abort it, and under which name"""
        self.usage = Usage(samples)
        self.usage.reasoning = 0

    async def stream(self) -> AsyncGenerator[Step, None]:
        async with aclosing(self._deltas()) as deltas:
            async for delta in deltas:
                yield self._step(delta)

    def _deltas(self) -> AsyncGenerator[Delta, None]:
        owners = [] if self.owner is None else [self.owner] * len(self.samples)
        return self._service.stream(self.samples, owners)

    async def complete(self, request: Request) -> list[Answer]:
        """For as long as the client is there to wait for it."""
        return await while_connected(request.receive, self._complete())

    async def _complete(self) -> list[Answer]:
        parsed = {sample.index: Parsed() for sample in self.samples}
        done = {sample.index: Completion() for sample in self.samples}
        async with aclosing(self._deltas()) as deltas:
            async for delta in deltas:
                done[delta.index].add(delta)
                step = self._step(delta)
                parsed[delta.index].add(step.events)
        return [
            Answer(index, parsed[index], done[index], self._finish(index, done[index]))
            for index in parsed
        ]

    def _finish(self, index: int, completion: Completion) -> str:
        return self._choices[index].finish(completion.finish_reason) or "stop"

    def _step(self, delta: Delta) -> Step:
        choice = self._choices[delta.index]
        events = choice.push(delta)
        self.usage.add(delta.index, delta)
        self.usage.reasoning = sum(c.reasoning_tokens for c in self._choices.values())
        return Step(
            index=delta.index,
            events=events,
            tokens=delta.tokens,
            logprobs=delta.logprobs,
            prompt_logprobs=delta.prompt_logprobs,
            cached_tokens=delta.cached_tokens,
            finish_reason=choice.finish(delta.finish_reason),
            matched=delta.matched,
        )


async def begin(service: Service, ask: Ask) -> Turn:
    """The turn that `ask` asks for, checked and ready to run."""
    generator, parsers = service.generator, service.parsers
    offered = () if ask.tool_choice.mode == "none" else ask.tools
    template = {**_effort(service, ask.reasoning_effort), **ask.template}
    if offered:
        _check_tools(service)
        template["tools"] = [tool.for_template() for tool in offered]
    prompt = await generator.encode_chat([dict(message) for message in ask.messages], **template)
    inside = parsers.starts_inside(
        generator.tokenizer.decode(prompt[-TAIL:], skip_special_tokens=False)
    )
    tools, constraint = demand(
        parsers,
        offered,
        ask.tool_choice,
        many=ask.parallel_tool_calls,
        in_reasoning=inside,
        constrained=ask.params.constraint is not None,
    )
    params = ask.params
    if constraint is not None:
        params = msgspec.structs.replace(params, **constraint.fields())
    if (
        params.constraint is not None
        and inside
        and parsers.reasoning
        and not params.constrain_after
        and not (constraint is not None and may_call_early(parsers, ask.tool_choice))
    ):
        params = msgspec.structs.replace(params, constrain_after=parsers.reasoning.closes)
    make = parsers.parser(
        tools,
        in_reasoning=inside,
        separate=ask.separate_reasoning,
        schemas={tool.name: tool.parameters or {} for tool in offered},
    )
    with renamed(**({} if constraint is None else {"structural_tag": "tools"})):
        await generator.check(params)
    samples = generator.prepare(
        [prompt],
        params,
        namespace=ask.namespace,
        priority=ask.priority,
        shown=None if make is Plain else parsers.shown,
        trace=parsers.reasoning is not None,
    )
    return Turn(service, samples, make, ask.parallel_tool_calls)


def _check_tools(service: Service) -> None:
    template = service.generator.tokenizer.chat_template
    if template is None:
        return  # rendering says what is wrong
    if not template.shows_tools:
        raise RequestError(
            "the model's chat template has no place for tools: leave 'tools' out, or start the"
            " server with a --chat-template that has one.",
            param="tools",
            code="unsupported_parameter",
        )
    if service.parsers.tools is None:
        raise RequestError(
            "how this model writes tool calls is not known: leave 'tools' out, or start the"
            " server with a --tool-call-parser.",
            param="tools",
            code="unsupported_parameter",
        )


def _effort(service: Service, effort: str | None) -> dict[str, Any]:
    """Template variables for a reasoning effort: its own, or the switch of models that know only
    reasoning or none."""
    if effort is None:
        return {}
    if effort not in EFFORTS:
        raise RequestError(
            f"'reasoning_effort' must be one of {', '.join(EFFORTS)}.",
            param="reasoning_effort",
            code="invalid_value",
        )
    template = service.generator.tokenizer.chat_template
    variables = template.variables if template else set()
    if effort != "none" and "reasoning_effort" in variables:
        return {"reasoning_effort": effort}
    switches = [name for name in THINKING if name in variables]
    if switches:
        return dict.fromkeys(switches, effort != "none")
    if effort == "none" and service.parsers.reasoning is None:
        return {}
    raise RequestError(
        f"the model's chat template has no reasoning effort {effort!r}: leave it out.",
        param="reasoning_effort",
        code="unsupported_parameter",
    )
