"""What importing a part of inferplane pulls in, seen in a process of its own; and that nothing
that guards input is an `assert`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rules.source import REPO, sources, within

HEAVY = ("torch", "transformers")
PATHS = [str(REPO / "core"), str(REPO / "models")]

# package -> what importing any of its modules must not load
LIGHT = {
    "inferplane.hw": HEAVY,
    "inferplane.scheduling": HEAVY,
    "inferplane.ipc": HEAVY,
    "inferplane.server": HEAVY,
    "inferplane.text": HEAVY,
    "inferplane.checkpoint": HEAVY,
    "inferplane.lang": HEAVY,
    "inferplane.cli": HEAVY,
    "inferplane.env": HEAVY,
    "inferplane.config": HEAVY,
    "inferplane.messages": HEAVY,
}
# where the engine's own process starts: it is what imports torch
ENGINE_SIDE = ("inferplane.ipc.engine_process",)


def python(code: str, *flags: str, paths: list[str] = PATHS) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(paths))
    command = [sys.executable, *flags, "-c", code]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def loaded(modules: list[str], unwanted: tuple[str, ...], paths: list[str] = PATHS) -> list[str]:
    """Which unwanted packages importing the modules loads, and by which module first."""
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
    bad = [u for u in {unwanted!r} if u in sys.modules]
    if bad:
        print(name, "loads", *bad)
        break
"""
    run = python(code, paths=paths)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def modules_of(package: str) -> list[str]:
    names = [s.module for s in sources("core") if within(s.module, package)]
    return [n for n in names if not within(n, *ENGINE_SIDE) and not n.endswith("__main__")]


@pytest.mark.parametrize("package", LIGHT)
def test_stays_light(package: str) -> None:
    modules = modules_of(package)
    assert modules, f"{package} does not exist"
    assert loaded(modules, LIGHT[package]) == []


def test_importing_inferplane_loads_no_torch() -> None:
    assert loaded(["inferplane"], HEAVY) == []


def test_plugins_load_no_torch() -> None:
    for source in sources("backends"):
        if source.module.endswith(".plugin"):
            paths = [*PATHS, str(REPO / Path(*Path(source.path).parts[:2]))]
            assert loaded([source.module], HEAVY, paths) == []


def test_control_a_heavy_import_is_found(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "innocent.py").write_text("")
    (tmp_path / "guilty.py").write_text("import torch")
    paths = [str(tmp_path)]
    assert loaded(["innocent", "guilty"], HEAVY, paths) == ["guilty loads torch"]
    assert loaded(["innocent"], HEAVY, paths) == []


# What `python -O` must still refuse: (code, the exception that it raises)
REFUSED = [
    ("from inferplane.config import Config\nConfig(model='m', port=99999)", "ConfigError"),
    ("from inferplane.config import Config\nConfig(model='m', dtype='int3')", "ConfigError"),
    (
        "import inferplane.sampling_params as s\ns.SamplingParams(top_p=2.0).verify(9)",
        "RequestError",
    ),
    (
        "from inferplane.hw.version import negotiate\nnegotiate('acme', (9, 0), (9, 1))",
        "PluginError",
    ),
]


@pytest.mark.parametrize(("code", "error"), REFUSED)
def test_input_is_refused_without_assertions(code: str, error: str) -> None:
    run = python(code, "-O")
    assert run.returncode == 1
    assert f"{error}: " in run.stderr.splitlines()[-1]


def test_control_assertions_are_off() -> None:
    assert python("assert False", "-O").returncode == 0
