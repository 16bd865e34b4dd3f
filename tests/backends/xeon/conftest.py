"""Kernel tests run once for every instruction set of ours; those that the processor lacks skip."""

from collections.abc import Iterator
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def library() -> ModuleType:
    try:
        from inferplane_xeon import kernels

        return kernels.library()
    except ImportError as error:
        pytest.skip(f"the kernels are not built: {error}: pip install -e backends/xeon")


@pytest.fixture(params=["avx2", "avx512", "avx512_vnni", "avx512_bf16"])
def isa(request: pytest.FixtureRequest, library: ModuleType) -> Iterator[str]:
    name: str = request.param
    if name not in library.isas():
        pytest.skip(f"this processor does not run {name}")
    before = library.isa()
    library.set_isa(name)
    yield name
    library.set_isa(before)


@pytest.fixture
def threads(library: ModuleType) -> Iterator[ModuleType]:
    """The library, whose number of threads the test may change."""
    before = library.threads()
    yield library
    library.set_threads(before)
