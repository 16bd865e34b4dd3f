"""Kernel tests run once for every instruction set of ours; those that the processor lacks skip."""

from collections.abc import Iterator
from types import ModuleType

import pytest

from inferplane.hw.probing import ROOT
from inferplane_xeon.plugin import cpu_facts


@pytest.fixture(scope="session")
def library() -> ModuleType:
    try:
        from inferplane_xeon import kernels

        return kernels.library()
    except ImportError as error:
        pytest.skip(f"the kernels are not built: {error}: pip install -e backends/xeon")


ISAS = ["avx2", "avx512", "avx512_vnni", "avx512_bf16"]
TILES = ["amx_emulated"]
"""for modules that say MATRIX_PRODUCTS: all the other kernels are avx512_bf16's"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        tiles = TILES if hasattr(metafunc.module, "MATRIX_PRODUCTS") else []
        if tiles and "amx_tile" in cpu_facts(ROOT).get("flags", "").split():
            tiles = [*tiles, "amx"]
        metafunc.parametrize("isa", ISAS + tiles, indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest, library: ModuleType) -> Iterator[str]:
    name: str = request.param
    before = library.isa()
    try:
        library.set_isa(name)
    except ValueError as error:
        pytest.skip(str(error))
    yield name
    library.set_isa(before)


@pytest.fixture
def threads(library: ModuleType) -> Iterator[ModuleType]:
    """The library, whose number of threads the test may change."""
    before = library.threads()
    yield library
    library.set_threads(before)
