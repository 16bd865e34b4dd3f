"""Runs StepPlans on one device: forward, sample, and the copy of the results to the host.

Everything is launched in order and nothing here waits for the device except `Pending.wait`.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inferplane.hw.batch import ForwardBatch, PromptLogprobs, StepPlan, StepResult
from inferplane.hw.device import Device, Event
from inferplane.hw.graphs import Compiler, GraphBackend
from inferplane.layers import Model
from inferplane.runner.build import Build
from inferplane.runner.inputs import Bucket, Inputs, Step
from inferplane.runner.recorded import Recordings
from inferplane.runner.sampler import Sampler, Scores
from inferplane.runner.tables import Tables
from inferplane.runner.wanted import wanted_logprobs

if TYPE_CHECKING:
    from numpy import int32
    from numpy.typing import NDArray
    from torch import Tensor

LOGITS_BYTES = 64 * 2**20
"""Prompt logprobs are scored in chunks of rows whose float32 logits take at most this much."""


@dataclass(slots=True)
class Forwarded:
    """A step whose forward pass is launched and whose tokens are not yet drawn."""

    step: Step
    batch: ForwardBatch
    hidden: "Tensor"  # [T, d]
    logits: "Tensor"  # f32[N, V]
    recorded: bool
    """hidden states and logits are overwritten by the next step of the bucket"""


@dataclass(slots=True)
class Pending:
    """A launched step. `wait` returns its result; the tensors are host copies under way."""

    plan: StepPlan
    done: Event | None
    tokens: "Tensor"
    scores: Scores | None
    wanted: "list[Tensor]" = field(default_factory=list)  # f32[1, ids], as in plan.logprob_ids
    prompt_scores: "list[list[tuple[Scores, Tensor]]]" = field(default_factory=list)

    def wait(self) -> StepResult:
        if self.done is not None:
            self.done.synchronize()
        plan, count = self.plan, len(self.plan.sample)
        logprobs: list[Any] = []
        if self.scores is not None:
            rows = _rows(self.scores)
            pairs = zip(plan.logprob_ids, self.wanted, strict=True)
            named = {index: values[0].tolist() for index, values in pairs}
            logprobs = [
                None if want < 0 else (row[0], row[1], row[2][:want], named.get(index, []))
                for index, (want, row) in enumerate(zip(plan.logprobs, rows, strict=False))
            ]
        prompt = [
            [
                (p, r, t[: want.top], values)
                for scores, wanted in parts
                for (p, r, t), values in zip(_rows(scores), wanted.tolist(), strict=True)
            ]
            for want, parts in zip(plan.prompt_logprobs, self.prompt_scores, strict=True)
        ]
        return StepResult(
            tokens=self.tokens.tolist()[:count], logprobs=logprobs, prompt_logprobs=prompt
        )


def _rows(scores: Scores) -> list[tuple[float, int, list[tuple[int, float]]]]:
    logprob, rank, ids, values = (part.tolist() for part in scores)
    tops = [list(zip(i, v, strict=True)) for i, v in zip(ids, values, strict=True)]
    return list(zip(logprob, rank, tops, strict=True))


@contextmanager
def paused_collection() -> Iterator[None]:
    """No garbage collection meanwhile: it costs time, and may free device memory in a recording."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class Paced:
    """Passes on at most a line a second, and none in the first."""

    def __init__(self, report: Callable[[str], None], clock: Callable[[], float]) -> None:
        self.now = report
        self._clock = clock
        self._last = clock()

    def __call__(self, text: str) -> None:
        now = self._clock()
        if now - self._last >= 1.0:
            self._last = now
            self.now(text)


