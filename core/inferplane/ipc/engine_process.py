"""The engine process: `python -m inferplane.ipc.engine_process DIRECTORY`.

Takes its Config from the socket, builds the engine core, and then alternates between messages and
steps until it is told to stop or its parent is gone. Knows nothing of text or HTTP.
"""

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import zmq

from inferplane import env
from inferplane.checkpoint.source import open_model
from inferplane.config import Config
from inferplane.errors import EngineDeadError, InferplaneError, RequestError
from inferplane.hw.host import keep_off
from inferplane.ipc.channel import (
    EngineInbox,
    Outbox,
    Start,
    api_address,
    engine_address,
)
from inferplane.messages import (
    Fatal,
    FromEngine,
    ModelInfo,
    Progress,
    Ready,
    Refused,
    Submit,
    ToEngine,
)

FATAL_LINGER_MS = 2000

log = logging.getLogger(__name__)


class Core(Protocol):
    """What this process drives; inferplane.engine.EngineCore is one."""

    @property
    def info(self) -> ModelInfo: ...
    @property
    def has_work(self) -> bool: ...
    def handle(self, message: ToEngine) -> list[FromEngine]: ...
    def step(self) -> list[FromEngine]: ...
    def close(self) -> None: ...


Build = Callable[[Config, Callable[[str], None]], Core]
"""(config, report progress) -> a loaded engine core"""


class Receive(Protocol):
    def receive(self, block: bool) -> Sequence[Start | ToEngine]: ...


class Send(Protocol):
    def send(self, messages: Sequence[FromEngine]) -> None: ...


def run(inbox: Receive, outbox: Send, build: Build) -> None:
    """Build the core named by the first message and serve until an exception ends it."""
    config = _receive_config(inbox)
    logging.getLogger("inferplane").setLevel(config.log_level.upper())
    core = build(config, lambda text: outbox.send([Progress(text)]))
    try:
        _serve(core, inbox, outbox)
    except EngineDeadError:
        raise  # with the device went all that closing would give back
    except BaseException:
        core.close()
        raise


def _serve(core: Core, inbox: Receive, outbox: Send) -> None:
    gc.collect()
    gc.freeze()  # what start-up made lives as long as the process: never scan it again
    keep_off(core.info.compute_cpus[1:])
    outbox.send([Ready(core.info)])
    while True:
        replies: list[FromEngine] = []
        for message in inbox.receive(block=not core.has_work):
            if isinstance(message, Start):
                log.warning("ignored a second start message")
            else:
                replies += _handle(core, message)
        replies += core.step()
        if replies:
            outbox.send(replies)


def _handle(core: Core, message: ToEngine) -> list[FromEngine]:
    try:
        return core.handle(message)
    except RequestError as error:
        if not isinstance(message, Submit):
            raise
        return [
            Refused(
                request_id=message.request_id,
                message=error.message,
                status=error.status,
                param=error.param,
                code=error.code,
            )
        ]


def _receive_config(inbox: Receive) -> Config:
    while True:
        for message in inbox.receive(block=True):
            if isinstance(message, Start):
                return Config(**message.config)
            log.warning("ignored a message before the start message")


def _exit_with_parent() -> None:
    """Standard input is a pipe that the parent holds open: its end is the parent's end, also
    when the parent was killed and whatever the main thread is busy with."""
    while os.read(0, 1):
        pass
    os._exit(0)


def _stop(signum: int, frame: object) -> None:
    sys.exit(0)


def main(build: Build) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s engine %(levelname)s %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when this process ends
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_exit_with_parent, name="parent-watch", daemon=True).start()
    directory = Path(sys.argv[1])
    context = zmq.Context()
    outbox = Outbox(context, api_address(directory))
    inbox = EngineInbox(context, engine_address(directory))
    linger = 0
    try:
        run(inbox, outbox, build)
    except EngineDeadError as error:
        log.error("%s", error)
        outbox.send([Fatal(str(error))])
        inbox.close()
        outbox.close(FATAL_LINGER_MS)
        context.term()  # waits until it is sent
        os._exit(1)  # giving memory back to a failed device may abort the process, or never return
    except InferplaneError as error:
        log.error("%s", error)
        outbox.send([Fatal(str(error))])
        linger = FATAL_LINGER_MS
    except Exception as error:
        log.exception("the engine failed")
        outbox.send([Fatal(f"{type(error).__name__}: {error}")])
        linger = FATAL_LINGER_MS
    finally:
        inbox.close()
        outbox.close(linger)
        context.term()
    sys.exit(1)


def _build(config: Config, progress: Callable[[str], None]) -> Core:
    env.disable_device_autoload()
    from inferplane.engine import open_engine  # imports torch

    source = open_model(config.model, config.revision)
    return open_engine(
        config,
        source,
        progress=Percent(progress),
        report=progress,
        tokenizer=source.tokenizer,
    )


class Percent:
    """Reports the loading of weights in steps of ten percent."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._next = 0

    def __call__(self, done: int, total: int) -> None:
        percent = 100 * done // max(total, 1)
        if percent >= self._next:
            self._next = percent // 10 * 10 + 10
            self._report(f"loading weights: {percent} % of {total / 1e9:.2f} GB")


if __name__ == "__main__":
    main(_build)
