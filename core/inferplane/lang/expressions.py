"""What a program appends to its state: texts, calls of the model, marks of roles, images.

Expressions are data; executor.py carries them out. `+` makes a sequence of two.
"""

import base64
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Union

from inferplane.errors import ProgramError
from inferplane.lang.choices import ChoicesMethod, token_length_normalized
from inferplane.lang.reasoning import checked, variable_of
from inferplane.lang.sampling import TYPE_NAMES, TYPES, Sampling, strings

ROLES = ("system", "user", "assistant")

Appendable = Union["Expression", str]


class Expression:
    """Anything that a program can append."""

    __slots__ = ()

    def __add__(self, other: Appendable) -> "Chain":
        return Chain((*parts_of(self), *parts_of(other)))

    def __radd__(self, other: str) -> "Chain":
        return Chain((*parts_of(other), *parts_of(self)))


@dataclass(frozen=True, slots=True)
class Chain(Expression):
    parts: tuple["Part", ...]


@dataclass(frozen=True, slots=True)
class Text(Expression):
    text: str


@dataclass(frozen=True, slots=True)
class Gen(Expression):
    """`name`: the variable that keeps the text. `reasoning`: the format of what the model thinks
    before it answers, which is no part of the text; "": that is not told apart."""

    name: str | None
    sampling: Sampling
    reasoning: str = ""

    @property
    def names(self) -> list[str]:
        """The variables that it makes."""
        if self.name is None:
            return []
        return [self.name, variable_of(self.name)] if self.reasoning else [self.name]


@dataclass(frozen=True, slots=True)
class Select(Expression):
    name: str | None
    choices: tuple[str, ...]
    method: ChoicesMethod


@dataclass(frozen=True, slots=True)
class RoleBegin(Expression):
    role: str


@dataclass(frozen=True, slots=True)
class RoleEnd(Expression):
    role: str


@dataclass(frozen=True, slots=True)
class ScopeBegin(Expression):
    """The text up to the matching ScopeEnd is a variable."""

    name: str


@dataclass(frozen=True, slots=True)
class ScopeEnd(Expression):
    name: str


@dataclass(frozen=True, slots=True)
class Image(Expression):
    """A path, a URL (http, https or data), or the bytes of an image file."""

    source: str | bytes

    def media(self) -> tuple[str, str]:
        """(media type, base64); ProgramError if there is no such file."""
        if isinstance(self.source, str):
            kind = mimetypes.guess_type(self.source)[0] or "image/png"
            try:
                data = Path(self.source).read_bytes()
            except OSError as error:
                raise ProgramError(f"image {self.source!r} cannot be read: {error}") from error
        else:
            data = self.source
            kind = "image/jpeg" if data.startswith(b"\xff\xd8") else "image/png"
        return kind, base64.b64encode(data).decode()

    @property
    def is_url(self) -> bool:
        source = self.source
        return isinstance(source, str) and source.startswith(("http://", "https://", "data:"))

    def url(self) -> str:
        if self.is_url:
            return str(self.source)
        kind, data = self.media()
        return f"data:{kind};base64,{data}"


class Unknown(Expression):
    """What is not known while a program is only looked at: see tracing.py."""

    __slots__ = ()


Part = Unknown | Text | Gen | Select | RoleBegin | RoleEnd | ScopeBegin | ScopeEnd | Image


def parts_of(value: object) -> tuple[Part, ...]:
    """What is appended, piece by piece; ProgramError for what is no text and no expression."""
    if isinstance(value, str):
        return (Text(value),) if value else ()
    if isinstance(value, Chain):
        return value.parts
    if isinstance(value, Part):
        return (value,)
    raise ProgramError(
        f"a program appends texts and expressions, not {type(value).__name__} ({value!r:.40}):"
        " write str(...) around it"
    )


