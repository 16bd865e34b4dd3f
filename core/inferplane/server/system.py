"""The endpoints that are not about generating: health, metrics, models, tokens."""

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from inferplane.errors import RequestError
from inferplane.server import body
from inferplane.server.body import Schema
from inferplane.server.encode import json_response
from inferplane.server.messages import checked_messages
from inferplane.server.prompts import prompts_of
from inferplane.server.sampling import renamed
from inferplane.server.service import Service
from inferplane.server.shapes import OptionalMessages, OptionalPrompt, Tokens

OWNER = "inferplane"


class TokenizeRequest(Schema):
    """A text, several texts, or the messages of a chat."""

    model: str | None = None
    prompt: OptionalPrompt = None
    messages: OptionalMessages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None


class DetokenizeRequest(Schema):
    model: str | None = None
    tokens: Tokens
    skip_special_tokens: bool | None = None


async def live(service: Service, request: Request) -> Response:
    """This process answers."""
    return json_response({"status": "live"})


async def ready(service: Service, request: Request) -> Response:
    """The engine answered recently."""
    if service.client.ready():
        return json_response({"status": "ready"})
    return json_response({"status": "not ready"}, status=503)


async def metrics(service: Service, request: Request) -> Response:
    return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


async def models(service: Service, request: Request) -> Response:
    return json_response({"object": "list", "data": [_model(service, service.names[0])]})


async def model(service: Service, request: Request) -> Response:
    name = request.path_params["model"]
    service.check_model(name)
    return json_response(_model(service, name))


def _model(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": OWNER,
        "root": service.names[0],
        "max_model_len": service.client.info.max_model_len,
    }


async def tokenize(service: Service, request: Request) -> Response:
    asked = await body.read(request, TokenizeRequest)
    service.check_model(asked.model)
    if (asked.prompt is None) == (asked.messages is None):
        raise RequestError(
            "send either 'prompt' or 'messages'.",
            param="prompt" if asked.prompt is None else "messages",
            code="missing_required_parameter" if asked.prompt is None else "invalid_value",
        )
    generator = service.generator
    tokens: list[Any]
    if asked.messages is not None:
        messages = checked_messages(asked.messages)
        with renamed(prompt="messages"):
            tokens = await generator.encode_chat(
                messages, add_generation_prompt=asked.add_generation_prompt is not False
            )
        count: Any = len(tokens)
    else:
        special = asked.add_special_tokens is not False
        many = isinstance(asked.prompt, list)
        lists = []
        for text in prompts_of(asked.prompt, "prompt"):
            if not isinstance(text, str):
                raise RequestError(
                    "'prompt' must be a string or a list of strings.",
                    param="prompt",
                    code="invalid_type",
                )
            lists.append(await generator.encode(text, add_special_tokens=special))
        tokens = lists if many else lists[0]
        count = [len(ids) for ids in lists] if many else len(tokens)
    limit = service.client.info.max_model_len
    return json_response({"tokens": tokens, "count": count, "max_model_len": limit})


async def detokenize(service: Service, request: Request) -> Response:
    asked = await body.read(request, DetokenizeRequest)
    service.check_model(asked.model)
    vocab_size = service.client.info.vocab_size
    tokens = asked.tokens
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise RequestError(
            "'tokens' must be a list of token ids.", param="tokens", code="invalid_type"
        )
    if tokens and not (min(tokens) >= 0 and max(tokens) < vocab_size):
        raise RequestError(
            f"'tokens' has a token id outside the vocabulary of {vocab_size}.",
            param="tokens",
            code="invalid_value",
        )
    skip = asked.skip_special_tokens is not False
    text = service.generator.tokenizer.decode(tokens, skip_special_tokens=skip)
    return json_response({"text": text, "prompt": text})
