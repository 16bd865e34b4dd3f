"""One engine for all tests that leave nothing behind in it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferplane import Engine
from tests.core.offline.tiny_model import install_backends, write_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The test backends are installed."""
    folder = install_backends(tmp_path_factory.mktemp("backends"))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def engine(tiny_folder: Path, backends: Path) -> Iterator[Engine]:
    with Engine(str(tiny_folder), device="plain", kv_cache_tokens=8192) as engine:
        yield engine
