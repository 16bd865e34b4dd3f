"""The sampling fields that chat, completions and their extensions share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import msgspec
from pydantic import BeforeValidator, Field

from inferplane.errors import RequestError
from inferplane.sampling_params import SamplingParams
from inferplane.server.body import Schema

MAX_ITEMS = 1024

Item = TypeVar("Item")


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _many(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


OneOrMany = Annotated[
    list[Item], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True), BeforeValidator(_many)
]
"""a value for all prompts, or a list with one for each"""
Strings = Annotated[
    list[str], Field(max_length=MAX_ITEMS, fail_fast=True), BeforeValidator(_one_or_many)
]
TokenIds = Annotated[list[int], Field(max_length=MAX_ITEMS, fail_fast=True)]


class CommonSampling(Schema):
    """How a token is chosen and what ends a sequence: OpenAI's fields and those that SGLang and
    vLLM add, under the names of SamplingParams. None means: the model's default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=MAX_ITEMS)] | None = None
    seed: int | None = None
    min_tokens: int | None = None
    stop: Strings | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None

    def sampling_params(self, defaults: Mapping[str, Any], **chosen: Any) -> SamplingParams:
        """`defaults`, overridden by what the request says, overridden by `chosen`."""
        said = {
            name: value
            for name in SamplingFields.model_fields
            if (value := getattr(self, name, None)) is not None
        }
        if "logit_bias" in said:
            said["logit_bias"] = bias_of(said["logit_bias"])
        return msgspec.structs.replace(SamplingParams(), **{**defaults, **said, **chosen})


class SamplingFields(CommonSampling):
    """What the completions APIs have besides."""

    n: int | None = None
    max_tokens: int | None = None
    prompt_logprobs: int | None = None


def bias_of(bias: Mapping[str, float]) -> dict[int, float]:
    """JSON has only strings as keys: they must be plain decimal numbers."""
    result: dict[int, float] = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) < 12):
            raise RequestError(
                "logit_bias has a key that is not a token id",
                param="logit_bias",
                code="invalid_value",
            )
        result[int(key)] = value
    return result


@contextmanager
def renamed(**names: str) -> Iterator[None]:
    """Refusals name the field as this endpoint spells it: renamed(prompt="messages")."""
    try:
        yield
    except RequestError as error:
        new = names.get(error.param or "")
        if new is None:
            raise
        message = error.message
        if message.startswith((f"{error.param} ", f"{error.param}:")):
            message = new + message[len(error.param or "") :]
        raise RequestError(message, param=new, code=error.code, status=error.status) from None


def refuse_unsupported(request: Schema, names: tuple[str, ...]) -> None:
    """Fields of OpenAI's API that are not built yet are refused, never ignored."""
    for name in names:
        if getattr(request, name) not in (None, [], "none"):
            raise RequestError(
                f"'{name}' is not supported by this server yet: leave it out.",
                param=name,
                code="unsupported_parameter",
            )
