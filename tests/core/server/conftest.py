"""One server for all tests that leave nothing behind in it."""

from collections.abc import Iterator

import pytest

from tests.core.server.live_server import LiveServer, live_server


@pytest.fixture(scope="session")
def live() -> Iterator[LiveServer]:
    with live_server() as server:
        yield server
        assert server.client.open_sequences == 0
