"""Kernels are compiled ahead, beside each other: Triton's compiler runs here, without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed", exc_type=ImportError)

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


def test_collected_kernels_are_compiled_before_their_first_launch(tmp_path: Path) -> None:
    program = Path(__file__).with_name("compile_ahead.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout == EXPECTED
