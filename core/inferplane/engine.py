"""The loop body of an engine: messages in, at most one step, messages out.

Knows nothing about text, HTTP or processes; the clock is injected.
"""

import logging
import time
from collections import deque
from collections.abc import Callable

from inferplane.config import Config
from inferplane.errors import DeviceError, EngineDeadError, RequestError
from inferplane.hw.batch import StepPlan
from inferplane.messages import (
    Abort,
    FlushCache,
    FromEngine,
    ModelInfo,
    Ping,
    Pong,
    Refused,
    Submit,
    ToEngine,
)
from inferplane.plugins import Plugins
from inferplane.runner.load import Loaded, Source, load
from inferplane.runner.runner import Pending
from inferplane.scheduling.scheduler import Scheduler
from inferplane.weights import Progress

log = logging.getLogger(__name__)


class EngineCore:
    """One model, its scheduler, and the steps in flight."""

    def __init__(self, loaded: Loaded, clock: Callable[[], float] = time.monotonic) -> None:
        config = loaded.config
        assert config.max_model_len is not None and config.page_size is not None
        self.loaded = loaded
        self.scheduler = Scheduler(
            page_size=config.page_size,
            groups=loaded.pages,
            max_running=config.max_running,
            max_queue=config.max_queue,
            max_batch_tokens=config.max_batch_tokens,
            max_model_len=config.max_model_len,
            prefix_cache=not config.disable_prefix_cache,
            clock=clock,
        )
        self.info = ModelInfo(
            model=config.served_model_name or config.model,
            architecture=loaded.architecture,
            vocab_size=loaded.vocab_size,
            max_model_len=config.max_model_len,
            dtype=config.dtype,
            device=loaded.device.info.name,
            kv_tokens=loaded.budget.tokens,
            max_running=config.max_running,
        )
        self._flights: deque[Pending] = deque()

    @property
    def has_work(self) -> bool:
        return bool(self._flights) or self.scheduler.has_work

    def handle(self, message: ToEngine) -> list[FromEngine]:
        """Take one message; never raises for bad requests."""
        match message:
            case Submit():
                return self._submit(message)
            case Abort():
                output = self.scheduler.abort(message.request_id)
                return [output] if output else []
            case Ping():
                return [Pong(message.nonce, self.scheduler.stats())]
            case FlushCache():
                self.scheduler.flush_cache()
                return [Pong(message.nonce, self.scheduler.stats())]

    def _submit(self, submit: Submit) -> list[FromEngine]:
        try:
            submit.params.verify(self.info.vocab_size)
            for token in submit.prompt:
                if not 0 <= token < self.info.vocab_size:
                    raise RequestError(
                        f"prompt has token id {token}, outside the vocabulary of "
                        f"{self.info.vocab_size}",
                        param="prompt",
                    )
            self.scheduler.submit(submit)
        except RequestError as error:
            return [
                Refused(
                    request_id=submit.request_id,
                    message=error.message,
                    status=error.status,
                    param=error.param,
                    code=error.code,
                )
            ]
        return []

    def step(self) -> list[FromEngine]:
        """Launch the next step and take in the oldest one that must be finished.

        With depth 1 the host plans and launches step N + 1 while the device computes step N.
        Raises EngineDeadError if the device failed.
        """
        plan = self.scheduler.schedule()
        if plan is not None:
            try:
                self._flights.append(self.loaded.runner.launch(plan))
            except DeviceError as error:
                raise EngineDeadError(str(error)) from error
            except Exception as error:
                return self._failed(plan, error)
        if not self._flights or (plan is not None and len(self._flights) <= self.loaded.depth):
            return []
        pending = self._flights.popleft()
        try:
            result = pending.wait()
        except DeviceError as error:
            raise EngineDeadError(str(error)) from error
        except Exception as error:
            return self._failed(pending.plan, error)
        return list(self.scheduler.finish(pending.plan, result))

    def _failed(self, plan: StepPlan, error: Exception) -> list[FromEngine]:
        """End what the step was computing; the engine lives on if the device does."""
        log.exception("step %d failed", plan.step, exc_info=error)
        self._flights.clear()
        try:
            self.loaded.device.synchronize()
        except DeviceError as dead:
            raise EngineDeadError(str(dead)) from dead
        return list(self.scheduler.fail(plan, "the step that computed this request failed"))

    def close(self) -> None:
        """Drop the steps in flight."""
        self._flights.clear()


def open_engine(
    config: Config,
    source: Source,
    plugins: Plugins | None = None,
    progress: Progress | None = None,
    report: Callable[[str], None] = log.info,
) -> EngineCore:
    """Load a model and make its engine. `progress` gets bytes of weights, `report` a line about
    whatever else takes long."""
    loaded = load(config, source, plugins or Plugins(), progress, report=report)
    return EngineCore(loaded)
