"""The messages of a chat request: checked one by one, and flattened to what templates expect."""

from typing import Any

from inferplane.errors import RequestError
from inferplane.server.past_calls import PastCalls

MAX_MESSAGES = 4096
MAX_PARTS = 64
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
ROLES |= {"tool": "tool", "function": "tool"}
"""role in the request -> role in the template; developer is OpenAI's newer word for system,
function its older one for tool"""
EMPTY_FIELDS = ("refusal", "annotations", "audio")
"""an assistant message that is sent back as it came may have these, if they hold nothing"""
REASONING_FIELDS = ("reasoning_content", "reasoning")
CALL_FIELDS = ("tool_calls", "function_call", "tool_call_id")


def checked_messages(messages: list[Any]) -> list[dict[str, Any]]:
    """As templates read them: see turn.py, which says what they have."""
    if not messages:
        raise _invalid("messages", "is empty: send at least one message")
    if len(messages) > MAX_MESSAGES:
        raise _invalid("messages", f"has {len(messages)} messages, at most {MAX_MESSAGES}")
    calls = PastCalls()
    return [_message(f"messages[{i}]", message, calls) for i, message in enumerate(messages)]


def _message(where: str, message: Any, calls: PastCalls) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise _invalid(where, "must be an object", "invalid_type")
    role = message.get("role")
    if role is None:
        raise _invalid(f"{where}.role", "is missing", "missing_required_parameter")
    if not isinstance(role, str) or role not in ROLES:
        raise _invalid(f"{where}.role", f"must be one of {', '.join(ROLES)}")
    checked: dict[str, Any] = {"role": ROLES[role]}
    for key, value in message.items():
        if key in ("role", "content") or key in CALL_FIELDS:
            continue
        if key == "name":
            if not isinstance(value, str) or len(value) > 64:
                raise _invalid(f"{where}.name", "must be a string of at most 64 characters")
            checked["name"] = value
        elif key in REASONING_FIELDS:
            _reasoning(f"{where}.{key}", value, checked)
        elif key not in EMPTY_FIELDS:
            raise _invalid(f"{where}.{key[:64]}", "is unknown", "unknown_parameter")
        elif value not in (None, [], ""):
            raise _unsupported(f"{where}.{key}", f"'{key}'")
    checked |= calls.of(where, role, message)
    content = message.get("content")
    if content is None and not checked.get("tool_calls"):
        raise _invalid(f"{where}.content", "is missing", "missing_required_parameter")
    checked["content"] = "" if content is None else _content(f"{where}.content", content)
    return checked


def _reasoning(where: str, value: Any, checked: dict[str, Any]) -> None:
    if value in (None, ""):
        return
    if checked["role"] != "assistant":
        raise _invalid(where, "is only allowed in assistant messages")
    if not isinstance(value, str):
        raise _invalid(where, "must be a string", "invalid_type")
    checked["reasoning_content"] = value


def _content(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _invalid(where, "must be a string or a list of parts", "invalid_type")
    if not 1 <= len(content) <= MAX_PARTS:
        raise _invalid(where, f"has {len(content)} parts, must be from 1 to {MAX_PARTS}")
    return "\n".join(_part(f"{where}[{i}]", part) for i, part in enumerate(content))


def _part(where: str, part: Any) -> str:
    if not isinstance(part, dict):
        raise _invalid(where, "must be an object", "invalid_type")
    kind = part.get("type")
    if kind is None:
        raise _invalid(f"{where}.type", "is missing", "missing_required_parameter")
    if kind != "text":
        named = kind[:64] if isinstance(kind, str) else type(kind).__name__
        raise _unsupported(f"{where}.type", f"content of type '{named}'")
    for key in part:
        if key not in ("type", "text"):
            raise _invalid(f"{where}.{key[:64]}", "is unknown", "unknown_parameter")
    text = part.get("text")
    if not isinstance(text, str):
        raise _invalid(f"{where}.text", "must be a string", "invalid_type")
    return text


def _invalid(param: str, what: str, code: str = "invalid_value") -> RequestError:
    return RequestError(f"'{param}' {what}.", param=param, code=code)


def _unsupported(param: str, what: str) -> RequestError:
    return RequestError(
        f"{what} is not supported by this server yet.",
        param=param,
        code="unsupported_parameter",
    )
