"""The CUDA kernels on the CPU: their sources beside a stand-in for their instructions, by g++."""

import ctypes
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from inferplane_cuda import packed

HERE = Path(__file__).parent


def gather(folder: Path) -> Path:
    """The sources in one folder."""
    kernels = Path(packed.__file__).parent / "kernels"
    for file in (kernels / "int4.cu", kernels / "sums.cuh", *HERE.glob("*.c*")):
        shutil.copy(file, folder)
    return folder


def library(sources: Path, options: Mapping[str, int]) -> Any:
    """The kernels of int4.cu with macros `options`; see few.cpp."""
    name = sources / ("_".join(f"{key}{value}" for key, value in options.items()) + ".so")
    if not name.exists():
        defines = [f"-D{key}={value}" for key, value in options.items()]
        flags = ["-std=c++17", "-O1", "-w", "-ffp-contract=off", "-shared", "-fPIC"]
        command = ["g++", *flags, *defines, "-o", str(name), str(sources / "few.cpp")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:3000]
    return ctypes.CDLL(str(name))


def arguments(values: "Sequence[torch.Tensor | int | None]") -> list[Any]:
    return [
        value
        if isinstance(value, int)
        else ctypes.c_void_p(None if value is None else value.data_ptr())
        for value in values
    ]
