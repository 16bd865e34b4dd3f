"""What models of each family write, by their published formats, and what it means.

Special tokens are written by their names; `special` says which markers are special tokens.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from inferplane.parsers.events import Arguments, Call, Event, Parsed, Reasoning, Text
from inferplane.parsers.formats import FORCED, REASONING, TOOLS
from inferplane.parsers.machine import Machine
from inferplane.parsers.source import stand_ins

SCHEMAS = {
    "write": {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "mode": {"enum": ["a", "w"]},
            "lines": {"type": "array"},
            "count": {"type": "integer"},
            "force": {"type": "boolean"},
        },
    }
}


@dataclass(frozen=True)
class Case:
    name: str
    tools: str | None
    text: str
    said: str = ""
    calls: tuple[tuple[str, Any], ...] = ()
    reasoning: str | None = None
    thought: str = ""
    special: tuple[str, ...] = ()
    inside: bool = False
    separate: bool = True
    ids: tuple[str, ...] = field(default=())

    def machine(self) -> Machine:
        tools = FORCED if self.tools == "forced" else TOOLS[self.tools] if self.tools else None
        return Machine(
            tools,
            REASONING[self.reasoning] if self.reasoning else None,
            special=stand_ins(self.special),
            schemas=SCHEMAS,
            in_reasoning=self.inside,
            separate=self.separate,
            new_id=lambda: "id",
        )

    def given(self) -> str:
        """The text as the machine gets it."""
        text = self.text
        for name, char in stand_ins(self.special).items():
            text = text.replace(name, char)
        return text

    def expected(self) -> Parsed:
        calls = []
        for i, (name, arguments) in enumerate(self.calls):
            text = arguments if isinstance(arguments, str) else json.dumps(arguments)
            calls.append(Call(self.ids[i] if self.ids else "id", name, text))
        return Parsed(self.said, self.thought, calls)


def parse(case: Case, pieces: Iterable[str]) -> list[Event]:
    """All events, neighbours of a kind put together."""
    machine = case.machine()
    events: list[Event] = []
    for piece in pieces:
        events += machine.push(piece)
    events += machine.flush()
    merged: list[Event] = []
    for event in events:
        last = merged[-1] if merged else None
        match last, event:
            case Text(a), Text(b):
                merged[-1] = Text(a + b)
            case Reasoning(a), Reasoning(b):
                merged[-1] = Reasoning(a + b)
            case Arguments(i, a), Arguments(j, b) if i == j:
                merged[-1] = Arguments(i, a + b)
            case _:
                merged.append(event)
    return merged


def together(events: list[Event]) -> Parsed:
    parsed = Parsed()
    parsed.add(events)
    return parsed
