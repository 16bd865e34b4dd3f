"""Which formats a model speaks: named by the user, or told by its chat template.

Other packages bring formats by the entry point group `inferplane.parsers`: each entry point is a
ToolFormat, a ReasoningFormat, or a tuple of both, under the name that users give.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from inferplane.errors import ConfigError, PluginError
from inferplane.parsers.events import Parser, Plain
from inferplane.parsers.formats import FORCED, REASONING, TOOLS, ReasoningFormat, ToolFormat
from inferplane.parsers.machine import Machine
from inferplane.parsers.source import stand_ins
from inferplane.parsers.written_calls import TaggedCall

GROUP = "inferplane.parsers"
AUTO, NONE = "auto", "none"
BETWEEN = "..."
"""OPEN...CLOSE names tags that no format has"""

log = logging.getLogger(__name__)
Format = TypeVar("Format", ToolFormat, ReasoningFormat)


@dataclass(frozen=True)
class Parsers:
    """The formats of one model; a name is none where there is no format. `special` has the
    stand-ins of those markers that are special tokens, `shown` the same by token id."""

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None
    tools_name: str = NONE
    reasoning_name: str = NONE
    special: Mapping[str, str] = field(default_factory=dict)
    shown: Mapping[int, str] = field(default_factory=dict)

    def forced(self) -> ToolFormat:
        """The format of calls that a grammar forces."""
        form = self.tools
        if form is not None and form.writing is not None:
            if isinstance(form.shape, TaggedCall):
                return replace(form, shape=replace(form.shape, exact=True))
            return form
        return replace(FORCED, short_ids=bool(self.tools and self.tools.short_ids))

    def starts_inside(self, end_of_prompt: str) -> bool:
        """Whether the prompt has opened the reasoning already."""
        form = self.reasoning
        if form is None or form.channels:
            return False
        return end_of_prompt.rstrip().endswith((form.opens, form.opens + form.header))

    def parser(
        self,
        tools: ToolFormat | None,
        *,
        in_reasoning: bool,
        separate: bool,
        schemas: Mapping[str, Mapping[str, Any]],
    ) -> Callable[[], Parser]:
        """Makes parsers for the answers to one request; without `tools` it offered none."""
        if tools is None and self.reasoning is None:
            return Plain
        return lambda: Machine(
            tools,
            self.reasoning,
            special=self.special,
            schemas=schemas,
            in_reasoning=in_reasoning,
            separate=separate,
        )


def choose(
    tools: str, reasoning: str, template: str, special_tokens: Mapping[int, str] | None = None
) -> Parsers:
    """The formats that the options `tools` and `reasoning` mean for a model with this chat
    template; ConfigError for a name that nothing has, PluginError for one that does not load."""
    tools_name, tool_format = _find(ToolFormat, TOOLS, "--tool-call-parser", tools, template)
    reasoning_name: str
    reasoning_format: ReasoningFormat | None
    if BETWEEN in reasoning:
        reasoning_name, reasoning_format = reasoning, _tags(reasoning)
    else:
        reasoning_name, reasoning_format = _find(
            ReasoningFormat, REASONING, "--reasoning-parser", reasoning, template
        )
    formats = [f for f in (tool_format, reasoning_format) if f is not None]
    names = [marker for form in formats for marker in form.markers]
    tokens = {i: text for i, text in (special_tokens or {}).items() if text in names}
    special = stand_ins(tokens.values())
    return Parsers(
        tools=tool_format,
        reasoning=reasoning_format,
        tools_name=tools_name,
        reasoning_name=reasoning_name,
        special=special,
        shown={i: special[text] for i, text in tokens.items()},
    )


def _tags(name: str) -> ReasoningFormat:
    opens, _, closes = name.partition(BETWEEN)
    if not opens or not closes or opens == closes:
        raise ConfigError(
            f"--reasoning-parser is {name!r}, must be two different tags, OPEN...CLOSE"
        )
    return ReasoningFormat(opens=opens, closes=closes)


def _find(
    kind: type[Format], built_in: Mapping[str, Format], option: str, name: str, template: str
) -> tuple[str, Format | None]:
    if name == NONE:
        return NONE, None
    if name == AUTO:
        known = {**_installed(kind), **built_in}
        for found, form in known.items():
            if any(all(sign in template for sign in signs) for signs in form.signs):
                return found, form
        return NONE, None
    points: dict[str, EntryPoint] = {point.name: point for point in entry_points(group=GROUP)}
    if name in points:
        for loaded in _load(points[name]):
            if isinstance(loaded, kind):
                return name, loaded
    if name in built_in:
        return name, built_in[name]
    names = ", ".join([AUTO, NONE, *built_in, *points])
    raise ConfigError(f"{option} is {name!r}, must be one of {names}")


def _installed(kind: type[Format]) -> dict[str, Format]:
    """The formats of other packages; one that does not load is left out with a warning."""
    found: dict[str, Format] = {}
    for point in entry_points(group=GROUP):
        try:
            formats = _load(point)
        except PluginError as error:
            log.warning("%s: it is not used", error)
            continue
        for form in formats:
            if isinstance(form, kind):
                found[point.name] = form
    return found


def _load(point: EntryPoint) -> Iterable[ToolFormat | ReasoningFormat]:
    try:
        loaded = point.load()
    except Exception as error:
        raise PluginError(f"parser {point.name}: {type(error).__name__}: {error}") from error
    formats = loaded if isinstance(loaded, tuple) else (loaded,)
    if not formats or not all(isinstance(f, ToolFormat | ReasoningFormat) for f in formats):
        raise PluginError(
            f"parser {point.name} is {loaded!r:.80}, must be a ToolFormat, a ReasoningFormat,"
            " or a tuple of both"
        )
    return formats
