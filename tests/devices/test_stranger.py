"""A torch device of an arbitrary name runs the models: nothing in core or models knows a device."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

REPO = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


@pytest.fixture(scope="module")
def outcome(pytestconfig: pytest.Config) -> dict[str, Any]:
    if COMPILER is None or shutil.which("ninja") is None:
        pytest.skip("no C++ compiler or no ninja: the test device cannot be built")
    cache = pytestconfig.cache
    assert cache is not None
    folder = cache.mkdir(f"stranger-{torch.__version__}")
    paths = [REPO / "core", REPO / "models", REPO]
    run = subprocess.run(
        [sys.executable, str(REPO / "tests/devices/stranger.py"), str(folder), "zebra"],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, paths)), CXX=COMPILER),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("case", ["llama", "gemma3", "deterministic"])
def test_tokens_are_those_of_the_cpu(outcome: dict[str, Any], case: str) -> None:
    got = outcome[case]
    assert got["tokens"] == got["expected"]
    assert sum(map(len, got["tokens"].values())) > 60
    assert got["same_logprobs"]


@pytest.mark.parametrize("case", ["llama", "gemma3"])
def test_it_really_ran_there_and_overlapped(outcome: dict[str, Any], case: str) -> None:
    got = outcome[case]
    assert got["depth"] == 1
    assert set(got["on_cpu"].values()) == {0}
    assert all(count > 100 for count in got["on_device"].values()), got["on_device"]
