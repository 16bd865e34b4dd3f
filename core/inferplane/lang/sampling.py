"""How the calls of a program sample: what `run` says holds unless a `gen` says otherwise."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

REGEX_INT = r"[-+]?[0-9]+[ \n]*"
REGEX_FLOAT = r"[-+]?[0-9]*\.?[0-9]+[ \n]*"
REGEX_BOOL = r"(True|False)"
REGEX_STR = r'"[^"\\\n]*"'
TYPES: dict[type, tuple[str, tuple[str, ...]]] = {
    int: (REGEX_INT, (" ", "\n")),
    float: (REGEX_FLOAT, (" ", "\n")),
    bool: (REGEX_BOOL, ()),
    str: (REGEX_STR, ()),
}
"""dtype -> what its text looks like, and what ends it. A model that wants to go on after a number
does so with white space: the pattern allows it, so that the number ends where the model ends it."""
TYPE_NAMES = {kind.__name__: kind for kind in TYPES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Field names and meanings are those of SGLang's frontend. None: not said."""

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    n: int | None = None
    stop: tuple[str, ...] | None = None
    stop_token_ids: tuple[int, ...] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    ignore_eos: bool | None = None
    return_logprob: bool | None = None
    logprob_start_len: int | None = None
    top_logprobs_num: int | None = None
    return_text_in_logprobs: bool | None = None
    skip_special_tokens: bool | None = None
    regex: str | None = None
    json_schema: str | None = None

    def over(self, defaults: "Sampling") -> Self:
        """These values, and those of `defaults` where there is none."""
        return dataclasses.replace(
            self, **{k: v for k, v in defaults.said().items() if getattr(self, k) is None}
        )

    def said(self) -> dict[str, Any]:
        """The values that are not None."""
        items = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {name: value for name, value in items.items() if value is not None}


def strings(value: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """One stop string, or several."""
    if value is None:
        return None
    return (value,) if isinstance(value, str) else tuple(value)


DEFAULTS = Sampling(
    max_new_tokens=128,
    min_new_tokens=0,
    n=1,
    temperature=1.0,
    top_p=1.0,
    top_k=-1,
    min_p=0.0,
    frequency_penalty=0.0,
    presence_penalty=0.0,
    ignore_eos=False,
)
"""of a program that is run without any"""
