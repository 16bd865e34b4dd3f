"""From the logits of a step to tokens and logprobs, on the device.

The host's knowledge of the requests only decides which work can be left out (`Choice`). All else is
a function of device memory, so that it can be recorded for each bucket and choice.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from inferplane.hw.batch import ForwardBatch, RowInit, StepPlan
from inferplane.hw.graphs import Graph, GraphBackend
from inferplane.hw.ops.sampling import SamplingSpec
from inferplane.runner.build import Build
from inferplane.runner.inputs import Bucket, Step
from inferplane.runner.tables import Tables, start_bias, start_penalties

if TYPE_CHECKING:
    from torch import Tensor

Scores = tuple["Tensor", "Tensor", "Tensor", "Tensor"]
"""logprob f32[n], rank i32[n], top ids i32[n, k], top logprobs f32[n, k]"""


@dataclass(slots=True)
class Wants:
    """What the host knows of a row's request."""

    greedy: bool
    unfiltered: bool
    penalties: bool
    bias: bool
    min_len: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The work that a step's sampling needs. `top`: most likely tokens to score, -1: no scores."""

    greedy: bool
    unfiltered: bool
    penalties: bool = False
    bias: bool = False
    banned: bool = False
    masked: bool = False
    top: int = -1

    @property
    def common(self) -> bool:
        """Worth a recording: all but a request's first steps, in which it may not end."""
        return not self.banned


COMMON = (
    Choice(greedy=True, unfiltered=True),
    Choice(greedy=False, unfiltered=True),
    Choice(greedy=False, unfiltered=False),
)


class Drawn(NamedTuple):
    """One token per sampled sequence, on the device. What a recording gave is overwritten when the
    next step of its bucket is sampled."""

    tokens: "Tensor"  # i32[N]
    scores: Scores | None


@dataclass(slots=True)
class SamplingState:
    """Implements hw.graphs.State: the tables that a choice of sampling reads and replaces."""

    tables: Tables
    names: list[str]

    @classmethod
    def of(cls, tables: Tables, choice: Choice) -> "SamplingState":
        names = ["num_computed", "parameters", "last_token"]
        names += ["counts", "in_prompt"] * choice.penalties + ["bias"] * choice.bias
        return cls(tables, names)

    def read(self) -> list[Any]:
        return [getattr(self.tables, name) for name in self.names]

    def write(self, data: list[Any]) -> None:
        for name, value in zip(self.names, data, strict=True):
            setattr(self.tables, name, value)


@dataclass(slots=True)
class Recorded:
    """Sampling from logits that lie in one place."""

    logits: "Tensor"
    graph: Graph


