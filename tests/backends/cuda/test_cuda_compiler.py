"""What is compiled, what is kept of it, and what is said where it cannot be."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from inferplane.errors import DeviceError
from inferplane_cuda import compiler
from inferplane_cuda.compiler import Compiler, CompilerError, key
from inferplane_cuda.int4 import SOURCE, cuts
from inferplane_cuda.packed import Weights

TEXTS = {"a.cu": b"one", "b.cuh": b"two"}


def test_the_key_tells_all_that_matters_apart() -> None:
    plain = key(TEXTS, ["-DROWS=1", "-DX=2"], "13.0")
    assert key(dict(reversed(TEXTS.items())), ["-DROWS=1", "-DX=2"], "13.0") == plain
    others = [
        key(TEXTS | {"b.cuh": b"tw"}, ["-DROWS=1", "-DX=2"], "13.0"),
        key({"a.cu": b"onet", "b.cuh": b"wo"}, ["-DROWS=1", "-DX=2"], "13.0"),
        key({"a.cu": b"one", "c.cuh": b"two"}, ["-DROWS=1", "-DX=2"], "13.0"),
        key(TEXTS, ["-DROWS=1", "-DX=3"], "13.0"),
        key(TEXTS, ["-DROWS=1-DX=2"], "13.0"),
        key(TEXTS, ["-DROWS=1", "-DX=2"], "13.1"),
    ]
    assert len({plain, *others}) == 7


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of each compilation, by a compiler that gives their number."""
    asked: list[list[str]] = []

    def compile_it(nvrtc: Any, source: str, texts: Any, arguments: list[str]) -> bytes:
        asked.append(arguments)
        return f"cubin {len(asked)}".encode()

    monkeypatch.setattr(compiler, "_library", lambda: (None, "13.0"))
    monkeypatch.setattr(compiler, "_compile", compile_it)
    return asked


def test_what_was_compiled_is_found_again(made: list[list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cuda"
    assert Compiler(folder).cubin(SOURCE, {"ROWS": 1}, "sm_90") == b"cubin 1"
    assert made == [["--gpu-architecture=sm_90", "--std=c++17", "-DROWS=1"]]
    assert Compiler(folder).cubin(SOURCE, {"ROWS": 1}, "sm_90") == b"cubin 1"
    assert Compiler(folder).cubin(SOURCE, {"ROWS": 2}, "sm_90") == b"cubin 2"
    assert Compiler(folder).cubin(SOURCE, {"ROWS": 1}, "sm_100") == b"cubin 3"
    assert len(list(folder.iterdir())) == 3


def test_without_a_folder_each_start_compiles(made: list[list[str]], tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    for folder in (None, in_the_way):
        Compiler(folder).cubin(SOURCE, {"ROWS": 1}, "sm_90")
        Compiler(folder).cubin(SOURCE, {"ROWS": 1}, "sm_90")
    assert len(made) == 4


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing is remembered of the compiler, before and after."""
    for step in range(2):
        compiler._library.cache_clear()
        compiler._problem.cache_clear()
        if not step:
            yield


def test_a_missing_compiler_is_named(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_torch_cuda", lambda: "99.1")
    problem = Compiler().problem("sm_90")
    assert "libnvrtc.so.99 cannot be loaded" in problem
    assert "pip install nvidia-cuda-nvrtc" in problem
    with pytest.raises(DeviceError, match=r"kernels/int4\.cu: libnvrtc\.so\.99"):
        Compiler().cubin(SOURCE, {}, "sm_90")


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is a CUDA build")
def test_a_cpu_build_of_torch_is_named(fresh: None) -> None:
    assert "built without CUDA" in Compiler().problem("sm_90")


@pytest.fixture
def nvrtc() -> None:
    try:
        compiler._library()
    except CompilerError as error:
        pytest.skip(str(error))


def test_every_cut_compiles(nvrtc: None) -> None:
    """Needs the compiler, no GPU."""
    assert Compiler().problem("sm_90") == ""
    assert "not sm_10" in Compiler().problem("sm_10")
    w = Weights(torch.zeros(1), torch.zeros(1).half(), 128, 1)
    for columns in (4096, 6144, 28672):
        for _, cut in cuts(columns):
            made = Compiler().cubin(SOURCE, cut.options(w, False, False), "sm_90")
            assert made.startswith(b"\x7fELF")


def test_the_compilers_words_reach_the_user(nvrtc: None) -> None:
    with pytest.raises(
        DeviceError, match=r"(?s)kernels/int4\.cu with .*identifier .ROWS. is undef"
    ):
        Compiler().cubin(SOURCE, {"STRIPS": 1}, "sm_90")
