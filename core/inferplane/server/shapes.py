"""Types of fields that are checked by hand, for better errors than a schema gives; the OpenAPI
description and the documentation show what they take."""

from typing import Annotated, Any

from pydantic import WithJsonSchema

_TEXT = {"type": "string", "minLength": 1}
_ID = {"type": "integer", "minimum": 0}
_IDS = {"type": "array", "items": _ID, "minItems": 1}
_NULL = {"type": "null"}


def _many(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


def _message(*roles: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"role": {"enum": list(roles)}, "content": {"type": "string"}},
        "required": ["role", "content"],
    }


_ANY_PROMPT = [_TEXT, _many(_TEXT), _IDS, _many(_IDS)]

Prompt = Annotated[Any, WithJsonSchema({"anyOf": _ANY_PROMPT})]
"""a text, several texts, token ids, or several lists of token ids"""
OptionalPrompt = Annotated[Any, WithJsonSchema({"anyOf": [*_ANY_PROMPT, _NULL]})]
OnePrompt = Annotated[Any, WithJsonSchema({"anyOf": [_TEXT, _IDS]})]
Text = Annotated[Any, WithJsonSchema({"anyOf": [_TEXT, _many(_TEXT), _NULL]})]
Ids = Annotated[Any, WithJsonSchema({"anyOf": [_IDS, _many(_IDS), _NULL]})]
TokensOfEach = Annotated[
    Any, WithJsonSchema({"anyOf": [_ID, _IDS, _many({"anyOf": [_IDS, _NULL]}), _NULL]})
]
"""token ids for all prompts, or a list of them for each"""
Tokens = Annotated[Any, WithJsonSchema({"type": "array", "items": _ID})]

_CHAT = _many(_message("system", "developer", "user", "assistant"))
Messages = Annotated[list[Any], WithJsonSchema(_CHAT)]
OptionalMessages = Annotated[list[Any], WithJsonSchema({"anyOf": [_CHAT, _NULL]})]
UserMessages = Annotated[Any, WithJsonSchema(_many(_message("user")))]
"""of the APIs whose last message must be the user's"""
MaybeNoMessages = Annotated[
    Any, WithJsonSchema({"type": "array", "items": _message("system", "user", "assistant")})
]
Input = Annotated[
    Any, WithJsonSchema({"anyOf": [{"type": "string"}, _many(_message("user", "assistant"))]})
]
