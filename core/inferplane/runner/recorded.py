"""Steps of equal shape recorded once and replayed.

A step is two recordings with the planning of ops between them: the batch from the tables, and the
forward pass on that batch. Plans read this step's host fields and write to buffers that the
recording reads, so they must run before every replay.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferplane.hw.batch import ForwardBatch
from inferplane.hw.graphs import Graph, GraphBackend
from inferplane.hw.kv import LayerKV
from inferplane.runner.breaks import Breaks
from inferplane.runner.inputs import Bucket, Inputs, Step
from inferplane.runner.tables import Tables

if TYPE_CHECKING:
    from torch import Tensor

Compute = Callable[[ForwardBatch, "Tensor | None"], "tuple[Tensor, Tensor]"]
"""(batch, where the logits go if that matters) -> (hidden states, logits)"""
Planning = Callable[[ForwardBatch], None]


@dataclass(slots=True)
class Persistent:
    """Implements hw.graphs.State: what a forward pass replaces on functional devices."""

    tables: Tables
    handles: list[LayerKV]

    def read(self) -> list[Any]:
        tables = self.tables
        kept: list[Any] = [tables.num_computed, tables.last_token, *tables.pages]
        return kept + [handle.data for handle in self.handles]

    def write(self, data: list[Any]) -> None:
        tables, groups = self.tables, len(self.tables.pages)
        tables.num_computed, tables.last_token = data[:2]
        tables.pages[:] = data[2 : 2 + groups]
        for handle, new in zip(self.handles, data[2 + groups :], strict=True):
            handle.data = new


@dataclass(slots=True)
class Recorded:
    """One bucket. `batch` holds the tensors that `derive` writes and `forward` reads."""

    batch: ForwardBatch
    derive: Graph
    forward: Graph
    logits: "Tensor | None"
    """where replays leave them; on functional devices each replay returns new ones"""


class Recordings:
    """The recorded buckets of one runner. `limit`: how many programs the backend wants to hold;
    steps of further buckets run eagerly."""

    def __init__(
        self,
        graphs: GraphBackend,
        inputs: Inputs,
        tables: Tables,
        handles: Iterable[LayerKV],
        limit: int | None,
        breaks: Breaks | None = None,
    ) -> None:
        self._graphs = graphs
        self._inputs = inputs
        self._state = None if tables.inplace else Persistent(tables, list(handles))
        self._limit = limit
        self._breaks = breaks
        self._recorded: dict[Bucket, Recorded] = {}
        self._logits: Tensor | None = None  # of whichever step was replayed last

    def covers(self, bucket: Bucket) -> bool:
        full = self._limit is not None and 2 * len(self._recorded) >= self._limit
        return bucket.padded and (bucket in self._recorded or not full)

    def record(self, step: Step, plan_ops: Planning, compute: Compute) -> "Tensor | None":
        """Record a bucket before its first step. Returns its logits' place if it is known."""
        known = self._recorded.get(step.bucket) or self._record(step, plan_ops, compute)
        return known.logits

    def rehearse(self, step: Step, plan_ops: Planning, compute: Compute) -> None:
        """Record the step and throw the recordings away."""
        made: list[ForwardBatch] = []
        self._graphs.capture(lambda: made.append(self._inputs.derive(step)), self._state)
        plan_ops(made[0])
        _, run = self._shared(made[0], compute)
        self._capture(run)

    def run(
        self, step: Step, plan_ops: Planning, compute: Compute
    ) -> "tuple[ForwardBatch, Tensor, Tensor]":
        """The step's batch, hidden states and logits, recorded if the bucket is new."""
        known = self._recorded.get(step.bucket)
        if known is None:
            known = self._record(step, plan_ops, compute)
        else:
            self._inputs.refresh(known.batch, step)
            known.derive.replay(known.batch)
            plan_ops(known.batch)
        hidden, logits = known.forward.replay(known.batch)
        return known.batch, hidden, logits

    def _record(self, step: Step, plan_ops: Planning, compute: Compute) -> Recorded:
        """The batch is derived, the forward pass is not computed yet."""
        made: list[ForwardBatch] = []

        def derive() -> "list[Tensor]":
            made.append(self._inputs.derive(step))
            batch = made[-1]
            return [batch.token_ids, batch.position, batch.seq_len]

        prepared = self._graphs.capture(derive, self._state)
        batch = made[-1]
        prepared.replay(batch)
        plan_ops(batch)
        logits, run = self._shared(batch, compute)
        forward = self._capture(run)
        self._recorded[step.bucket] = Recorded(batch, prepared, forward, logits)
        return self._recorded[step.bucket]

    def _capture(self, compute: Callable[[], Any]) -> Graph:
        """Of a forward pass, the only place of what has to be left out."""
        with self._breaks.open() if self._breaks else nullcontext():
            return self._graphs.capture(compute, self._state)

    def _shared(
        self, batch: ForwardBatch, compute: Compute
    ) -> "tuple[Tensor | None, Callable[[], tuple[Tensor, Tensor]]]":
        """(place, `compute` with its logits there): memory that all buckets share, for logits are
        read before the next step is replayed, and together would take gigabytes."""
        import torch

        tables = self._inputs.tables
        if not tables.inplace:
            return None, lambda: compute(batch, None)
        rows, device = batch.logit_index.shape[0], batch.logit_index.device
        if self._logits is None or len(self._logits) < rows:
            self._logits = torch.empty(rows, tables.vocab, dtype=torch.float32, device=device)
        shared = self._logits[:rows]
        return shared, lambda: compute(batch, shared)
