"""Arguments of a tool call that a model wrote."""

import json
from typing import Any


def object_of(text: str) -> dict[str, Any]:
    """The object that the JSON text says; empty for a call that was cut short or is no object, for
    the formats that have no place for text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
