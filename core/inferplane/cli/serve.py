"""`inferplane serve MODEL`"""

import argparse
from functools import partial

from inferplane.cli.options import add_model, add_settings, config_from


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser, optional=True)
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    config = config_from(arguments)
    from inferplane.server.run import serve

    return serve(config, say=partial(print, flush=True))
