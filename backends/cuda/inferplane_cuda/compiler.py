"""CUDA C++ to machine code by NVRTC, the compiler that torch's CUDA packages bring as a library.

What was compiled once is kept in a folder and found again by its sources, options, GPU and
compiler.
"""

import ctypes
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile

from inferplane.errors import DeviceError

KERNELS = Path(__file__).parent / "kernels"
HEADERS = ("instructions.cuh", "sums.cuh")
STANDARD = "--std=c++17"


class CompilerError(Exception):
    """NVRTC is missing or does not work here."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """Thread-safe: NVRTC compiles several programs at a time."""

    folder: Path | None = None
    """of compiled kernels; None: nothing is kept"""

    def problem(self, arch: str) -> str:
        """Why kernels for `arch` (sm_90) cannot be compiled here; empty if they can."""
        return _problem(arch)

    def cubin(self, source: str, options: Mapping[str, int], arch: str) -> bytes:
        """Machine code of kernels/`source` with macros `options`. Raises DeviceError with the
        compiler's words."""
        texts = {name: (KERNELS / name).read_bytes() for name in (source, *HEADERS)}
        arguments = [f"--gpu-architecture={arch}", STANDARD]
        arguments += [f"-D{name}={value}" for name, value in options.items()]
        try:
            nvrtc, version = _library()
        except CompilerError as error:
            raise DeviceError(f"kernels/{source}: {error}") from None
        if self.folder is None:
            return _compile(nvrtc, source, texts, arguments)
        path = self.folder / f"{Path(source).stem}-{key(texts, arguments, version)}.cubin"
        with suppress(OSError):
            return path.read_bytes()
        made = _compile(nvrtc, source, texts, arguments)
        _keep(path, made)
        return made


def key(texts: Mapping[str, bytes], arguments: Sequence[str], version: str) -> str:
    """Of everything that the machine code depends on."""
    parts = [version.encode(), *(argument.encode() for argument in arguments)]
    for name, text in sorted(texts.items()):
        parts += [name.encode(), text]
    lengths = b",".join(str(len(part)).encode() for part in parts)
    return hashlib.sha256(lengths + b"".join(parts)).hexdigest()[:32]


def _keep(path: Path, made: bytes) -> None:
    """All or nothing, whoever writes at the same time. A folder that cannot be written to costs the
    next start a compilation and nothing else."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(made)
        os.replace(file.name, path)


@cache
def _problem(arch: str) -> str:
    try:
        nvrtc, version = _library()
    except CompilerError as error:
        return str(error)
    count = ctypes.c_int()
    _check(nvrtc, nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)), "nvrtcGetNumSupportedArchs")
    known = (ctypes.c_int * count.value)()
    _check(nvrtc, nvrtc.nvrtcGetSupportedArchs(known), "nvrtcGetSupportedArchs")
    names = [f"sm_{number}" for number in known]
    return "" if arch in names else f"NVRTC {version} compiles for {', '.join(names)}, not {arch}"


@cache
def _library() -> tuple[ctypes.CDLL, str]:
    """NVRTC of torch's CUDA version, and its own."""
    wanted = _torch_cuda().partition(".")[0]
    found = None
    for path in _candidates(wanted):
        with suppress(OSError):
            for part in sorted(path.parent.glob("libnvrtc-builtins.so.*")):
                ctypes.CDLL(str(part))  # NVRTC looks for it by name, and not where it is itself
            found = ctypes.CDLL(str(path))
            break
    if found is None:
        raise CompilerError(
            f"libnvrtc.so.{wanted} cannot be loaded: pip install nvidia-cuda-nvrtc of torch's CUDA"
            " version"
        )
    found.nvrtcGetErrorString.restype = ctypes.c_char_p
    major, minor = ctypes.c_int(), ctypes.c_int()
    status = found.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    _check(found, status, "nvrtcVersion")
    return found, f"{major.value}.{minor.value}"


def _torch_cuda() -> str:
    import torch

    if torch.version.cuda is None:
        raise CompilerError(f"torch {torch.__version__} is built without CUDA")
    return str(torch.version.cuda)


def _candidates(version: str) -> list[Path]:
    """Packages beside torch first, then a toolkit's, then the loader's own search."""
    name = f"libnvrtc.so.{version}"
    folders = [folder for entry in sys.path for folder in Path(entry).glob("nvidia/*/lib")]
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    folders += [toolkit / "lib64"]
    return [*(f / name for f in sorted(folders) if (f / name).exists()), Path(name)]


def _compile(
    nvrtc: ctypes.CDLL, source: str, texts: Mapping[str, bytes], arguments: Sequence[str]
) -> bytes:
    program = ctypes.c_void_p()
    names = [name for name in texts if name != source]
    headers = _strings([texts[name] for name in names])
    status = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), texts[source], source.encode(), len(names), headers,
        _strings([name.encode() for name in names]),
    )  # fmt: skip
    _check(nvrtc, status, "nvrtcCreateProgram")
    try:
        options = _strings([argument.encode() for argument in arguments])
        if nvrtc.nvrtcCompileProgram(program, len(arguments), options):
            log = _bytes(nvrtc, program, "ProgramLog").decode(errors="replace").strip()
            raise DeviceError(f"kernels/{source} with {' '.join(arguments)}: {log[:2000]}")
        return _bytes(nvrtc, program, "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _strings(values: Sequence[bytes]) -> "ctypes.Array[ctypes.c_char_p]":
    return (ctypes.c_char_p * len(values))(*values)


def _bytes(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    status = getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    _check(nvrtc, status, f"nvrtcGet{what}Size")
    room = ctypes.create_string_buffer(size.value)
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, room), f"nvrtcGet{what}")
    return room.raw


def _check(nvrtc: ctypes.CDLL, status: int, what: str) -> None:
    if status:
        raise DeviceError(f"{what}: {nvrtc.nvrtcGetErrorString(status).decode()}")
