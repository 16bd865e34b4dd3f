"""A kernel that fails on the real device while an engine serves with recorded steps."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

REPO = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _needs_a_device_that_fails(accelerated: bool) -> None:
    if not accelerated:
        pytest.skip("a processor does not fail at a wrong index")


def test_in_process(backend: str) -> None:
    """The step raises, and the process can still end by itself."""
    command = [sys.executable, "-m", "tests.devices.poison", "--drive", backend]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=200)
    print(done.stdout[-2000:], done.stderr[-4000:])
    assert "tokens before the poison" in done.stdout
    assert not done.stdout.startswith("0 tokens")
    assert "EngineDeadError" in done.stderr
    assert done.returncode != 0


def test_as_a_process(backend: str) -> None:
    pytest.importorskip("zmq")
    from tests.devices.failing import check_failure

    message = asyncio.run(asyncio.wait_for(check_failure(backend), 200))
    print(message)
    assert "failed" in message
