"""What an answer consists of, piece by piece, whatever format the model writes it in."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """Call `index` of this answer begins. Indices count from 0; a call ends where the next one,
    a Text or a Reasoning begins, or with the answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A piece of the JSON text of call `index`'s arguments. Joined they are an object, unless the
    model was cut short or wrote something else."""

    index: int
    text: str


Event = Text | Reasoning | ToolCall | Arguments


class Parser(Protocol):
    """Turns the text of one answer into events. The joined pieces do not depend on how the text
    is cut; no text makes it raise."""

    @property
    def in_reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as is known."""
        ...

    def push(self, text: str) -> list[Event]: ...

    def flush(self) -> list[Event]:
        """What was held back, at the end of the answer."""
        ...


class Plain:
    """A model without reasoning, asked without tools: all of it is text."""

    in_reasoning = False

    def push(self, text: str) -> list[Event]:
        return [Text(text)] if text else []

    def flush(self) -> list[Event]:
        return []


@dataclass(slots=True)
class Call:
    """One finished call; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Parsed:
    """All events of one answer, put together."""

    text: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case Text(text):
                    self.text += text
                case Reasoning(text):
                    self.reasoning += text
                case ToolCall(_, id, name):
                    self.calls.append(Call(id, name))
                case Arguments(index, text):
                    self.calls[index].arguments += text
