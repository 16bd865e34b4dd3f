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

pytestmark = pytest.mark.xdist_group("stranger")


@pytest.fixture(scope="module")
def outcome(pytestconfig: pytest.Config) -> dict[str, Any]:
    if COMPILER is None:
        pytest.skip("no C++ compiler: the test device cannot be built")
    cache = pytestconfig.cache
    assert cache is not None
    folder = cache.mkdir(f"stranger-{torch.__version__}")
    paths = [REPO / "core", REPO / "models", REPO]
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja is beside us
    run = subprocess.run(
        [sys.executable, str(REPO / "tests/devices/stranger.py"), str(folder), "zebra"],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, paths)), CXX=COMPILER, PATH=tools),
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
    assert got["logprob_error"] < 1e-4


@pytest.mark.parametrize(("case", "ordinal"), [("llama", 0), ("gemma3", 1)])
def test_it_really_ran_there_and_overlapped(
    outcome: dict[str, Any], case: str, ordinal: int
) -> None:
    got = outcome[case]
    assert got["depth"] == 1
    assert set(got["on_cpu"].values()) == {0}
    counted = got["on_device"]
    assert counted.pop(f"events_{1 - ordinal}") == 0
    assert all(count > 50 for count in counted.values()), counted
