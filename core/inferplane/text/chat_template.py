"""Renders chat messages with a model's Jinja template, in a sandbox, as transformers does.

Templates come with models and are not trusted; messages come with requests and are only data.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from inferplane.errors import ModelError, RequestError
from inferplane.text import template_probe

MAX_RENDERED = 8 * 2**20
"""characters; a template can turn a small request into a large prompt"""

DEFAULT = "default"
TOOL_USE = "tool_use"

Message = Mapping[str, Any]

RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})

REASONING = ("reasoning_content", "thinking", "reasoning")
"""names for a message's reasoning; templates read the first, or `thinking`"""


class ChatTemplate:
    """One or more compiled templates. `origin` is for messages: where the source was found."""

    def __init__(self, source: str | Mapping[str, str], origin: str) -> None:
        sources = {DEFAULT: source} if isinstance(source, str) else dict(source)
        self.source = "\n".join(sources.values())
        self.variables: set[str] = set()
        """the names that the templates use"""
        self._templates: dict[str, Template] = {}
        for name, text in sources.items():
            try:
                self._templates[name] = _environment().from_string(text)
                names = _environment().parse(text).find_all(nodes.Name)
                self.variables.update(node.name for node in names)
            except TemplateSyntaxError as error:
                raise ModelError(
                    f"{origin}: chat template {name!r}, line {error.lineno}: {error.message};"
                    " give another with --chat-template"
                ) from error

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        """The prompt for these messages; RequestError if the template refuses them. The arguments
        of their tool calls are dicts."""
        if any(message.get("tool_calls") for message in messages) and self._wants_text:
            messages = [_with_text_arguments(message) for message in messages]
        return self._render(messages, tools, add_generation_prompt, variables)

    @cached_property
    def shows_tools(self) -> bool:
        """Whether a model gets to see the tools of a request."""
        return template_probe.shows_tools(self._probe)

    @cached_property
    def _wants_text(self) -> bool:
        return template_probe.wants_text(self._probe)

    def _probe(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> str:
        return self._render(messages, tools, True, {})

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        taken = RESERVED & variables.keys()
        if taken:
            raise RequestError(
                f"chat template argument {min(taken)!r} is set by the request itself",
                param="chat_template_kwargs",
            )
        pieces = self._select(tools).generate(
            {
                "documents": None,
                **variables,
                "messages": [_with_reasoning(message) for message in messages],
                "tools": list(tools) if tools is not None else None,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        kept: list[str] = []
        room = MAX_RENDERED
        try:
            for piece in pieces:
                room -= len(piece)
                if room < 0:
                    break
                kept.append(piece)
        except Exception as error:  # whatever an expression of the template can raise
            raise RequestError(
                f"the model's chat template cannot render these messages: {_reason(error)}",
                param="messages",
                code="chat_template_error",
            ) from error
        if room < 0:
            raise RequestError(
                f"the messages render to more than {MAX_RENDERED} characters", param="messages"
            )
        return "".join(kept)

    def _select(self, tools: Sequence[Mapping[str, Any]] | None) -> Template:
        if tools and TOOL_USE in self._templates:
            return self._templates[TOOL_USE]
        if DEFAULT in self._templates:
            return self._templates[DEFAULT]
        raise RequestError(
            f"the model has chat templates {sorted(self._templates)} but none is the default;"
            " the server's --chat-template can set one",
            param="messages",
        )


class _Generation(Extension):
    """Accepts {% generation %}, with which training marks the assistant's words."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes <, > and &, which prompts must not have."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _with_reasoning(message: Message) -> Message:
    """Fill in the names for reasoning that templates read from those that clients send."""
    reasoning = next((message[k] for k in REASONING if message.get(k) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _with_text_arguments(message: Message) -> Message:
    """With the arguments of its calls as JSON text, for templates that only put them in."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_text_call(call) for call in calls]}


def _text_call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or isinstance(function.get("arguments"), str | None):
        return call
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if isinstance(error, TemplateError) else f"{type(error).__name__}: {text}"
