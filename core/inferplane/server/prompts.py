"""A prompt field: a text, several texts, token ids, or several lists of token ids."""

from typing import Any

from inferplane.errors import RequestError

MAX_PROMPTS = 256

Prompt = str | list[int]


def prompts_of(value: Any, param: str) -> list[Prompt]:
    """One or more prompts, none of them empty."""
    prompts: list[Any]
    if isinstance(value, str) or (isinstance(value, list) and value and _is_id(value[0])):
        prompts = [value]
    elif isinstance(value, list):
        prompts = value
    else:
        raise _invalid(param, "must be a string, a list of strings, or a list of token ids")
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise _invalid(param, f"has {len(prompts)} prompts, must be from 1 to {MAX_PROMPTS}")
    for prompt in prompts:
        _check(prompt, param)
    if len({type(prompt) for prompt in prompts}) > 1:
        raise _invalid(param, "mixes texts and token ids")
    return prompts


def _check(prompt: Any, param: str) -> None:
    if not isinstance(prompt, str | list):
        raise _invalid(param, "must hold strings, or lists of token ids")
    if not prompt:
        raise RequestError(
            f"'{param}' is empty: send at least one token.", param=param, code="invalid_value"
        )
    if isinstance(prompt, list) and not all(map(_is_id, prompt)):
        raise _invalid(param, "has a token id that is not an integer")


def _is_id(value: Any) -> bool:
    return type(value) is int


def _invalid(param: str, what: str) -> RequestError:
    return RequestError(f"'{param}' {what}.", param=param, code="invalid_type")
