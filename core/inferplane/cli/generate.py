"""`inferplane generate MODEL --prompt TEXT`"""

import argparse
import dataclasses
import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from inferplane.cli.engine import open_from
from inferplane.cli.options import add_model, add_sampling, add_settings, given_sampling
from inferplane.errors import ConfigError
from inferplane.offline import Engine, Result, params_from


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="text to complete; may be given more than once; default: standard input",
    )
    parser.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="FILE",
        help="file with one prompt; may be given more than once",
    )
    parser.add_argument(
        "--json", action="store_true", default=False, help="print one JSON object per result"
    )
    add_sampling(parser)
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    prompts = read_prompts(arguments)
    params = given_sampling(arguments)
    params_from(params)  # before the model is loaded
    with open_from(arguments) as engine:
        if arguments.json:
            for result in engine.generate(prompts, params):
                print(json.dumps(as_json(prompts, result), ensure_ascii=False), flush=True)
        elif len(prompts) == 1 and params.get("n", 1) == 1:
            stream(engine, prompts[0], params)
        else:
            for result in engine.generate(prompts, params):
                print(f"--- prompt {result.prompt_index}, sample {result.sample_index}")
                print(result.text)
    return 0


def read_prompts(arguments: argparse.Namespace) -> list[str]:
    prompts = list(arguments.prompt)
    for name in arguments.file:
        try:
            prompts.append(Path(name).read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--file {name} cannot be read: {error}") from error
    if not prompts and not sys.stdin.isatty():
        prompts.append(sys.stdin.read())
    if not any(prompts):
        raise ConfigError("nothing to complete: give --prompt TEXT, --file FILE or standard input")
    return prompts


def stream(engine: Engine, prompt: str, params: dict[str, Any]) -> None:
    with closing(engine.generate(prompt, params, stream=True)) as deltas:
        for delta in deltas:
            print(delta.text, end="", flush=True)
    print()


def as_json(prompts: list[str], result: Result) -> dict[str, Any]:
    value = dataclasses.asdict(result)
    value["logprobs"] = [msgspec.structs.asdict(entry) for entry in result.logprobs]
    if result.prompt_logprobs is not None:
        value["prompt_logprobs"] = [
            entry and msgspec.structs.asdict(entry) for entry in result.prompt_logprobs
        ]
    return {"prompt": prompts[result.prompt_index], **value}
