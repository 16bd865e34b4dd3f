"""From the hidden states of a step to tokens and logprobs, on the device.

The host's knowledge of the requests only decides which work can be left out.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferplane.hw.batch import RowInit
from inferplane.hw.ops.sampling import SamplingSpec
from inferplane.runner.build import Build
from inferplane.runner.inputs import Step
from inferplane.runner.tables import Tables, start_bias, start_penalties

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Wants:
    """What the host knows of a row's request."""

    greedy: bool
    unfiltered: bool
    penalties: bool
    bias: bool
    min_len: int


class Sampler:
    """Holds the bound sampling ops and, per row, which of them it needs."""

    def __init__(self, build: Build, tables: Tables, vocab: int) -> None:
        spec = SamplingSpec(vocab=vocab, determinism=build.determinism)
        self._filter = build.bind("sampling.filter", spec).run
        self._draw = build.bind("sampling.draw", spec).run
        self.score = build.bind("sampling.logprobs", spec).run
        self._tables = tables
        self._wants: dict[int, Wants] = {}

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

    def sample(self, step: Step, logits: "Tensor", bitmask: "Tensor | None" = None) -> "Tensor":
        """Draw one token per sampled sequence from f32[N, V] and remember it in the tables.

        `bitmask` i32[N, ceil(V / 32)] restricts the tokens (grammars). Returns i32[N].
        """
        plan, tables = step.plan, self._tables
        row = step.words[-step.bucket.samples :]
        position = tables.num_computed.index_select(0, row)  # of the token that is drawn
        rows = [plan.rows[i] for i in plan.sample]
        wants = [self._wants[r] for r in rows]
        chosen: dict[str, Any] = {}
        penalties = any(w.penalties for w in wants)
        if penalties:
            assert tables.counts is not None and tables.in_prompt is not None
            for name in ("counts", "in_prompt", "repetition", "frequency", "presence"):
                chosen[name] = getattr(tables, name).index_select(0, row)
        if any(w.bias for w in wants):
            assert tables.bias is not None
            chosen["bias"] = tables.bias.index_select(0, row)
        ends = [plan.starts[i] + plan.q_lens[i] for i in plan.sample]
        if any(w.min_len > end for w, end in zip(wants, ends, strict=True)):
            early = position < tables.min_len.index_select(0, row)
            banned = tables.stop_ids.index_select(0, row)
            chosen["banned"] = banned.where(early.unsqueeze(1), tables.vocab)
        if chosen or bitmask is not None:
            logits = self._filter(logits, bitmask=bitmask, **chosen)
        names = ("temperature", "top_k", "top_p", "min_p", "seed", "sample_index")
        arguments = [getattr(tables, name).index_select(0, row) for name in names]
        tokens: Tensor = self._draw(
            logits,
            *arguments,
            position,
            greedy=all(w.greedy for w in wants),
            unfiltered=all(w.unfiltered or w.greedy for w in wants),
        )
        tables.put("last_token", (row,), tokens)
        if penalties:
            self._count(row, tokens)
        return tokens

    def _count(self, row: "Tensor", tokens: "Tensor") -> None:
        assert self._tables.counts is not None
        index = (row.long(), tokens.long())
        self._tables.put("counts", index, self._tables.counts[index] + 1)
