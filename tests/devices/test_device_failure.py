"""A device that fails while an engine serves, and an op that fails on a device that does not."""

import asyncio

import pytest

from inferplane.errors import EngineDeadError
from inferplane.messages import Output
from tests.devices.failing import check_failure
from tests.devices.poison import ASSERTION, POISON, ask, poisoned


def test_a_failed_device_ends_the_engine() -> None:
    core = poisoned("failing")
    core.handle(ask("a", [1, 2, 3]))
    assert core.step()
    core.handle(ask("poison", [1, POISON]))
    with pytest.raises(EngineDeadError, match=ASSERTION):
        core.step()


def test_every_request_gets_an_error_and_the_process_ends() -> None:
    assert ASSERTION in asyncio.run(asyncio.wait_for(check_failure("failing"), 120))


def test_a_failed_step_on_a_whole_device_ends_only_its_requests() -> None:
    """What ran with the poison is lost; what comes later is answered as ever."""
    core = poisoned("null")

    def serve(name: str) -> list[int]:
        core.handle(ask(name, [1, 2, 3], 9))
        found: list[int] = []
        while core.has_work:
            for output in core.step():
                assert isinstance(output, Output) and output.error is None
                found += output.tokens
        return found

    before = serve("before")
    assert len(before) == 9
    for name, prompt in (("beside", [4, 5]), ("poison", [1, POISON])):
        core.handle(ask(name, prompt))
    ended = {}
    while core.has_work:
        for output in core.step():
            assert isinstance(output, Output)
            ended[output.request_id] = (output.finish_reason, output.error)
    assert set(ended) == {"beside", "poison"}
    assert {reason for reason, _ in ended.values()} == {"error"}
    assert serve("after") == before
    stats = core.scheduler.stats()
    assert stats.failed == 2 and stats.pages_free + stats.pages_cached == stats.pages_total