class Sampler:
    """Holds the bound sampling ops and, per row, which of them it needs."""

    def __init__(self, build: Build, tables: Tables, vocab: int) -> None:
        spec = SamplingSpec(vocab=vocab, determinism=build.determinism)
        self._filter = build.bind("sampling.filter", spec).run
        self._draw = build.bind("sampling.draw", spec).run
        self.score = build.bind("sampling.logprobs", spec).run
        self._tables = tables
        self._wants: dict[int, Wants] = {}
        self.graphs: GraphBackend | None = None
        """set by the runner of a device that holds any number of recordings"""
        self._recorded: dict[tuple[Bucket, Choice], Recorded] = {}
        self._masks: dict[Bucket, Tensor] = {}

    def start(self, inits: list[RowInit]) -> None:
        """Rows that begin a request in this step."""
        penalties: list[RowInit] = []
        biased: list[RowInit] = []
        for init in inits:
            wants = Wants(
                greedy=init.temperature == 0.0,
                unfiltered=init.top_k <= 0 and init.top_p >= 1.0 and init.min_p <= 0.0,
                penalties=init.repetition_penalty != 1.0
                or init.frequency_penalty != 0.0
                or init.presence_penalty != 0.0,
                bias=bool(init.logit_bias),
                min_len=init.min_len,
            )
            before = self._wants.get(init.row)
            if wants.penalties:
                penalties.append(init)
            if wants.bias or (before is not None and before.bias):
                biased.append(init)
            self._wants[init.row] = wants
        if penalties:
            start_penalties(self._tables, penalties)
        if biased:
            start_bias(self._tables, biased)

    def sample(
        self,
        step: Step,
        logits: "Tensor",
        bitmask: "Tensor | None" = None,
        recorded: ForwardBatch | None = None,
    ) -> Drawn:
        """Draw one token per sampled sequence from f32[N, V] and remember it in the tables.

        `bitmask` i32[N, ceil(V / 32)] restricts the tokens (grammars). `recorded`: the step's
        batch, if the logits are the result of a recording.
        """
        choice = self._choose(step.plan, bitmask is not None)
        if recorded is not None and choice.common and (bitmask is None or self._tables.inplace):
            known = self._record(step, choice, logits)
            if known is not None and bitmask is not None:
                self._masks[step.bucket].copy_(bitmask)
            if known is not None and known.logits is logits:
                drawn: Drawn = known.graph.replay(recorded)
                return drawn
        return self._compute(choice, _rows_of(step), logits, bitmask)

    def record(self, step: Step, logits: "Tensor") -> None:
        """Record the common choices for the step's bucket, whose recorded logits these are."""
        for choice in COMMON:
            self._record(step, choice, logits)

    def rehearse(self, step: Step, graphs: GraphBackend) -> None:
        """Record the common choices and throw the recording away."""
        import torch

        row, shape = _rows_of(step), (step.bucket.samples, self._tables.vocab)

        def draw() -> None:
            logits = torch.empty(shape, dtype=torch.float32, device=row.device)
            for choice in COMMON:
                self._compute(choice, row, logits, None)

        graphs.capture(
            draw, None if self._tables.inplace else SamplingState.of(self._tables, COMMON[0])
        )

    def _record(self, step: Step, choice: Choice, logits: "Tensor") -> Recorded | None:
        key = (step.bucket, choice)
        if self.graphs is not None and key not in self._recorded:
            row, mask = _rows_of(step), self._mask(step.bucket, logits) if choice.masked else None
            state = None if self._tables.inplace else SamplingState.of(self._tables, choice)
            graph = self.graphs.capture(lambda: self._compute(choice, row, logits, mask), state)
            self._recorded[key] = Recorded(logits, graph)
        return self._recorded.get(key)

    def _mask(self, bucket: Bucket, logits: "Tensor") -> "Tensor":
        """Where the recordings of a bucket read their grammars' masks."""
        import torch

        if bucket not in self._masks:
            rows, vocab = logits.shape
            shape = (rows, -(-vocab // 32))
            self._masks[bucket] = torch.empty(shape, dtype=torch.int32, device=logits.device)
        return self._masks[bucket]

    def _choose(self, plan: StepPlan, masked: bool) -> Choice:
        wants = [self._wants[plan.rows[i]] for i in plan.sample]
        ends = [plan.starts[i] + plan.q_lens[i] for i in plan.sample]
        greedy = all(w.greedy for w in wants)
        return Choice(
            greedy=greedy,
            unfiltered=greedy or all(w.unfiltered or w.greedy for w in wants),
            penalties=any(w.penalties for w in wants),
            bias=any(w.bias for w in wants),
            banned=any(w.min_len > end for w, end in zip(wants, ends, strict=True)),
            masked=masked,
            top=max(plan.logprobs, default=-1),
        )

    def _compute(
        self, choice: Choice, row: "Tensor", raw: "Tensor", bitmask: "Tensor | None"
    ) -> Drawn:
        """The device's part; `row` i32[N] are the sampled rows of the tables."""
        tables = self._tables
        position = tables.num_computed.index_select(0, row)  # of the token that is drawn
        parameters = tables.parameters_of(row)
        chosen: dict[str, Any] = {}
        if choice.penalties:
            assert tables.counts is not None and tables.in_prompt is not None
            chosen["counts"], chosen["in_prompt"] = tables.counts, tables.in_prompt
            for name in ("repetition", "frequency", "presence"):
                chosen[name] = parameters.real(name)
        if choice.bias:
            assert tables.bias is not None
            chosen["bias"] = tables.bias
        if choice.banned:
            early = position < parameters.integer("min_len")
            chosen["banned"] = parameters.stop_ids.where(early.unsqueeze(1), tables.vocab)
        logits = raw
        if chosen:
            kept = raw.clone() if choice.top >= 0 else raw  # scores are those before the filter
            logits = self._filter(kept, rows=row, bitmask=bitmask, **chosen)
            bitmask = None
        tokens: Tensor = self._draw(
            logits,
            parameters.real("temperature"),
            parameters.integer("top_k"),
            parameters.real("top_p"),
            parameters.real("min_p"),
            parameters.seed,
            parameters.integer("sample_index"),
            position,
            bitmask=bitmask,
            greedy=choice.greedy,
            unfiltered=choice.unfiltered,
        )
        tables.put("last_token", (row,), tokens)
        if choice.penalties:
            self._count(row, tokens)
        return Drawn(tokens, self.score(raw, tokens, choice.top) if choice.top >= 0 else None)

    def _count(self, row: "Tensor", tokens: "Tensor") -> None:
        assert self._tables.counts is not None
        index = (row.long(), tokens.long())
        self._tables.put("counts", index, self._tables.counts[index] + 1)


def _rows_of(step: Step) -> "Tensor":
    return step.words[-step.bucket.samples :]