class Runner:
    """One model on one device with its tables."""

    def __init__(
        self,
        device: Device,
        model: Model,
        build: Build,
        tables: Tables,
        inputs: Inputs,
        sampler: Sampler,
        graphs: GraphBackend | None,
        max_programs: int | None = None,
    ) -> None:
        self.device = device
        self.graphs = graphs
        self._model = model
        self._tables = tables
        self._inputs = inputs
        self._sampler = sampler
        self._determinism = build.determinism
        self._plans = [bound for bound in build.bound if bound.plan is not None]
        self._synchronous = device.record() is None
        self._recordings = None
        if graphs is not None:
            handles = build.handles.values()
            self._recordings = Recordings(
                graphs, inputs, tables, handles, max_programs, build.breaks
            )
            if max_programs is None:
                sampler.graphs = graphs

    def record(
        self,
        max_seqs: int,
        report: Callable[[str], None],
        compilers: Sequence[Compiler] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Record the steps that are known in advance, so that no request waits for it later, and
        before that compile what they need, all at a time. `report` gets a line a second."""
        import torch

        if self._recordings is None:
            return
        buckets = self._inputs.known_buckets(max_seqs)
        begin = clock()
        report = Paced(report, clock)
        with torch.inference_mode(), paused_collection():
            if compilers and buckets:
                self._compile(self._recordings, buckets, compilers, report)
            for index, bucket in enumerate(buckets):
                if self._recordings.covers(bucket):
                    self._record(self._recordings, self._inputs.blank(bucket))
                report(f"recording steps: {index + 1} of {len(buckets)}")
        self.device.synchronize()
        if buckets:
            report.now(f"recorded {len(buckets)} steps in {clock() - begin:.1f} s")

    def _compile(
        self,
        recordings: Recordings,
        buckets: list[Bucket],
        compilers: Sequence[Compiler],
        report: "Paced",
    ) -> None:
        """A rehearsal of all recordings, which shows what they need compiled."""
        assert self.graphs is not None
        with ExitStack() as collecting:
            for compiler in compilers:
                collecting.enter_context(compiler.collect())
            for bucket in buckets:  # drawing first: its largest kernel takes longest to compile
                step = self._inputs.blank(bucket)
                self._sampler.rehearse(step, self.graphs)
                recordings.rehearse(step, self._plan_ops, self._compute)
        for compiler in compilers:
            compiler.finish(lambda done, of: report(f"compiling kernels: {done} of {of}"))

    def _record(self, recordings: Recordings, step: Step) -> None:
        """Devices that work asynchronously also replay it: the first time takes longer there."""
        logits = recordings.record(step, self._plan_ops, self._compute)
        if logits is None or not self._synchronous:
            _, _, logits = recordings.run(step, self._plan_ops, self._compute)
        self._sampler.record(step, logits)

    def launch(self, plan: StepPlan) -> Pending:
        """Forward and sample; returns at once on devices that work asynchronously."""
        return self.sample(self.forward(plan))

    def forward(self, plan: StepPlan) -> Forwarded:
        """Launch the model on a plan."""
        import torch

        with torch.inference_mode():
            return self._forward(plan)

    def _forward(self, plan: StepPlan) -> Forwarded:
        step = self._inputs.send(plan)
        self._sampler.start(plan.init)
        if self._recordings is not None and self._recordings.covers(step.bucket):
            done = self._recordings.run(step, self._plan_ops, self._compute)
            return Forwarded(step, *done, recorded=True)
        batch = self._inputs.derive(step)
        self._plan_ops(batch)
        hidden, logits = self._compute(batch)
        return Forwarded(step, batch, hidden, logits, recorded=False)

    def _compute(self, batch: ForwardBatch, out: "Tensor | None" = None) -> "tuple[Tensor, Tensor]":
        hidden = last = self._model.forward(batch)
        decodes = batch.max_q == 1 and (batch.padded or batch.num_decode == batch.num_seqs)
        if not decodes:  # else every token is sampled, and padding is nobody's
            last = hidden.index_select(0, batch.logit_index)
        return hidden, self._model.logits(last, out)

    def _plan_ops(self, batch: ForwardBatch) -> None:
        for bound in self._plans:
            assert bound.plan is not None
            bound.plan(batch)

    def sample(self, forwarded: Forwarded, mask: "NDArray[int32] | None" = None) -> Pending:
        """Launch the draw and the copy of its results to the host. `mask` i32[N, ceil(V / 32)]
        has a bit for each token that a sampled sequence may get."""
        import torch

        with torch.inference_mode():
            return self._sample(forwarded, None if mask is None else self._send(forwarded, mask))

    def _send(self, forwarded: Forwarded, mask: "NDArray[int32]") -> "Tensor":
        """The mask on the device, padded to the rows of the logits."""
        import torch

        rows, (count, words) = forwarded.logits.shape[0], mask.shape
        if rows == count and forwarded.logits.device.type == "cpu":
            return torch.from_numpy(mask)
        staged = self.device.host_buffer(rows * words, "int32").view(rows, words)
        staged[:count].numpy()[:] = mask
        staged[count:] = -1
        return staged.to(forwarded.logits.device, non_blocking=True)

    def _sample(self, forwarded: Forwarded, bitmask: "Tensor | None") -> Pending:
        step, plan = forwarded.step, forwarded.step.plan
        count = len(plan.sample)
        scores: Scores | None = None
        if count:
            fixed = forwarded.batch if forwarded.recorded else None
            drawn = self._sampler.sample(step, forwarded.logits, bitmask, fixed)
            tokens, scores = drawn.tokens, drawn.scores
        else:
            tokens = forwarded.logits.new_zeros(0)
        named = [
            self._wanted(forwarded.logits[index : index + 1], ids)  # which scores keep as they are
            for index, ids in plan.logprob_ids.items()
        ]
        prompt = [self._score_prompt(forwarded, wanted) for wanted in plan.prompt_logprobs]
        host = self._to_host
        return Pending(
            plan=plan,
            tokens=host(tokens),
            scores=host_scores(host, scores) if scores else None,
            wanted=[host(values) for values in named],
            prompt_scores=[
                [(host_scores(host, scores), host(wanted)) for scores, wanted in parts]
                for parts in prompt
            ],
            done=self.device.record(),
        )

    def _score_prompt(
        self, forwarded: Forwarded, wanted: PromptLogprobs
    ) -> "list[tuple[Scores, Tensor]]":
        import torch

        first = sum(forwarded.step.plan.q_lens[: wanted.index]) + wanted.first
        vocab = forwarded.logits.shape[-1]
        rows = max(1, LOGITS_BYTES // (4 * vocab))
        targets = torch.tensor(wanted.targets, dtype=torch.int32, device=forwarded.hidden.device)
        hidden = forwarded.hidden[first : first + len(wanted.targets)]
        scored: list[tuple[Scores, Tensor]] = []
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = self._model.logits(h)
            named = self._wanted(logits, wanted.ids)
            scored.append((self._sampler.score(logits, t, wanted.top), named))
        return scored

    def _wanted(self, logits: "Tensor", ids: list[int]) -> "Tensor":
        return wanted_logprobs(self.device, logits, ids, self._determinism)

    def _to_host(self, tensor: "Tensor") -> "Tensor":
        """On the host, complete once `done` is. What a recording gave is copied: the next step
        overwrites it."""
        import torch

        if self._synchronous and tensor.device.type == "cpu":
            return tensor if self.graphs is None else tensor.clone()
        target = self.device.host_buffer(tensor.numel(), str(tensor.dtype).removeprefix("torch."))
        with torch.no_grad():
            return target.view(tensor.shape).copy_(tensor, non_blocking=True)


def host_scores(host: Any, scores: Scores) -> Scores:
    one, two, three, four = scores
    return host(one), host(two), host(three), host(four)
