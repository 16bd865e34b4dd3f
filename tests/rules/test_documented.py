"""Settings, hooks and environment variables are in the docs, and the docs' example works."""

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from inferplane import env
from inferplane.config import flag, settings
from inferplane.hw import TorchDevice, device, hookspecs
from inferplane.plugins import Plugins
from tests.rules.source import REPO


def page(name: str) -> str:
    return (REPO / name).read_text()


def missing(names: list[str], text: str) -> list[str]:
    """Names that a page does not show as code."""
    return [name for name in names if f"`{name}`" not in text]


def hooks() -> list[str]:
    """Every hook with its arguments, as the docs write it."""
    functions = inspect.getmembers(hookspecs, inspect.isfunction)
    specs = [(n, f) for n, f in functions if hasattr(f, f"{hookspecs.PROJECT}_spec")]
    return [f"{n}({', '.join(inspect.signature(f).parameters)})" for n, f in specs]


def test_every_setting_and_variable_is_documented() -> None:
    text = page("docs/configuration.md")
    names = [flag(item.name) for item in settings() if item.name != "model"]
    assert missing([*names, *(item.name for item in settings()), *env.VARIABLES], text) == []


def test_generated_pages_are_up_to_date() -> None:
    run = subprocess.run(
        [sys.executable, REPO / "ci/docs.py", "--check"],
        env={"PYTHONPATH": str(REPO / "core")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_every_hook_is_documented() -> None:
    assert len(hooks()) >= len(hookspecs.MANDATORY)
    assert missing(hooks(), page("docs/backends.md")) == []


def test_every_unavailable_code_is_documented() -> None:
    codes = re.findall(r"\b[a-z]+_[a-z]+\b", (device.Unavailable.__doc__ or "").split("Codes:")[1])
    assert len(codes) >= 5
    assert missing(codes, page("docs/backends.md")) == []


def test_control_a_missing_name_is_found() -> None:
    text = page("docs/configuration.md").replace("`--max-queue`", "")
    assert missing(["--max-queue", "--port"], text) == ["--max-queue"]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("inferplane_acme", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["docs/backends.md", "README.md"])
def test_the_example_backend_works(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As printed, but for a torch device that this machine has."""
    (code,) = [b for b in blocks(page(name), "python") if "@impl" in b]
    path = tmp_path / "plugin.py"
    path.write_text(code.replace('"acme:0"', '"cpu"'))
    module = load(path)
    monkeypatch.setitem(sys.modules, "torch_acme", ModuleType("torch_acme"))
    monkeypatch.setattr(module, "pci_devices", lambda vendor: [vendor])
    plugins = Plugins()
    loaded = plugins.register("acme", module)
    probed = plugins.probe(loaded)
    assert [d.name for d in probed.devices] == ["Acme One"]
    info = probed.devices[0]
    assert isinstance(plugins.call("create_device", loaded, info=info, options={}), TorchDevice)
    monkeypatch.setattr(module, "pci_devices", lambda vendor: [])
    unavailable = plugins.probe(loaded).unavailable
    assert unavailable is not None
    assert unavailable.code == "no_hardware"
