"""What is said of a field that cannot be used. The conversation APIs share it."""

from collections.abc import Mapping, Sequence
from typing import Any

from inferplane.errors import RequestError

MAX_NAME = 64


def invalid(param: str, what: str, code: str = "invalid_value") -> RequestError:
    """`what` completes the sentence that the field's name begins."""
    return RequestError(f"'{param}' {what}.", param=param, code=code)


def missing(param: str) -> RequestError:
    return invalid(param, "is missing", "missing_required_parameter")


def unsupported(param: str, what: str) -> RequestError:
    return RequestError(
        f"{what} is not supported by this server: leave it out.",
        param=param,
        code="unsupported_parameter",
    )


def object_at(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(where, "must be an object", "invalid_type")
    return value


def list_at(where: str, value: Any, most: int) -> list[tuple[str, Any]]:
    """(name, item) of each item of a list that must not be empty."""
    if not isinstance(value, list):
        raise invalid(where, "must be a list", "invalid_type")
    if not 1 <= len(value) <= most:
        raise invalid(where, f"has {len(value)} entries, must be from 1 to {most}")
    return [(f"{where}[{i}]", item) for i, item in enumerate(value)]


def text_at(where: str, value: Any, most: int | None = None) -> str:
    if value is None:
        raise missing(where)
    if not isinstance(value, str):
        raise invalid(where, "must be a string", "invalid_type")
    if most is not None and not 1 <= len(value) <= most:
        raise invalid(where, f"must have 1 to {most} characters")
    return value


def known(where: str, value: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuses fields that are not among `names`."""
    for key in value:
        if key not in names:
            raise invalid(f"{where}.{key[:MAX_NAME]}", "is unknown", "unknown_parameter")


def kind_of(where: str, value: Mapping[str, Any]) -> str:
    """The `type` of an item or a part."""
    kind = value.get("type")
    if kind is None:
        raise missing(f"{where}.type")
    if not isinstance(kind, str):
        raise invalid(f"{where}.type", "must be a string", "invalid_type")
    return kind
