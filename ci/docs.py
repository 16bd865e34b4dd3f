"""Writes the generated pages of docs/; with --check only says which are out of date."""

import sys
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any

from inferplane import env
from inferplane.config import flag, settings
from inferplane.server.endpoints import ENDPOINTS
from inferplane.server.openapi import fields

DOCS = Path(__file__).parents[1] / "docs"


def default_of(item: Field[Any]) -> str:
    if item.default_factory is not MISSING:
        return "" if item.default_factory() in ([], {}) else f"`{item.default_factory()}`"
    if item.default is MISSING:
        return "required"
    return "" if item.default is None else f"`{item.default}`"


def configuration() -> str:
    rows = []
    for item in settings():
        spelled = "MODEL" if item.name == "model" else flag(item.name)
        choices = " / ".join(item.metadata["choices"])
        text = item.metadata["help"] + (f" ({choices})" if choices else "")
        rows.append(f"| `{spelled}` | `{item.name}` | {default_of(item)} | {text} |")
    variables = [f"| `{name}` | {text} |" for name, text in env.VARIABLES.items()]
    return "\n".join(
        [
            "# Configuration",
            "",
            "<!-- written by ci/docs.py (make docs) from inferplane.config and inferplane.env -->",
            "",
            "Every setting is a field of `inferplane.config.Config`, a command line option of",
            "`inferplane serve`, `chat`, `generate` and `bench`, and a keyword argument of",
            "`inferplane.Engine`. Unknown options are errors. `inferplane explain MODEL` shows the",
            "value of each and who chose it.",
            "",
            "| option | field | default | what it is |",
            "|---|---|---|---|",
            *rows,
            "",
            "## Environment variables",
            "",
            "For secrets and debugging only.",
            "",
            "| variable | what it is |",
            "|---|---|",
            *variables,
            "",
        ]
    )


def endpoints() -> str:
    lines = [
        "# Endpoints and their fields",
        "",
        "<!-- written by ci/docs.py (make docs) from the table of endpoints and the schemas -->",
        "",
        "What each endpoint does is in [server.md](server.md). Here is every field that it knows.",
        "Supported fields have an effect; a value of the wrong type, or out of range, gets a 400",
        "with the code `invalid_type` or `invalid_value`. Refused fields are known, but not",
        "supported: a value other than null gets a 400 with the code `unsupported_parameter`.",
        "Fields without effect are checked, and ask nothing of this server. Any other field gets a",
        "400 with the code `unknown_parameter`. Every such error names the field in `param`.",
        "",
        "| access | who may call |",
        "|---|---|",
        "| open | anybody |",
        "| key | who has the API key, if the server has one |",
        "| admin | programs on the same machine, of a server without a key on a loopback address |",
    ]
    for endpoint in ENDPOINTS:
        path = endpoint.path.replace(":path", "")
        access, protocol = endpoint.access.value, endpoint.protocol
        lines += ["", f"## `{endpoint.method} {path}`", ""]
        lines.append(f"Access: {access}. Errors in the format of {protocol}.")
        names = ", ".join(f"`{name}`" for name in endpoint.query)
        if names:
            lines += ["", f"Query parameters: {names}."]
        if endpoint.body is not None:
            lines += ["", "| field | type | |", "|---|---|---|"]
            lines += [f"| `{n}` | {kind} | {text} |" for n, kind, text in fields(endpoint.body)]
    return "\n".join([*lines, ""])


PAGES = {"configuration.md": configuration, "endpoints.md": endpoints}


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        print("usage: docs.py [--check]", file=sys.stderr)
        return 2
    stale = 0
    for name, page in PAGES.items():
        path = DOCS / name
        text = page().replace("|  |", "| |")
        if path.is_file() and path.read_text() == text:
            continue
        stale += 1
        if check:
            print(f"docs/{name} is out of date: run make docs", file=sys.stderr)
        else:
            path.write_text(text)
            print(f"wrote docs/{name}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
