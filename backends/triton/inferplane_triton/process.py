"""Kernels compiled in a process of their own: Triton's front end holds Python's lock, so
that threads alone take turns in it, with whoever names the kernels.

`python -m inferplane_triton.process` reads lines of JSON, [backend, arch, warp size, module, name,
Triton's specialization data], and answers each once the kernel is in Triton's cache on the disk
with null, or with what went wrong.
"""

import ast
import json
import os
import subprocess
import sys
from importlib import import_module
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


def settle(kernel: Any) -> None:
    """Have Triton name the kernel for its cache, what it calls first: the name of a kernel depends
    on whether those had one (3.6 reads the constants that they use before it looks for them)."""
    for node in ast.walk(kernel.parse()):
        used = kernel.fn.__globals__.get(node.id) if isinstance(node, ast.Name) else None
        if isinstance(used, JITFunction) and used.hash is None:
            settle(used)
    _ = kernel.cache_key  # asking makes it


class Process:
    """The other side of such a process. Errors are OSError and ValueError."""

    def __init__(self) -> None:
        paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__], env=os.environ | paths, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def compile(self, target: GPUTarget, module: str, name: str, data: str) -> str | None:
        """What went wrong."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps([target.backend, target.arch, target.warp_size, module, name, data]))
        stdin.write("\n")
        stdin.flush()
        answer: str | None = json.loads(stdout.readline())  # nothing, which is no JSON: it died
        return answer

    def close(self) -> None:
        """Ends it, whatever it is doing."""
        self._process.kill()
        self._process.communicate()


class _Driver:
    """Has a target and no device: nothing is launched here."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0


def _answer(backend: str, arch: Any, warp_size: int, module: str, name: str, data: str) -> Any:
    driver.set_active(_Driver(GPUTarget(backend, arch, warp_size)))
    try:
        kernel = getattr(import_module(module), name)
        settle(kernel)
        kernel.preload(data)
    except Exception as error:  # whatever a compiler can fail with
        return f"{type(error).__name__}: {error}"
    return None


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # a compiler may print
    for line in sys.stdin:
        print(json.dumps(_answer(*json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
