"""Schemathesis over the server's own OpenAPI description, against a server over a fake engine.

    python ci/suites/schemathesis_run.py [--examples 100]

Valid and invalid requests for every operation, in an environment of its own, which is kept in
~/.cache. Fails if any answer is a 5xx, or if an answer on OpenAI's endpoints is not what OpenAI's
description says. Takes about two minutes on two cores.
"""

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

REPO = Path(__file__).parents[2]
sys.path[:0] = [str(REPO), str(REPO / "core"), str(REPO / "models")]

from tests.core.server.live_server import live_server, scripted  # noqa: E402

VERSION = "4.32.5"
CACHE = Path.home() / ".cache/inferplane/schemathesis"


def tool() -> Path:
    """The command `st`."""
    command = CACHE / f"venv-{VERSION}/bin/st"
    if not command.exists():
        venv.create(command.parents[1], with_pip=True)
        install = [command.with_name("python"), "-m", "pip", "install", "-q"]
        subprocess.run([*install, f"schemathesis=={VERSION}"], env=clean(), check=True)
    return command


def clean() -> dict[str, str]:
    """The environment, without the packages of whoever runs this."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100, help="for each operation and mode")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    command = tool()
    options = ["--mode", "all", "--phases", "coverage,fuzzing", "--checks", "not_a_server_error"]
    options += ["--max-examples", str(arguments.examples), "--seed", str(arguments.seed)]
    options += ["--suppress-health-check", "all"]
    with live_server(scripted()) as live:
        described = f"{live.url}/openapi.json"
        run = subprocess.run([command, "run", described, *options], cwd=CACHE, env=clean())
        print(f"{live.spec.checked} answers were checked against OpenAI's description")
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
