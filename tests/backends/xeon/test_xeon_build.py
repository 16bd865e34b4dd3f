"""What someone sees who installs from source without a compiler."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3] / "backends/xeon"


def test_missing_compiler_names_the_package(tmp_path: Path) -> None:
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("needs cmake on the PATH")
    shown = subprocess.run([cmake, "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"(\d+)\.(\d+)", shown.stdout)
    if version is None or tuple(map(int, version.groups())) < (3, 26):
        pytest.skip(f"needs cmake 3.26, there is {shown.stdout.splitlines()[0]}")
    make = tmp_path / "make"
    make.write_text("#!/bin/sh\n")
    make.chmod(0o755)
    done = subprocess.run(
        [cmake, "-S", str(SOURCE), "-B", str(tmp_path / "build"), f"-DCMAKE_MAKE_PROGRAM={make}"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert "no C++ compiler found" in done.stderr
    assert "apt install g++" in " ".join(done.stderr.split())
