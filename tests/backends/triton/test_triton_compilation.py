"""Kernels are compiled ahead, beside each other: Triton's compiler runs here, without a GPU."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("triton") is None:  # importing it here would keep other tests from its interpreter
    pytest.skip("triton is not installed", allow_module_level=True)

EXPECTED = """\
launched while collecting []
reports [(1, 4), (2, 4), (3, 4), (4, 4)] compiled here []
hook None
launched ['glu', 'glu', 'glu', 'rms'] compiled late []
broken CompilationError compiled late 1
not collected embed compiled late 2
given up None {} True
without a process ['rms']
without a process ['rms', 'rms']
"""


def run(program: str, cache: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(Path(__file__).with_name(program))]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


def test_collected_kernels_are_compiled_before_their_first_launch(tmp_path: Path) -> None:
    assert run("compile_ahead.py", tmp_path) == EXPECTED


NAMES = """
import sys
from inferplane_triton.kernels import sampling, wide_sampling
from inferplane_triton.process import settle
kernels = [sampling.finish, sampling.visit, wide_sampling.wide, sampling.bound]
for kernel in kernels if sys.argv[1] == "forwards" else reversed(kernels):
    settle(kernel)
print([kernel.cache_key for kernel in kernels])
"""


def test_kernels_have_the_same_names_in_any_order() -> None:
    """In Triton's cache: what one process compiled is found by another."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TRITON_INTERPRET", None)
    found = {
        subprocess.check_output([sys.executable, "-O", "-c", NAMES, order], env=environment)
        for order in ("forwards", "backwards")
    }
    assert len(found) == 1


def test_steps_of_any_size_take_the_same_kernels(tmp_path: Path) -> None:
    assert run("compile_steps.py", tmp_path) == "[('merge', 1), ('split', 1), ('tiled', 1)]\n"
