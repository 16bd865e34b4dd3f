"""The engine of the offline tests, and a fake backend."""

import pytest

from tests.core.lang.fake import FakeBackend
from tests.core.offline.conftest import backends, engine, tiny_folder

__all__ = ["backends", "engine", "tiny_folder"]


@pytest.fixture
def fake() -> FakeBackend:
    return FakeBackend()
