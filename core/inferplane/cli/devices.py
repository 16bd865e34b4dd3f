"""`inferplane devices`: what each installed backend finds here, or why not and how to mend it."""

import argparse
import json
from typing import Any

from inferplane.cli.table import size
from inferplane.hw.device import DeviceInfo
from inferplane.plugins import BACKENDS, Plugins, Probed


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
    """One entry per backend."""
    return [_entry(plugins, plugins.probe(p)) for p in plugins.load_all(BACKENDS)]


def _entry(plugins: Plugins, probed: Probed) -> dict[str, Any]:
    backend, info = probed.backend, probed.backend.info
    unavailable = probed.unavailable
    return {
        "backend": backend.name,
        "package": backend.package,
        "version": info.version if info else None,
        "device_names": list(info.devices) if info else [],
        "docs_url": info.docs_url if info else "",
        "note": backend.note,
        "status": "available" if probed.devices else "unavailable" if unavailable else "failed",
        "failure": backend.failure or probed.failure,
        "code": unavailable.code if unavailable else None,
        "reason": unavailable.reason if unavailable else None,
        "fix": unavailable.fix if unavailable else None,
        "devices": [_device(plugins, probed, device) for device in probed.devices],
    }


def _device(plugins: Plugins, probed: Probed, info: DeviceInfo) -> dict[str, Any]:
    facts: dict[str, str] = {}
    trouble = ""
    try:
        device = plugins.call("create_device", probed.backend, info=info, options={})
        facts = dict(plugins.call("diagnostics", probed.backend, device=device) or {})
    except Exception as error:  # of a plugin: the listing goes on
        trouble = f"{type(error).__name__}: {error}"
    return {
        "ordinal": info.ordinal,
        "name": info.name,
        "arch": info.arch,
        "torch_device": info.torch_device,
        "memory_bytes": info.memory_bytes,
        "shape_policy": info.shape_policy,
        "diagnostics": facts,
        "failure": trouble,
    }


def render(found: list[dict[str, Any]]) -> str:
    if not found:
        return (
            "no backend is installed\n"
            "  try: pip install 'inferplane[BACKEND]' with the backend of your hardware"
        )
    lines = []
    for entry in found:
        lines.append(f"{entry['backend']} {entry['version'] or '(broken)'}  {entry['status']}")
        if entry["failure"]:
            lines.append(f"  failed: {entry['failure']}")
        if entry["note"]:
            lines.append(f"  note: {entry['note']}")
        if entry["status"] == "unavailable":
            lines.append(f"  reason [{entry['code']}]: {entry['reason']}")
            lines.append(f"  fix: {entry['fix']}")
        for device in entry["devices"]:
            lines += _device_lines(entry, device)
    return "\n".join(lines)


def _device_lines(entry: dict[str, Any], device: dict[str, Any]) -> list[str]:
    name = entry["device_names"][0] if entry["device_names"] else entry["backend"]
    facts = [device["name"], device["arch"]]
    if device["memory_bytes"]:
        facts.append(size(device["memory_bytes"]))
    lines = [f"  --device {name}:{device['ordinal']}  " + ", ".join(f for f in facts if f)]
    lines += [f"    {key}: {value}" for key, value in device["diagnostics"].items()]
    if device["failure"]:
        lines.append(f"    failed: {device['failure']}")
    return lines
