"""Opens the engine in process for the commands that need one."""

import argparse
import logging

from inferplane.cli.options import config_from, given_settings
from inferplane.cli.progress import Line, LoadingBar
from inferplane.offline import Engine


def open_from(arguments: argparse.Namespace) -> Engine:
    """The engine that the options ask for, with a progress bar while it loads."""
    config = config_from(arguments)
    wanted = "warning" if config.log_level == "info" else config.log_level
    logging.basicConfig(level=wanted.upper(), format="%(levelname)s %(name)s: %(message)s")
    values = given_settings(arguments)
    line = Line()
    line.show(f"loading {config.model}")
    try:
        return Engine(values.pop("model"), progress=LoadingBar(line), report=line.show, **values)
    finally:
        line.clear()
