"""Torch threads for models of a few hundred kilobytes: one, because starting a team costs more."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """A module with larger models sets `THREADS`."""
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request.module, "THREADS", 1))
    yield
    torch.set_num_threads(before)
