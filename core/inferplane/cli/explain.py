"""`inferplane explain MODEL --device X`"""

import argparse
import dataclasses
import json

from inferplane.checkpoint.source import open_model
from inferplane.cli.options import add_model, add_settings, config_from, given_settings
from inferplane.cli.table import size, table
from inferplane.config import flag
from inferplane.explain import Explanation, OpChoice, explain
from inferplane.plugins import Plugins


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--json", action="store_true", default=False, help="print JSON")
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    config = config_from(arguments)
    source = open_model(config.model, config.revision)
    found = explain(config, source, Plugins(), given_settings(arguments))
    if arguments.json:
        print(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False))
    else:
        print(render(found))
    return 0


def render(found: Explanation) -> str:
    sections = [_head(found), "ops"]
    sections += [_op(choice) for choice in found.ops]
    sections.append(_fallbacks(found))
    sections += ["", "KV cache", _groups(found), "", "memory", _memory(found)]
    sections += ["", "settings", _settings(found)]
    return "\n".join(sections)


def _head(found: Explanation) -> str:
    return (
        f"model   {found.model}: {found.architecture}, of {found.model_package}\n"
        f"device  {found.device}: {found.device_name} (torch device {found.torch_device}), "
        f"{found.dtype}\n"
        + "".join(f"        {name}: {text}\n" for name, text in found.facts.items())
    )


def _op(choice: OpChoice) -> str:
    notes = f"  {choice.notes}" if choice.notes else ""
    lines = [f"  {choice.op} x{choice.uses}: {choice.chosen}{notes}", f"      {choice.spec}"]
    for candidate in choice.candidates:
        if candidate.verdict != "chosen":
            code = f"[{candidate.code}]" if candidate.code else ""
            lines.append(
                f"      not {candidate.name}: {candidate.verdict}{code}: {candidate.reason}"
            )
    return "\n".join(lines)


def _fallbacks(found: Explanation) -> str:
    if not found.fallbacks:
        return "  no op falls back to its reference"
    names = ", ".join(found.fallbacks)
    return f"  fall back to the reference: {names} (--require-native makes that an error)"


def _groups(found: Explanation) -> str:
    rows = [["group", "layers", "window", "layout", "page size", "page", "pages", "bytes"]]
    for g in found.groups:
        rows.append(
            [
                g.name,
                str(g.layers),
                str(g.window) if g.window else "all",
                g.layout,
                str(g.page_size),
                size(g.page_bytes),
                f"{g.pages:,}",
                size(g.pages * g.page_bytes),
            ]
        )
    return table(rows, "  ")


def _memory(found: Explanation) -> str:
    memory = found.memory
    rows = [
        ["what", "bytes", ""],
        ["total", size(memory.total), "that this process may use"],
        ["weights", size(found.weights_bytes), f"{found.dtype} where dense, before packing"],
        ["free", size(memory.free), "after the weights"],
        ["step", size(memory.step), "activations and logits of the largest step"],
        ["KV cache", size(memory.kv), f"{memory.tokens:,} tokens"],
    ]
    return table(rows, "  ")


def _settings(found: Explanation) -> str:
    rows = [["setting", "value", "chosen by"]]
    for item in found.settings:
        spelled = "MODEL" if item.name == "model" else flag(item.name)
        value = "" if item.value is None or item.value == [] else str(item.value)
        rows.append([spelled, value, item.chosen_by])
    return table(rows, "  ")
