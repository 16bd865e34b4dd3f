"""The command `inferplane`: finds the command asked for, runs it, and renders its errors."""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import inferplane
from inferplane.cli.options import Parser, suggestion
from inferplane.errors import InferplaneError

COMMANDS = {
    "serve": "serve a model over HTTP, OpenAI-compatible",
    "chat": "talk to a model in the terminal",
    "generate": "complete prompts",
    "batch": "answer a file of requests in OpenAI's batch format, without a server",
    "bench": "measure throughput and latency, in process or of a server",
    "devices": "what each installed backend finds on this machine",
    "explain": "which kernel serves each op of a model and why, and who chose each setting",
    "plugins": "installed backends, op packs and models",
}
"""name -> help; each is a module of this package with `configure(parser)` and `run(arguments)`"""

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else "--help"
    if name in ("-h", "--help", "help"):
        print(overview())
        return 0
    if name in ("-V", "--version"):
        print(f"inferplane {inferplane.__version__}")
        return 0
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        hint = suggestion(name, [*COMMANDS, "--help", "--version"])
        print(f"inferplane: error: there is no {kind} {name!r}{hint}", file=sys.stderr)
        return USAGE
    command = importlib.import_module(f"inferplane.cli.{name}")
    parser = Parser(prog=f"inferplane {name}", description=COMMANDS[name] + ".")
    command.configure(parser)
    return _run(command.run, parser.parse_args(words[1:]))


def _run(run: object, arguments: argparse.Namespace) -> int:
    assert callable(run)
    try:
        code = int(run(arguments))
        sys.stdout.flush()
        return code
    except InferplaneError as error:
        if getattr(arguments, "log_level", None) == "debug":
            traceback.print_exc()
        print(f"inferplane: error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def overview() -> str:
    width = max(len(name) for name in COMMANDS)
    return "\n".join(
        [
            "usage: inferplane COMMAND [options]",
            "",
            *(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()),
            "",
            "inferplane COMMAND --help shows a command's options.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
