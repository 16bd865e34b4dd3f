"""Fixtures for the tests of core."""

import pytest

from inferplane.checkpoint.source import ModelSource, open_model


@pytest.fixture(scope="session")
def demo_model() -> ModelSource:
    """SmolLM2-135M-Instruct, fetched once into the cache folder."""
    return open_model("smollm2")
