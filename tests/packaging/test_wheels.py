"""What is in the wheels of a release, and that they install from a folder."""

import email
import sys
import zipfile
from collections.abc import Callable
from email.message import Message
from pathlib import Path

import pytest

from inferplane_cuda.compiler import HEADERS
from tests.packaging.conftest import BACKENDS, RELEASED
from tests.packaging.environments import Environment, run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("packaging")]
VERSION = "0.1.0"


def wheel(folder: Path, name: str) -> zipfile.ZipFile:
    (path,) = folder.glob(f"{name.replace('-', '_')}-{VERSION}-*.whl")
    return zipfile.ZipFile(path)


def metadata(file: zipfile.ZipFile) -> Message:
    (name,) = [n for n in file.namelist() if n.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(file.read(name))


def python_files(root: Path, package: str) -> set[str]:
    files = (p for p in (root / package).rglob("*") if p.is_file() and p.suffix != ".pyc")
    return {str(p.relative_to(root)) for p in files}


def test_the_core_wheel_holds_core_and_models_and_nothing_else(
    checkout: Path, wheels: Path
) -> None:
    file = wheel(wheels, "inferplane")
    inside = {n for n in file.namelist() if ".dist-info/" not in n}
    core = python_files(checkout / "core", "inferplane")
    models = python_files(checkout / "models", "inferplane_models")
    assert inside == core | models
    assert {"inferplane/py.typed", "inferplane_models/py.typed"} <= inside
    extra = {n.split(".dist-info/")[1] for n in file.namelist() if ".dist-info/" in n}
    assert {"entry_points.txt", "licenses/LICENSE"} <= extra


def test_requirements_name_no_vendor_and_no_folder(wheels: Path) -> None:
    facts = metadata(wheel(wheels, "inferplane"))
    requirements = facts.get_all("Requires-Dist", [])
    assert not [r for r in requirements if "file:" in r]
    always = [r for r in requirements if "extra ==" not in r]
    assert "torch>=2.8" in always
    vendors = ("triton", "xgrammar", "nvidia", "xla", "npu", "inferplane")
    assert not [r for r in always if any(v in r for v in vendors)]
    for name in BACKENDS:
        assert f"inferplane-{name}=={VERSION}; extra == '{name}'" in requirements
    for name in ("cuda", "rocm"):
        assert f"inferplane-triton=={VERSION}; extra == '{name}'" in requirements
    assert set(facts.get_all("Provides-Extra", [])) >= {"test", "xgrammar", *BACKENDS}


@pytest.mark.parametrize("name", RELEASED)
def test_a_backend_wheel_is_a_plugin(name: str, wheels: Path) -> None:
    file = wheel(wheels, f"inferplane-{name}")
    inside = file.namelist()
    assert f"inferplane_{name}/py.typed" in inside
    if name == "cuda":
        kernels = {f"inferplane_cuda/kernels/{k}" for k in ("int4.cu", *HEADERS)}
        assert kernels <= set(inside), "compiled where they are installed"
    assert {n.split("/")[0] for n in inside if ".dist-info/" not in n} == {f"inferplane_{name}"}
    (points,) = [n for n in inside if n.endswith("entry_points.txt")]
    group = "backends" if name in BACKENDS else "ops"
    expected = f"[inferplane.{group}]\n{name} = inferplane_{name}.plugin"
    assert file.read(points).decode().strip() == expected
    assert "inferplane<0.2,>=0.1" in metadata(file).get_all("Requires-Dist", [])


def test_the_compiled_wheel_fits_every_python_and_torch(wheels: Path) -> None:
    file = wheel(wheels, "inferplane-xeon")
    tags = Path(file.filename or "").stem.split("-")[2:4]
    assert tags == ["cp311", "abi3"]
    (library,) = [n for n in file.namelist() if n.endswith(".so")]
    assert library.endswith(".abi3.so")
    assert b"libtorch" not in file.read(library)
    assert b"libstdc++.so" not in file.read(library)


BUILD_TOOLS = "c++ g++ cc gcc clang clang++ cmake ctest ninja make ld as".split()


def no_compiler(folder: Path) -> str:
    """A PATH where every build tool says that it was called, and fails."""
    folder.mkdir()
    for name in BUILD_TOOLS:
        tool = folder / name
        tool.write_text(f"#!/bin/sh\necho {name} was called >&2\nexit 97\n")
        tool.chmod(0o755)
    return str(folder)


def test_a_release_installs_from_a_folder_by_its_extra_without_a_compiler(
    wheels: Path, tmp_path: Path, environment: Callable[[], Environment]
) -> None:
    fresh, path = environment(), no_compiler(tmp_path / "tools")
    fresh.install("--find-links", wheels, "inferplane[xeon]", PATH=path)
    fresh.python("-c", "from inferplane_xeon import _kernels; assert _kernels.isas()", PATH=path)
    found = fresh.plugins()
    assert set(found) == {"xeon"}
    assert "/site-packages/inferplane_xeon/" in found["xeon"]
    assert "xeon" in run(fresh.bin / "inferplane", "plugins")
    fresh.python("-m", "pip", "check")


def test_control_the_source_does_not_install_without_a_compiler(
    checkout: Path, tmp_path: Path, environment: Callable[[], Environment]
) -> None:
    path = no_compiler(tmp_path / "tools")
    with pytest.raises(RuntimeError, match=r"(cmake|ninja) was called|compiler"):
        environment().install("--no-deps", checkout / "backends/xeon", PATH=path)


def test_control_an_extra_without_its_wheel_does_not_install(
    wheels: Path, tmp_path: Path, environment: Callable[[], Environment]
) -> None:
    (core,) = wheels.glob("inferplane-*.whl")
    (tmp_path / core.name).symlink_to(core)
    with pytest.raises(RuntimeError, match="No matching distribution found for inferplane-xeon"):
        environment().install("--find-links", tmp_path, "inferplane[xeon]")


def test_a_wheel_built_from_the_source_archive_names_no_folder(
    checkout: Path, tmp_path: Path
) -> None:
    sdist = (sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path)
    run(*sdist, cwd=checkout, INFERPLANE_RELEASE="1")
    (archive,) = tmp_path.glob("*.tar.gz")
    build = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
    run(*build, "-w", tmp_path, archive)
    requirements = metadata(wheel(tmp_path, "inferplane")).get_all("Requires-Dist", [])
    assert f"inferplane-cuda=={VERSION}; extra == 'cuda'" in requirements
