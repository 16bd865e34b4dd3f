"""Built once for all tests of this folder."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.environments import Environment, copy_checkout, neighbours, run

BACKENDS = ("ascend", "cuda", "rocm", "tpu", "xeon")
RELEASED = (*BACKENDS, "triton")


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("packaging") / "checkout")


@pytest.fixture(scope="session")
def wheels(checkout: Path) -> Path:
    """Every distribution, built as for a release."""
    folder = checkout.parent / "wheels"
    projects = [checkout, *(checkout / "backends" / name for name in RELEASED)]
    build = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
    run(*build, "-w", folder, *projects, INFERPLANE_RELEASE="1")
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> Callable[[], Environment]:
    packages = neighbours(tmp_path / "neighbours")
    return lambda: Environment(tmp_path / "venv", packages)
