"""The output of a response: items that grow as the model's events come, and the events that tell
of it. Reasoning, text and each function call are an item of their own."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from inferplane.messages import TokenLogprobs
from inferplane.parsers.events import Arguments, Reasoning, Text, ToolCall
from inferplane.server.arguments import object_of
from inferplane.server.service import new_id
from inferplane.server.turn import Step

Event = dict[str, Any]
Logprobs = Callable[[Sequence[TokenLogprobs]], list[dict[str, Any]]]


class Output:
    """`items` are whole once `finish` has been called. `logprobs` renders those of the text, None
    if nobody wants them."""

    def __init__(self, logprobs: Logprobs | None) -> None:
        self.items: list[dict[str, Any]] = []
        self._open: str | None = None
        self._logprobs = logprobs
        self._waiting: list[dict[str, Any]] = []
        """logprobs of tokens whose text has not come yet"""

    def take(self, step: Step) -> Iterator[Event]:
        """The events for a step; sequence numbers are not our business."""
        if self._logprobs is not None:
            self._waiting += self._logprobs(step.logprobs)
        for event in step.events:
            match event:
                case Text(text):
                    if self._open != "message":
                        yield from self._enter_text()
                    yield self._text_delta(text)
                case Reasoning(text):
                    self._waiting = []
                    if self._open != "reasoning":
                        yield from self._enter_reasoning()
                    self.items[-1]["content"][0]["text"] += text
                    yield self._event("response.reasoning_text.delta", content_index=0, delta=text)
                case ToolCall(_, identity, name):
                    self._waiting = []
                    yield from self._enter_call(identity, name)
                case Arguments(_, text):
                    self._waiting = []
                    self.items[-1]["arguments"] += text
                    yield self._event("response.function_call_arguments.delta", delta=text)

    def finish(self, *, cut: bool) -> Iterator[Event]:
        """The last events. `cut` if the model had more to say."""
        if not self.items:
            yield from self._enter_text()
        yield from self._close("incomplete" if cut else "completed")

    def _enter_text(self) -> Iterator[Event]:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        fields = {"type": "message", "role": "assistant", "content": []}
        yield from self._enter("message", "msg_", fields, part)

    def _enter_reasoning(self) -> Iterator[Event]:
        part = {"type": "reasoning_text", "text": ""}
        fields = {"type": "reasoning", "summary": [], "content": []}
        yield from self._enter("reasoning", "rs_", fields, part)

    def _enter_call(self, identity: str, name: str) -> Iterator[Event]:
        fields = {"type": "function_call", "call_id": identity, "name": name, "arguments": ""}
        yield from self._enter("function_call", "fc_", fields, None)

    def _enter(
        self, kind: str, prefix: str, fields: dict[str, Any], part: dict[str, Any] | None
    ) -> Iterator[Event]:
        yield from self._close("completed")
        self._open = kind
        item = {"id": new_id(prefix), "status": "in_progress", **fields}
        self.items.append(item)
        yield self._item("response.output_item.added")
        if part is not None:
            item["content"].append(part)
            shown = copy.deepcopy(part)
            yield self._event("response.content_part.added", content_index=0, part=shown)

    def _close(self, status: str) -> Iterator[Event]:
        if self._open is None:
            return
        item = self.items[-1]
        if self._open == "function_call":
            yield self._event(
                "response.function_call_arguments.done",
                name=item["name"],
                arguments=item["arguments"],
            )
        else:
            part = item["content"][0]
            if self._open == "message":
                part["logprobs"] += self._take_waiting()
                done = {"text": part["text"], "logprobs": part["logprobs"]}
                yield self._event("response.output_text.done", content_index=0, **done)
            else:
                yield self._event(
                    "response.reasoning_text.done", content_index=0, text=part["text"]
                )
            yield self._event("response.content_part.done", content_index=0, part=part)
        item["status"] = status
        yield self._item("response.output_item.done")
        self._open = None

    def _text_delta(self, text: str) -> Event:
        part = self.items[-1]["content"][0]
        part["text"] += text
        logprobs = self._take_waiting()
        part["logprobs"] += logprobs
        return self._event(
            "response.output_text.delta", content_index=0, delta=text, logprobs=logprobs
        )

    def _take_waiting(self) -> list[dict[str, Any]]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def _item(self, kind: str) -> Event:
        item = copy.deepcopy(self.items[-1])
        return {"type": kind, "output_index": len(self.items) - 1, "item": item}

    def _event(self, kind: str, **fields: Any) -> Event:
        at = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return {"type": kind, **at, **fields}

    def message(self) -> dict[str, Any]:
        """The output as the assistant's message of a conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        for item in self.items:
            match item["type"]:
                case "message":
                    message["content"] += item["content"][0]["text"]
                case "reasoning":
                    text = item["content"][0]["text"]
                    message["reasoning_content"] = message.get("reasoning_content", "") + text
                case _:
                    function = {"name": item["name"], "arguments": object_of(item["arguments"])}
                    call = {"id": item["call_id"], "type": "function", "function": function}
                    message.setdefault("tool_calls", []).append(call)
        return message
