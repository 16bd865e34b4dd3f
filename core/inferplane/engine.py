"""The loop body of an engine: messages in, at most one step, messages out.

Knows nothing about text, HTTP or processes; the clock is injected.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np

from inferplane.config import Config
from inferplane.errors import DeviceError, EngineDeadError, RequestError
from inferplane.grammar.running import Grammars, Move
from inferplane.grammar.vocabulary import vocabulary_of
from inferplane.hw.batch import StepPlan
from inferplane.messages import (
    GRAMMAR_ERROR,
    Abort,
    FlushCache,
    FromEngine,
    ModelInfo,
    Output,
    Ping,
    Pong,
    Refused,
    Stats,
    Submit,
    ToEngine,
)
from inferplane.plugins import Plugins
from inferplane.runner.load import Loaded, load
from inferplane.runner.prepare import Source
from inferplane.runner.runner import Pending
from inferplane.scheduling.scheduler import Scheduler
from inferplane.text.tokenizer import Tokenizer
from inferplane.weights import Progress

BUILDING_SECONDS = 0.002
"""how long a step without other work waits for a grammar"""

log = logging.getLogger(__name__)


class EngineCore:
    """One model, its scheduler, and the steps in flight."""

    def __init__(
        self,
        loaded: Loaded,
        clock: Callable[[], float] = time.monotonic,
        tokenizer: Callable[[], Tokenizer] | None = None,
    ) -> None:
        """`tokenizer` is called with the first grammar; without it they are refused."""
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
            compute_cpus=list(loaded.threads.cpus) if loaded.threads else [],
        )
        self._flights: deque[Pending] = deque()
        self._grammars: Grammars | None = None
        if tokenizer is not None:
            load, width = tokenizer, loaded.vocab_size
            self._grammars = Grammars(lambda: vocabulary_of(load(), width))
        self._unbuilt: dict[str, Submit] = {}  # whose grammars are not ready
        self._aborted = 0  # of these

    @property
    def has_work(self) -> bool:
        return bool(self._flights or self._unbuilt) or self.scheduler.has_work

    def handle(self, message: ToEngine) -> list[FromEngine]:
        """Take one message; never raises for bad requests."""
        match message:
            case Submit():
                return self._submit(message)
            case Abort():
                return self._abort(message.request_id)
            case Ping():
                return [Pong(message.nonce, self._stats())]
            case FlushCache():
                self.scheduler.flush_cache()
                return [Pong(message.nonce, self._stats())]

    def _stats(self) -> Stats:
        stats = self.scheduler.stats()
        stats.waiting += len(self._unbuilt)
        stats.aborted += self._aborted
        return stats

    def _abort(self, request_id: str) -> list[FromEngine]:
        if self._unbuilt.pop(request_id, None) is not None:
            self._aborted += 1
            return self._ended([Output(request_id=request_id, finish_reason="abort")])
        output = self.scheduler.abort(request_id)
        return self._ended([output]) if output else []

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
            if submit.params.constraint is None:
                self.scheduler.submit(submit)
            else:
                self._build(submit)
        except RequestError as error:
            return [_refused(submit, error)]
        return []

    def _build(self, submit: Submit) -> None:
        """Prepare a request's grammar; `step` then gives the request to the scheduler."""
        if self._grammars is None or submit.grammar is None:
            raise RequestError("the constraint has no grammar", code="unsupported_parameter")
        self.scheduler.verify(submit, waiting=len(self._unbuilt))
        if submit.request_id in self._unbuilt:
            raise RequestError(
                f"request_id {submit.request_id} is in use: choose another", param="request_id"
            )
        self._unbuilt[submit.request_id] = submit
        params = submit.params
        jump = not self.loaded.config.disable_jump_forward
        jump = jump and params.logprobs is None and params.prompt_logprobs is None
        self._grammars.build(submit.request_id, submit.grammar, jump=jump)

    def _admit(self) -> list[FromEngine]:
        """Give the scheduler the requests whose grammars have become ready."""
        assert self._grammars is not None
        idle = not self._flights and not self.scheduler.has_work
        outputs: list[FromEngine] = []
        for request_id, move in self._grammars.ready(BUILDING_SECONDS if idle else 0.0):
            submit = self._unbuilt.pop(request_id)
            try:
                self.scheduler.submit(submit)
            except RequestError as error:
                self._grammars.drop(request_id)
                outputs.append(_refused(submit, error))
            else:
                outputs += self._follow(request_id, move)
        return outputs

    def step(self) -> list[FromEngine]:
        """Launch the next step and take in the oldest one that must be finished.

        With depth 1 the host plans and launches step N + 1 while the device computes step N.
        Raises EngineDeadError if the device failed.
        """
        outputs = self._admit() if self._unbuilt else []
        plan = self.scheduler.schedule()
        if plan is not None:
            try:
                outputs += self._launch(plan)
            except DeviceError as error:
                raise EngineDeadError(str(error)) from error
            except Exception as error:
                return outputs + self._failed(plan, error)
        if self._flights and (plan is None or len(self._flights) > self.loaded.depth):
            outputs += self._take()
        return outputs

    def _launch(self, plan: StepPlan) -> list[FromEngine]:
        """Forward and sample. Masks need the tokens of the steps before and are made meanwhile."""
        runner, grammars = self.loaded.runner, self._grammars
        if grammars is None or not grammars.any(self.scheduler.sampling(plan)):
            self._flights.append(runner.launch(plan))
            return []
        forwarded = runner.forward(plan)
        outputs: list[FromEngine] = []
        while self._flights:
            outputs += self._take()
        mask = np.full((len(plan.sample), grammars.words), -1, np.int32)
        for request_id, error in grammars.fill(self.scheduler.sampling(plan), mask):
            outputs += self._follow(request_id, Move(error=error))
        self._flights.append(runner.sample(forwarded, mask))
        return outputs

    def _take(self) -> list[FromEngine]:
        """Wait for the oldest step and take in its tokens."""
        pending = self._flights.popleft()
        try:
            result = pending.wait()
        except DeviceError as error:
            raise EngineDeadError(str(error)) from error
        except Exception as error:
            return self._failed(pending.plan, error)
        outputs: list[FromEngine] = []
        for output in self.scheduler.finish(pending.plan, result):
            outputs += self._ended([output])
            if self._grammars is not None and output.request_id in self._grammars:
                move = self._grammars.accept(output.request_id, output.tokens[-1])
                outputs += self._follow(output.request_id, move)
        return outputs

    def _follow(self, request_id: str, move: Move) -> list[FromEngine]:
        """Do what a grammar demands."""
        output = None
        if move.forced:
            output = self.scheduler.extend(request_id, move.forced)
        if output is None and (move.done or move.error is not None):
            output = self.scheduler.end(request_id, move.error and GRAMMAR_ERROR + move.error)
        return self._ended([output]) if output else []

    def _ended(self, outputs: Iterable[Output]) -> list[FromEngine]:
        """The same outputs; grammars of requests that end with them are forgotten."""
        ended: list[FromEngine] = []
        for output in outputs:
            ended.append(output)
            if output.finish_reason is not None and self._grammars is not None:
                self._grammars.drop(output.request_id)
        return ended

    def _failed(self, plan: StepPlan, error: Exception) -> list[FromEngine]:
        """End what the step was computing; the engine lives on if the device does."""
        log.exception("step %d failed", plan.step, exc_info=error)
        try:
            self.loaded.device.synchronize()
        except DeviceError as dead:
            raise EngineDeadError(str(dead)) from dead
        self._flights.clear()
        return self._ended(self.scheduler.fail(plan, "the step that computed this request failed"))

    def close(self) -> None:
        """Drop the steps in flight."""
        self._flights.clear()
        if self._grammars is not None:
            self._grammars.close()


def _refused(submit: Submit, error: RequestError) -> Refused:
    return Refused(
        request_id=submit.request_id,
        message=error.message,
        status=error.status,
        param=error.param,
        code=error.code,
    )


def open_engine(
    config: Config,
    source: Source,
    plugins: Plugins | None = None,
    progress: Progress | None = None,
    report: Callable[[str], None] = log.info,
    tokenizer: Callable[[], Tokenizer] | None = None,
) -> EngineCore:
    """Load a model and make its engine. `progress` gets bytes of weights, `report` a line about
    whatever else takes long; `tokenizer` as for EngineCore."""
    loaded = load(config, source, plugins or Plugins(), progress, report=report)
    return EngineCore(loaded, tokenizer=tokenizer)
