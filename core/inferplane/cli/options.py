"""Command line options made from the fields of Config and SamplingParams.

Options that the user does not give stay out of the result, so that the defaults have one home and
`explain` can tell who chose a value.
"""

import argparse
import difflib
import types
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, get_args, get_origin

import msgspec

from inferplane.config import Config, flag, settings
from inferplane.sampling_params import SamplingParams

DEMO = "smollm2"

SAMPLING_HELP = {
    "temperature": "0 always takes the most likely token",
    "top_k": "draw from the K most likely tokens; 0: all",
    "top_p": "draw from the most likely tokens that together have probability P",
    "min_p": "leave out tokens less likely than P times the most likely one",
    "repetition_penalty": "above 1: makes tokens of prompt and output less likely",
    "frequency_penalty": "per occurrence in the output",
    "presence_penalty": "for any occurrence in the output",
    "seed": "the same seed gives the same tokens",
    "n": "how many samples of each prompt",
    "max_tokens": "longest output; default: the room that is left",
    "min_tokens": "shortest output",
    "stop": "text that ends the output; may be given more than once",
    "stop_token_ids": "token id that ends the output; may be given more than once",
    "ignore_eos": "go on after an end-of-sequence token",
    "logprobs": "log probability of each token, and of the K most likely",
    "prompt_logprobs": "the same of the prompt",
    "prompt_logprobs_start": "prompt tokens before the first that gets logprobs",
    "logprob_token_ids": "token id that gets one wherever others do; may be given more than once",
    "json_schema": "the output is JSON that this schema allows",
    "regex": "the output matches this regular expression as a whole",
    "ebnf": "the output follows this grammar, in GBNF or Lark notation",
    "structural_tag": "free text with these tagged parts, as JSON",
    "constrain_after": "the four above hold behind the first occurrence of this text",
}
"""the sampling parameters that have an option"""


class Parser(argparse.ArgumentParser):
    """Unknown options are errors that suggest the nearest one; nothing may be abbreviated."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **arguments)

    def parse_args(  # type: ignore[override]
        self, args: list[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = next((word for word in unknown if word.startswith("-")), unknown[0])
            name = name.partition("=")[0]
            if name.startswith("-"):
                options = [o for o in self._option_string_actions if o.startswith("--")]
                self.error(f"there is no option {name}{suggestion(name, options)}")
            self.error(f"unexpected argument {name!r}")
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"inferplane: error: {message}\nSee {self.prog} --help.\n")


def suggestion(name: str, known: Iterable[str]) -> str:
    """ ": did you mean X?", or nothing if no name is near."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f": did you mean {close[0]}?" if close else ""


def add_model(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    text = next(item.metadata["help"] for item in settings() if item.name == "model")
    if optional:
        parser.add_argument(
            "model", metavar="MODEL", nargs="?", default=DEMO, help=f"{text} (default: {DEMO})"
        )
    else:
        parser.add_argument("model", metavar="MODEL", help=text)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for each field of Config but the model."""
    group = parser.add_argument_group("settings")
    for item in settings():
        if item.name == "model":
            continue
        default = item.default if isinstance(item.default, str | int | float) else None
        hint = "" if default is None or default is False else f" (default: {default})"
        add_field(
            group,
            item.name,
            item.type,
            item.metadata["help"] + hint,
            choices=item.metadata["choices"] or None,
        )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """An option for each sampling parameter that a command line can express."""
    group = parser.add_argument_group("sampling; defaults come from the model")
    kinds = {item.name: item.type for item in msgspec.structs.fields(SamplingParams)}
    for name, text in SAMPLING_HELP.items():
        add_field(group, name, kinds[name], text)


def add_field(
    group: Any, name: str, annotation: Any, text: str, choices: Iterable[str] | None = None
) -> None:
    """One option: bool is a flag, a list may be repeated, anything else has one value."""
    text = text.replace("%", "%%")
    kinds = [k for k in _members(annotation) if k is not types.NoneType]
    assert len(kinds) == 1, f"{name} has several types"
    (kind,) = kinds
    if kind is bool:
        group.add_argument(flag(name), dest=name, action="store_true", help=text)
        return
    many = get_origin(kind) is list
    group.add_argument(
        flag(name),
        dest=name,
        type=get_args(kind)[0] if many else kind,
        action="append" if many else "store",
        choices=choices,
        metavar=None if choices else name.rpartition("_")[2].upper(),
        help=text,
    )


def _members(annotation: Any) -> tuple[Any, ...]:
    union = isinstance(annotation, types.UnionType)
    return get_args(annotation) if union else (annotation,)


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that the user gave."""
    return _given(arguments, (item.name for item in settings()))


def given_sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    return _given(arguments, SAMPLING_HELP)


def _given(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    values: Mapping[str, Any] = vars(arguments)
    return {name: values[name] for name in names if name in values}


def config_from(arguments: argparse.Namespace) -> Config:
    """ConfigError for values out of range."""
    return Config(**given_settings(arguments))
