"""The input of a response: items, checked one by one, as the messages that templates read, and as
the resources that are given back for them."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from inferplane.server.messages import MAX_MESSAGES, MAX_PARTS
from inferplane.server.refusals import (
    invalid,
    kind_of,
    known,
    list_at,
    missing,
    object_at,
    text_at,
    unsupported,
)
from inferplane.server.service import new_id

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MAX_ID = 128
STATUS = ("in_progress", "completed", "incomplete")
FIELDS = {
    "message": ("type", "role", "content", "id", "status", "phase"),
    "function_call": ("type", "call_id", "name", "arguments", "id", "status"),
    "function_call_output": ("type", "call_id", "output", "id", "status", "name"),
    "reasoning": ("type", "id", "summary", "content", "encrypted_content", "status"),
}

Message = dict[str, Any]


class Conversation:
    """Messages so far. What an assistant thought, said and called in one turn is one message."""

    def __init__(self, history: Iterable[Mapping[str, Any]]) -> None:
        self.messages: list[Message] = [dict(message) for message in history]
        self.items: list[dict[str, Any]] = []
        self._open: Message | None = None
        self._names = {
            call["id"]: call["function"]["name"]
            for message in self.messages
            for call in message.get("tool_calls", ())
        }

    def add_all(self, where: str, value: Any) -> None:
        """A text, which is a user's message, or a list of items."""
        if isinstance(value, str):
            self._add_message(where, {"role": "user", "content": value})
            return
        for at, item in list_at(where, value, MAX_MESSAGES):
            self._add(at, object_at(at, item))
        if not self.messages:
            raise invalid(where, "has no message")

    def _add(self, at: str, item: dict[str, Any]) -> None:
        kind = "message" if "role" in item and "type" not in item else kind_of(at, item)
        if kind not in FIELDS:
            raise unsupported(f"{at}.type", f"an item of type '{kind[:64]}'")
        known(at, item, FIELDS[kind])
        if item.get("id") is not None:
            text_at(f"{at}.id", item["id"], MAX_ID)
        if item.get("status") not in (None, *STATUS):
            raise invalid(f"{at}.status", f"must be one of {', '.join(STATUS)}")
        match kind:
            case "message":
                self._add_message(at, item)
            case "function_call":
                self._add_call(at, item)
            case "function_call_output":
                self._add_output(at, item)
            case _:
                self._add_reasoning(at, item)

    def _add_message(self, at: str, item: dict[str, Any]) -> None:
        role = item.get("role")
        if role is None:
            raise missing(f"{at}.role")
        if not isinstance(role, str) or role not in ROLES:
            raise invalid(f"{at}.role", f"must be one of {', '.join(ROLES)}")
        if item.get("content") is None:
            raise missing(f"{at}.content")
        text = _content(f"{at}.content", item["content"])
        if role == "assistant":
            if self._open is None or self._open["content"] or "tool_calls" in self._open:
                self._begin()
            assert self._open is not None
            self._open["content"] = text
            part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
        else:
            self._open = None
            self.messages.append({"role": ROLES[role], "content": text})
            part = {"type": "input_text", "text": text}
        self._keep("msg_", item, type="message", role=role, content=[part])

    def _add_call(self, at: str, item: dict[str, Any]) -> None:
        identity = text_at(f"{at}.call_id", item.get("call_id"), MAX_ID)
        name = text_at(f"{at}.name", item.get("name"), MAX_ID)
        written = text_at(f"{at}.arguments", item.get("arguments"))
        try:
            arguments = json.loads(written)
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise invalid(f"{at}.arguments", "must be the JSON text of an object")
        if self._open is None:
            self._begin()
        assert self._open is not None
        function = {"name": name, "arguments": arguments}
        call = {"id": identity, "type": "function", "function": function}
        self._open.setdefault("tool_calls", []).append(call)
        self._names[identity] = name
        fields = {"call_id": identity, "name": name, "arguments": written}
        self._keep("fc_", item, type="function_call", **fields)

    def _add_output(self, at: str, item: dict[str, Any]) -> None:
        identity = text_at(f"{at}.call_id", item.get("call_id"), MAX_ID)
        if identity not in self._names:
            raise invalid(f"{at}.call_id", "is not that of a function call before it")
        output = item.get("output")
        if output is None:
            raise missing(f"{at}.output")
        text = _content(f"{at}.output", output)
        self._open = None
        message = {"role": "tool", "tool_call_id": identity, "name": self._names[identity]}
        self.messages.append({**message, "content": text})
        kind = "function_call_output"
        self._keep("fco_", item, type=kind, call_id=identity, output=text)

    def _add_reasoning(self, at: str, item: dict[str, Any]) -> None:
        """What is encrypted, or only a summary, tells a model nothing here."""
        texts = []
        for name, kind in (("content", "reasoning_text"), ("summary", "summary_text")):
            value = item.get(name)
            if value is None or value == []:
                continue
            for where, part in list_at(f"{at}.{name}", value, MAX_PARTS):
                if kind_of(where, object_at(where, part)) != kind:
                    raise invalid(f"{where}.type", f"must be '{kind}'")
                known(where, part, ("type", "text"))
                text = text_at(f"{where}.text", part.get("text"))
                if name == "content":
                    texts.append(text)
        self._begin()
        assert self._open is not None
        if texts:
            self._open["reasoning_content"] = "\n".join(texts)
        content = [{"type": "reasoning_text", "text": text} for text in texts]
        self._keep("rs_", item, type="reasoning", summary=[], content=content)

    def _begin(self) -> None:
        self._open = {"role": "assistant", "content": ""}
        self.messages.append(self._open)

    def _keep(self, prefix: str, item: Mapping[str, Any], **fields: Any) -> None:
        identity = item.get("id") or new_id(prefix)
        self.items.append({"id": identity, "status": "completed", **fields})


def _content(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(where, "must be a string or a list of parts", "invalid_type")
    return "\n".join(_part(at, part) for at, part in list_at(where, content, MAX_PARTS))


def _part(at: str, part: Any) -> str:
    kind = kind_of(at, object_at(at, part))
    if kind == "refusal":
        known(at, part, ("type", "refusal"))
        return text_at(f"{at}.refusal", part.get("refusal"))
    if kind not in ("input_text", "output_text"):
        raise unsupported(f"{at}.type", f"content of type '{kind[:64]}'")
    known(at, part, ("type", "text", "annotations", "logprobs"))
    return text_at(f"{at}.text", part.get("text"))
