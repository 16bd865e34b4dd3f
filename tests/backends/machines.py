"""Machines described as folders, for the probes of backends."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from inferplane.hw import Unavailable


def plugin(name: str) -> ModuleType:
    return importlib.import_module(f"inferplane_{name}.plugin")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def pci(vendor: int, device: int, kind: int) -> dict[str, str]:
    folder = "sys/bus/pci/devices/0000:01:00.0"
    facts = {"vendor": f"{vendor:#06x}", "device": f"{device:#06x}", "class": f"{kind:#06x}00"}
    return {f"{folder}/{name}": value + "\n" for name, value in facts.items()}


def unavailable(found: object) -> Unavailable:
    if not isinstance(found, Unavailable) or not (found.reason and found.fix):
        raise TypeError(f"not an Unavailable with a reason and a fix: {found}")
    return found


def pretend_torch(monkeypatch: pytest.MonkeyPatch, module: ModuleType, **build: str | None) -> None:
    monkeypatch.setattr(module, "torch_build", lambda: build)


def pretend_installed(monkeypatch: pytest.MonkeyPatch, module: ModuleType, **versions: str) -> None:
    monkeypatch.setattr(module, "installed_version", lambda d: versions.get(d.replace("-", "_")))
