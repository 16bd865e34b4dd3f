"""Backends for tests, described in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from inferplane.hw import BackendInfo, DeviceInfo, TorchDevice, Unavailable, impl
from inferplane.plugins import Plugins

REPO = Path(__file__).resolve().parents[2]

BROKEN = OSError("libvendor.so: cannot open shared object file")


def backend(name: str, found: Any = 1, rank: int = 50, **more: Any) -> ModuleType:
    """`found`: number of devices, an Unavailable, or an exception that probe raises. `more`:
    fields of BackendInfo, and hooks."""
    fields = {k: more.pop(k) for k in ("version", "devices", "api") if k in more}
    info = BackendInfo(
        **({"name": name, "version": "1.2", "devices": (name,), "rank": rank} | fields)
    )

    @impl
    def backend_info() -> BackendInfo:
        return info

    @impl
    def probe() -> list[DeviceInfo] | Unavailable:
        if isinstance(found, Exception):
            raise found
        if isinstance(found, Unavailable):
            return found
        return [
            DeviceInfo(backend=name, ordinal=i, torch_device="cpu", name=f"{name} {i}")
            for i in range(found)
        ]

    @impl
    def create_device(info: DeviceInfo, options: Any) -> TorchDevice:
        return TorchDevice(info)

    hooks = {"backend_info": backend_info, "probe": probe, "create_device": create_device}
    module = ModuleType(f"{name}_plugin")
    vars(module).update({k: v for k, v in (hooks | more).items() if v is not None})
    return module


class Alone(Plugins):
    """Only what tests register; installed packages do not matter."""

    def names(self, group: str) -> list[str]:
        return sorted(name for where, name in self._loaded if where == group)


def plugins(*backends: ModuleType) -> Alone:
    made = Alone()
    for module in backends:
        made.register(module.backend_info().name, module)
    return made


def install(folder: Path, name: str, source: str, group: str = "inferplane.backends") -> None:
    """A distribution with one entry point, as pip would lay it out."""
    info = folder / f"{name}-0.4.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.4\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {name}_plugin\n")
    (folder / f"{name}_plugin.py").write_text(source)


def run(code: str, *paths: Path) -> Any:
    """What the code prints as JSON, in a process of its own."""
    where = os.pathsep.join(map(str, (*paths, REPO / "core", REPO / "models")))
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ, PYTHONPATH=where),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
