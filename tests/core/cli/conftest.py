"""Runs `inferplane` as users do, with a model whose answers are known and backends of the test."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.core.offline.conftest import backends, tiny_folder
from tests.rules.source import REPO

__all__ = ["backends", "tiny_folder"]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def environment(backends: Path) -> dict[str, str]:
    paths = [str(REPO / "core"), str(REPO / "models"), str(backends)]
    return dict(os.environ, PYTHONPATH=os.pathsep.join(paths), OMP_NUM_THREADS="1")


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """run("devices", "--json", input="") -> the finished process"""

    def call(*words: str, input: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "inferplane", *words],
            input=input,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return call
