"""JSON in: a request body becomes a checked schema, or a RequestError that names the field."""

from typing import Any, ClassVar, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from inferplane.errors import RequestError

MAX_DEPTH = 64
MAX_VALUES = 2_000_000
"""JSON values of one body, counted by their separators before anything is allocated for them"""
INLINE_BYTES = 64 * 1024
"""larger bodies are decoded in a worker thread"""
MAX_NAME = 64

_decoder = msgspec.json.Decoder()


class Schema(BaseModel):
    """No coercion ("1" is not 1, true is not 1) and no unknown fields.

    `refused` fields are known but not supported, those with `no_effect` ask for what is so anyway
    or does not matter here; `nested` has the schemas of fields that hold one or a list of them.
    """

    refused: ClassVar[tuple[str, ...]] = ()
    no_effect: ClassVar[tuple[str, ...]] = ()
    nested: ClassVar[dict[str, "type[Schema]"]] = {}

    model_config = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=False)


S = TypeVar("S", bound=Schema)


async def read(request: Request, schema: type[S]) -> S:
    """The body of `request` as a `schema`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(
            "The body must be JSON: send the header 'Content-Type: application/json'.",
            code="unsupported_media_type",
            status=415,
        )
    body = await request.body()
    if len(body) <= INLINE_BYTES:
        return parse(schema, decode(body))
    return await run_in_threadpool(lambda: parse(schema, decode(body)))


def decode(body: bytes) -> dict[str, Any]:
    values = body.count(b",") + body.count(b"[") + body.count(b"{")
    if values > MAX_VALUES:
        raise _malformed(f"it has more than {MAX_VALUES} values")
    try:
        data = _decoder.decode(body)
    except RecursionError:
        raise _malformed(f"it is nested more than {MAX_DEPTH} levels deep") from None
    except UnicodeDecodeError:
        raise _malformed("it is not valid UTF-8") from None
    except (msgspec.MsgspecError, ValueError):
        raise _malformed("it does not parse") from None
    if not isinstance(data, dict):
        raise _malformed("it is not an object")
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        _check_depth(data)
    return data


def _check_depth(data: Any) -> None:
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            children = value.values() if isinstance(value, dict) else value
            below += [child for child in children if isinstance(child, dict | list)]
        if not below:
            return
        level = below
    raise _malformed(f"it is nested more than {MAX_DEPTH} levels deep")


def _malformed(why: str) -> RequestError:
    return RequestError(f"The body is not usable JSON: {why}.", code="invalid_json")


def parse(schema: type[S], data: dict[str, Any]) -> S:
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _refusal(first["type"], _path(first["loc"]), first["msg"]) from None


def _refusal(kind: str, param: str, message: str) -> RequestError:
    if kind == "extra_forbidden":
        return RequestError(f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
    if kind == "missing":
        return RequestError(
            f"Missing required parameter: '{param}'.",
            param=param,
            code="missing_required_parameter",
        )
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return RequestError(f"Invalid value for '{param}': {message}.", param=param, code=code)


def _path(location: tuple[int | str, ...]) -> str:
    """messages[0].content, as OpenAI writes it; a name that the client made up is cut."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part[:MAX_NAME]}" if path else part[:MAX_NAME]
    return path
