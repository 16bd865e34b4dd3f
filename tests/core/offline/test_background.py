"""Handing work to the event loop's thread."""

import asyncio
import gc
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from inferplane.background import Background


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads take turns as often as they can. No garbage is collected: Python drops an interrupt
    that comes while a callback of the collector runs, such as that of a test library."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    gc.disable()
    yield
    gc.enable()
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hurried")
def test_an_interrupt_cancels_work_also_while_it_is_handed_over() -> None:
    background = Background("test")
    for _ in range(200):
        ended = threading.Event()

        async def never(ended: threading.Event = ended) -> None:
            try:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                await asyncio.Event().wait()
            finally:
                ended.set()

        with pytest.raises(KeyboardInterrupt):
            background.run(never())
        assert ended.wait(30)
    background.close()
