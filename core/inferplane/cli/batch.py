"""`inferplane batch MODEL --input FILE --output FILE`"""

import argparse
import logging
from pathlib import Path

from inferplane.cli.options import add_model, add_settings, config_from
from inferplane.cli.progress import Line


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help="requests, one JSON object a line: custom_id, method, url, body",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="where the answers go; those that it already has are not asked for again",
    )
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0 if every line was answered, whatever the answer."""
    config = config_from(arguments)
    from inferplane.server.batch import run_batch

    wanted = "warning" if config.log_level == "info" else config.log_level
    logging.basicConfig(level=wanted.upper(), format="%(levelname)s %(name)s: %(message)s")
    line = Line()
    try:
        tally = run_batch(config, Path(arguments.input), Path(arguments.output), show=line.show)
    finally:
        line.clear()
    print(f"{tally.text()}, answers in {arguments.output}")
    return 0
