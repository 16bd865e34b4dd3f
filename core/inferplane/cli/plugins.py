"""`inferplane plugins`: the packages that bring backends, ops and models."""

import argparse
import json
from typing import Any

from inferplane.cli.table import table
from inferplane.errors import PluginError
from inferplane.plugins import BACKENDS, OPS, Plugins, model_rows

KINDS = {BACKENDS: "backend", OPS: "ops"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", default=False, help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    found = listing(Plugins())
    if arguments.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print(render(found))
    return 0


def listing(plugins: Plugins) -> list[dict[str, Any]]:
    """One entry per plugin: kind, name, package, what it brings, failure."""
    found: list[dict[str, Any]] = []
    for group, kind in KINDS.items():
        for loaded in plugins.load_all(group):
            brings = [f"--device {name}" for name in loaded.info.devices] if loaded.info else []
            found.append(_entry(kind, loaded.name, loaded.package, brings, loaded.failure))
            found[-1]["note"] = loaded.note
    try:
        for name, module, package in model_rows():
            found.append(_entry("models", name, package, sorted(module.ARCHITECTURES), ""))
    except PluginError as error:
        found.append(_entry("models", "", "", [], str(error)))
    return found


def _entry(kind: str, name: str, package: str, brings: list[str], failure: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": name,
        "package": package,
        "brings": brings,
        "failure": failure,
        "note": "",
    }


def render(found: list[dict[str, Any]]) -> str:
    if not found:
        return "no plugin is installed"
    rows = [["KIND", "NAME", "PACKAGE", "BRINGS"]]
    for entry in found:
        brings = f"FAILED {entry['failure']}" if entry["failure"] else ", ".join(entry["brings"])
        if entry["note"]:
            brings = f"{brings} ({entry['note']})".strip()
        rows.append([entry["kind"], entry["name"], entry["package"], brings])
    return table(rows)
