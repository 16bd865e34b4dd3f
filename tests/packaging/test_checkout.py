"""Installing from a checkout, in the ways that the README names."""

import importlib.util
import os
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.environments import REPO, Environment

pytestmark = pytest.mark.xdist_group("packaging")


def project(path: str) -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((REPO / path).read_text())["project"]
    return found


def backends() -> list[str]:
    return sorted(p.parent.name for p in (REPO / "backends").glob("*/pyproject.toml"))


@pytest.mark.slow
def test_an_extra_installs_the_folder_of_its_backend(
    checkout: Path, environment: Callable[[], Environment]
) -> None:
    fresh = environment()
    fresh.install(f"{checkout}[cuda,rocm]")
    found = fresh.plugins()
    assert set(found) == {"cuda", "rocm"}
    assert "/site-packages/inferplane_cuda/" in found["cuda"]


@pytest.mark.slow
def test_without_an_extra_there_is_no_backend(
    checkout: Path, environment: Callable[[], Environment]
) -> None:
    fresh = environment()
    fresh.install(checkout)
    assert fresh.plugins() == {}
    where = fresh.python("-c", "import inferplane, inferplane_models as m; print(m.__file__)")
    assert "/site-packages/" in where


@pytest.mark.slow
def test_editable_installs_point_at_the_checkout(
    checkout: Path, environment: Callable[[], Environment]
) -> None:
    fresh = environment()
    fresh.install("-e", ".", "-e", "backends/xeon", cwd=checkout)
    assert fresh.plugins() == {"xeon": str(checkout / "backends/xeon/inferplane_xeon/plugin.py")}
    where = fresh.python("-c", "import inferplane, inferplane_models as m; print(m.__file__)")
    assert where.strip() == str(checkout / "models/inferplane_models/__init__.py")
    fresh.python("-m", "pip", "check")


def test_extras_cover_the_backends_and_versions_agree() -> None:
    spec = importlib.util.spec_from_file_location("extras", REPO / "ci/extras.py")
    assert spec is not None and spec.loader is not None
    extras = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extras)
    with_device = [
        name
        for name in backends()
        if "inferplane.backends" in str(project(f"backends/{name}/pyproject.toml")["entry-points"])
    ]
    assert sorted(extras.BACKENDS) == with_device
    assert {n for names in extras.BACKENDS.values() for n in names} == set(backends())
    version = project("pyproject.toml")["version"]
    for name in backends():
        facts = project(f"backends/{name}/pyproject.toml")
        assert (facts["name"], facts["version"]) == (f"inferplane-{name}", version)


def test_constraints_pin_torch_first_and_every_direct_dependency() -> None:
    lines = (REPO / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert next(iter(pins)) == "torch"
    root = tomllib.loads((REPO / "pyproject.toml").read_text())
    hook = root["tool"]["hatch"]["metadata"]["hooks"]["custom"]
    for requirement in [*root["project"]["dependencies"], *hook["extras"]["test"]]:
        name = requirement.split(">=")[0]
        assert name in pins, f"{name} has no pin in constraints.txt"


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As from a shell, not as part of the make that may run these tests."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(
        ["make", *arguments], cwd=checkout, env=environment, capture_output=True, text=True
    )


def test_make_serve_honours_port_and_model(checkout: Path) -> None:
    done = make(checkout, "-n", "serve", "PORT=8123", "MODEL=some/model")
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last == 'exec .venv/bin/inferplane serve "some/model" --device xeon --port 8123'


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("#!/bin/sh\necho Python 3.10.4; exit 1\n", "is Python 3.10.4"),
        ('#!/bin/sh\n[ "$1" = -c ]\n', "apt-get install python3-venv"),
    ],
)
def test_make_names_what_python_lacks(
    script: str, word: str, checkout: Path, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(script)
    python.chmod(0o755)
    done = make(checkout, "serve", f"PYTHON={python}")
    assert done.returncode != 0
    assert word in done.stderr
    assert not (checkout / ".venv").exists()
