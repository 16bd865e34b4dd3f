"""The command line is made from Config and SamplingParams, completely."""

import importlib
import types
from typing import Any, get_args, get_origin

import pytest

from inferplane.cli import options
from inferplane.cli.main import COMMANDS, main
from inferplane.cli.options import Parser, config_from, given_sampling, given_settings
from inferplane.config import Config, flag, settings
from inferplane.errors import ConfigError
from inferplane.sampling_params import SamplingParams

WITH_SETTINGS = ("serve", "chat", "generate", "batch", "bench", "explain")
REQUIRED = {"batch": ["--input", "in", "--output", "out"]}
FIELDS = [item for item in settings() if item.name != "model"]
NOT_ON_THE_COMMAND_LINE = {"logit_bias", "skip_special_tokens", "include_stop_str_in_output"}


def parser_of(command: str) -> Parser:
    parser = Parser(prog=f"inferplane {command}")
    importlib.import_module(f"inferplane.cli.{command}").configure(parser)
    return parser


def parse(command: str, *words: str) -> Any:
    return parser_of(command).parse_args(["m", *REQUIRED.get(command, []), *words])


def example(item: Any) -> tuple[list[str], Any]:
    """A value other than the default: as words, and as the field has it."""
    kinds = get_args(item.type) if isinstance(item.type, types.UnionType) else (item.type,)
    kind = kinds[0]
    option = flag(item.name)
    if kind is bool:
        return [option], True
    if get_origin(kind) is list:
        return [option, "linear=x", option, "*=y"], ["linear=x", "*=y"]
    if item.metadata["choices"]:
        value = item.metadata["choices"][-1]
        return [option, value], value
    return {
        int: ([option, "77"], 77),
        float: ([option, "0.5"], 0.5),
        str: ([option, "word"], "word"),
    }[kind]


@pytest.mark.parametrize("command", WITH_SETTINGS)
@pytest.mark.parametrize("item", FIELDS, ids=lambda item: item.name)
def test_every_setting_is_an_option(command: str, item: Any) -> None:
    words, value = example(item)
    arguments = parse(command, *words)
    assert getattr(config_from(arguments), item.name) == value
    assert given_settings(arguments) == {"model": "m", item.name: value}


@pytest.mark.parametrize("command", WITH_SETTINGS)
def test_without_options_all_defaults_hold(command: str) -> None:
    assert config_from(parse(command)) == Config(model="m")


@pytest.mark.parametrize("command", ["serve", "chat", "bench"])
def test_the_demo_model_is_the_default(command: str) -> None:
    assert config_from(parser_of(command).parse_args([])) == Config(model="smollm2")


@pytest.mark.parametrize("command", ["generate", "explain"])
def test_others_want_a_model(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of([command]) == 2
    assert "MODEL" in capsys.readouterr().err


def test_every_sampling_parameter_is_an_option() -> None:
    assert set(options.SAMPLING_HELP) | NOT_ON_THE_COMMAND_LINE == set(
        SamplingParams.__struct_fields__
    )
    words = "--temperature 0.5 --top-k 3 --stop x --stop y --stop-token-ids 7 --ignore-eos --seed 1"
    for command in ("generate", "chat"):
        assert given_sampling(parse(command, *words.split())) == {
            "temperature": 0.5,
            "top_k": 3,
            "stop": ["x", "y"],
            "stop_token_ids": [7],
            "ignore_eos": True,
            "seed": 1,
        }


def code_of(words: list[str]) -> int:
    """The exit code, whether returned or raised."""
    try:
        return main(words)
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_options_are_errors(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["m", *REQUIRED.get(command, [])] if command in WITH_SETTINGS else []
    assert code_of([command, *model, "--jsonn=3"]) == 2
    written = capsys.readouterr()
    assert written.err.startswith("inferplane: error: there is no option --jsonn")
    assert "=3" not in written.err
    assert written.out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "m", "--devise", "x"], "there is no option --devise: did you mean --device?"),
        (["serve", "m", "--max-model", "9"], "did you mean --max-model-len?"),  # no abbreviation
        (["serve", "m", "other"], "unexpected argument 'other'"),
        (["serve", "m", "--port", "x"], "argument --port: invalid int value: 'x'"),
        (["serve", "m", "--dtype", "int3"], "argument --dtype: invalid choice: 'int3'"),
        (["serve", "m", "--port"], "argument --port: expected one argument"),
        (["serf"], "there is no command 'serf': did you mean serve?"),
        (["--serve"], "there is no option '--serve'"),
        (["bench", "--concurrency", "1", "x"], "invalid int value: 'x'"),
    ],
)
def test_usage_errors(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(words) == 2
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("inferplane: error: ")
    assert message in first


def test_values_out_of_range_name_the_option() -> None:
    with pytest.raises(ConfigError, match="--port is 99999"):
        config_from(parse("serve", "--port", "99999"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of([command, "--help"]) == 0
    shown = capsys.readouterr().out
    if command in WITH_SETTINGS:
        assert [item.name for item in FIELDS if flag(item.name) not in shown] == []
