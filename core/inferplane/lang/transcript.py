"""What a program has said so far: texts, images and marks of roles, in order.

A model's chat template turns it into a prompt. Knows nothing of models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from inferplane.errors import ProgramError
from inferplane.lang.expressions import Image, RoleBegin, RoleEnd, Text

Item = Text | Image | RoleBegin | RoleEnd
ChatTemplate = Callable[[list[dict[str, Any]], bool], str]
"""(messages in OpenAI's form, whether the assistant is to answer) -> prompt"""

MARK = "inferplane-writes-here"
"""stands for the content of an unfinished message, to find its place in the rendered ones"""


@dataclass
class Message:
    role: str
    parts: list[str | Image] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join([part for part in self.parts if isinstance(part, str)])

    @property
    def images(self) -> list[Image]:
        return [part for part in self.parts if isinstance(part, Image)]

    def body(self) -> dict[str, Any]:
        """In OpenAI's form."""
        content: Any = self.text
        if self.images:
            content = [
                {"type": "text", "text": part}
                if isinstance(part, str)
                else {"type": "image_url", "image_url": {"url": part.url()}}
                for part in self.parts
            ]
        return {"role": self.role, "content": content}


@dataclass
class Shape:
    """`head` text, whole messages, the one that is being written, `tail` text."""

    head: Message = field(default_factory=lambda: Message(""))
    messages: list[Message] = field(default_factory=list)
    open: Message | None = None
    tail: Message = field(default_factory=lambda: Message(""))

    @property
    def is_plain(self) -> bool:
        return not self.messages and self.open is None


class Transcript:
    def __init__(self, items: Sequence[Item] = ()) -> None:
        self.items = list(items)
        self._role: str | None = None
        for item in items:
            self._enter(item)

    def copy(self) -> "Transcript":
        return Transcript(self.items)

    def add(self, item: Item) -> None:
        self._enter(item)
        self.items.append(item)

    def _enter(self, item: Item) -> None:
        if isinstance(item, RoleBegin):
            if self._role is not None:
                raise ProgramError(f"{item.role} begins before {self._role} has ended")
            self._role = item.role
        elif isinstance(item, RoleEnd):
            if self._role != item.role:
                raise ProgramError(f"{item.role} ends, but the open role is {self._role}")
            self._role = None

    def text_since(self, mark: int = 0) -> str:
        """The texts from an index of `items` on, without the marks of roles."""
        return "".join([item.text for item in self.items[mark:] if isinstance(item, Text)])

    def shape(self) -> Shape:
        """ProgramError for text between messages, which no chat template has a place for."""
        shape = Shape()
        for item in self.items:
            if isinstance(item, RoleBegin):
                if shape.tail.parts:
                    raise ProgramError(
                        f"{shape.tail.text!r:.60} is between two messages: put it into a role"
                    )
                shape.open = Message(item.role)
            elif isinstance(item, RoleEnd):
                if shape.open is not None:
                    shape.messages.append(shape.open)
                shape.open = None
            else:
                place = shape.open or (shape.tail if shape.messages else shape.head)
                place.parts.append(item.text if isinstance(item, Text) else item)
        return shape

    def messages(self) -> list[dict[str, Any]]:
        """In OpenAI's form, with what is said so far of an unfinished one."""
        shape = self.shape()
        written = [shape.open] if shape.open is not None else []
        return [message.body() for message in shape.messages + written]

    def render(self, template: ChatTemplate) -> tuple[str, bool]:
        """The prompt, and whether the template wrote it: then it has the template's special tokens.

        ProgramError for images, RequestError if the template refuses the messages.
        """
        shape = self.shape()
        everything = [shape.head, *shape.messages, shape.tail, shape.open or Message("")]
        if any(message.images for message in everything):
            raise ProgramError(
                "this backend takes no images: use the OpenAI or the Anthropic backend"
            )
        if shape.is_plain:
            return shape.head.text, False
        bodies = [message.body() for message in shape.messages]
        if shape.open is None:
            text = template(bodies, False)
        elif shape.open.role == "assistant":
            text = template(bodies, True) + shape.open.text
        else:
            marked = {"role": shape.open.role, "content": MARK}
            before, found, _ = template([*bodies, marked], False).rpartition(MARK)
            if not found:
                raise ProgramError(
                    f"the model's chat template does not show a message of {shape.open.role} as it"
                    " is: nothing can be generated inside of one"
                )
            text = before + shape.open.text
        return shape.head.text + text + shape.tail.text, True