def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    dtype: type | str | None = None,
    choices: Sequence[str] | None = None,
    choices_method: ChoicesMethod | None = None,
    regex: str | None = None,
    json_schema: str | None = None,
) -> Gen | Select:
    """Let the model write. With `n` above 1 the variable is a list and the text goes on with the
    first. `dtype` (int, float, bool, str) and `regex` and `json_schema` (as JSON text) restrict
    what it may write; `choices` makes it a `select`."""
    if choices is not None:
        return select(name, choices, temperature or 0.0, choices_method or token_length_normalized)
    regex, ends = _pattern(name, dtype, regex, json_schema)
    stops = (*(strings(stop) or ()), *ends)
    sampling = Sampling(
        max_new_tokens=max_tokens,
        min_new_tokens=min_tokens,
        n=n,
        stop=stops or None,
        stop_token_ids=None if stop_token_ids is None else tuple(stop_token_ids),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        ignore_eos=ignore_eos,
        return_logprob=return_logprob,
        logprob_start_len=logprob_start_len,
        top_logprobs_num=top_logprobs_num,
        return_text_in_logprobs=return_text_in_logprobs,
        regex=regex,
        json_schema=json_schema,
    )
    return Gen(name, sampling)


gen_int = partial(gen, dtype=int)
"""a whole number; the variable is its text"""
gen_string = partial(gen, dtype=str)
"""a text in double quotes"""


def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: ChoicesMethod = token_length_normalized,
) -> Select:
    """Append the choice that the model finds most likely here."""
    if isinstance(choices, str) or not choices or not all(choices):
        raise ProgramError(
            f"{_named(name, 'select')}: choices is {choices!r:.60}, must be a list of texts that"
            " are not empty"
        )
    if temperature:
        raise ProgramError(
            f"{_named(name, 'select')}: temperature is {temperature}, but select always takes the"
            " best choice: leave it out"
        )
    return Select(name, tuple(choices), choices_method)


def separate_reasoning(expr: Appendable, model_type: str) -> Chain:
    """Keep what the model thinks out of the text of each `gen` in `expr`, and in a variable of its
    own: that of gen("x") is "x_reasoning_content". `model_type` names the format, as
    --reasoning-parser does."""
    name = checked(model_type)
    parts = parts_of(expr)
    if not any(isinstance(part, Gen) for part in parts):
        raise ProgramError("separate_reasoning: there is no gen in it")
    return Chain(
        tuple(replace(part, reasoning=name) if isinstance(part, Gen) else part for part in parts)
    )


def image(source: str | bytes) -> Image:
    """An image for a model that can see: a path, a URL, or the file's bytes."""
    return Image(source)


def system(content: Appendable | None = None) -> Chain:
    return _message("system", content)


def user(content: Appendable | None = None) -> Chain:
    return _message("user", content)


def assistant(content: Appendable | None = None) -> Chain:
    return _message("assistant", content)


def system_begin() -> RoleBegin:
    return RoleBegin("system")


def system_end() -> RoleEnd:
    return RoleEnd("system")


def user_begin() -> RoleBegin:
    return RoleBegin("user")


def user_end() -> RoleEnd:
    return RoleEnd("user")


def assistant_begin() -> RoleBegin:
    return RoleBegin("assistant")


def assistant_end() -> RoleEnd:
    return RoleEnd("assistant")


def _message(role: str, content: Appendable | None) -> Chain:
    inner = () if content is None else parts_of(content)
    return Chain((RoleBegin(role), *inner, RoleEnd(role)))


def _named(name: str | None, call: str = "gen") -> str:
    return f"{call}({name!r})" if name else f"{call}()"


def _pattern(
    name: str | None, dtype: type | str | None, regex: str | None, json_schema: str | None
) -> tuple[str | None, tuple[str, ...]]:
    """The regex that a call asks for, and the stop strings that its type adds."""
    demands = {"dtype": dtype, "regex": regex, "json_schema": json_schema}
    given = [key for key, value in demands.items() if value is not None]
    if len(given) > 1:
        raise ProgramError(f"{_named(name)}: {given[0]} and {given[1]} exclude each other")
    if dtype is not None:
        kind = TYPE_NAMES.get(dtype) if isinstance(dtype, str) else dtype
        if kind not in TYPES:
            known = ", ".join(TYPE_NAMES)
            raise ProgramError(f"{_named(name)}: dtype is {dtype!r}, must be one of {known}")
        return TYPES[kind]
    return regex, ()
