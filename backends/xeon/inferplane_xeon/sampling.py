"""Sampling on the C++ kernels: rows of float32 logits to tokens and logprobs.

Knows nothing of requests; every row is computed by itself, whatever the batch.
"""

from typing import TYPE_CHECKING

from inferplane.hw.op import Bound, BuildContext, Reject
from inferplane.hw.ops.sampling import SamplingSpec, rows_of
from inferplane_xeon import kernels

if TYPE_CHECKING:
    from torch import Tensor


def sampling_problem(spec: SamplingSpec) -> Reject | None:
    if spec.vocab >= 2**31:
        return Reject("shape", f"vocab {spec.vocab} does not fit 32 bits")
    return None


def sampling_filter(spec: SamplingSpec, ctx: BuildContext) -> Bound:
    def run(
        logits: "Tensor",
        *,
        rows: "Tensor | None" = None,
        counts: "Tensor | None" = None,
        in_prompt: "Tensor | None" = None,
        repetition: "Tensor | None" = None,
        frequency: "Tensor | None" = None,
        presence: "Tensor | None" = None,
        bias: "Tensor | None" = None,
        banned: "Tensor | None" = None,
        bitmask: "Tensor | None" = None,
    ) -> "Tensor":
        own = [None if x is None else rows_of(x, rows) for x in (counts, in_prompt, bias)]
        given = (*own[:2], repetition, frequency, presence, own[2], banned, bitmask)
        inputs = tuple(None if x is None else x.contiguous() for x in given)
        logits = logits.contiguous()
        return kernels.restrict(logits, inputs, logits)  # in place: a copy costs most of the time

    return Bound(run=run)


def sampling_draw(spec: SamplingSpec, ctx: BuildContext) -> Bound:
    def run(
        logits: "Tensor",
        temperature: "Tensor",
        top_k: "Tensor",
        top_p: "Tensor",
        min_p: "Tensor",
        seed: "Tensor",
        sample_index: "Tensor",
        position: "Tensor",
        *,
        bitmask: "Tensor | None" = None,
        greedy: bool = False,
        unfiltered: bool = False,
    ) -> "Tensor":
        tokens = ctx.empty((logits.shape[0],), "int32")
        rows = (temperature, top_k, top_p, min_p, seed, sample_index, position)
        inputs = tuple(x.contiguous() for x in rows)
        return kernels.draw(
            logits.contiguous(),
            inputs,
            tokens,
            bitmask=None if bitmask is None else bitmask.contiguous(),
            greedy=greedy,
            unfiltered=unfiltered,
        )

    return Bound(run=run)


def sampling_logprobs(spec: SamplingSpec, ctx: BuildContext) -> Bound:
    def run(logits: "Tensor", ids: "Tensor", top: int) -> "tuple[Tensor, ...]":
        count = logits.shape[0]
        made = (
            ctx.empty((count,), "float32"),
            ctx.empty((count,), "int32"),
            ctx.empty((count, top), "int32"),
            ctx.empty((count, top), "float32"),
        )
        kernels.logprobs(logits.contiguous(), ids.contiguous(), made)
        return made

    return Bound(run=run)
