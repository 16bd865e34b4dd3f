"""From raw logits to tokens: penalties and masks, the draw, and logprobs.

All three take one row per sampled sequence. In batch mode rows are computed one by one, because
reductions over a matrix may be split by its number of rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferplane.hw.noise import gumbel
from inferplane.hw.op import Bound, BuildContext, Determinism, Op, Reference, Tolerance
from inferplane.hw.ops.rowwise import rowwise

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSpec:
    vocab: int
    determinism: Determinism = "run"


def sampling_filter(spec: SamplingSpec, ctx: BuildContext) -> Bound:
    """run(logits f32[N, V], *, rows, counts, in_prompt, repetition, frequency, presence, bias,
    banned, bitmask) -> f32[N, V]

    counts i32[R, V] (how often each token was output) and in_prompt bool[R, V] are tables, and the
    penalties f32[N] come with them or not at all; bias f32[R, V] is a table, too. With a table
    comes rows i32[N], its rows that are those of the logits. banned i32[N, K] token ids to mask, V
    for none; bitmask i32[N, ceil(V / 32)] keeps the tokens whose bit is set. Each may be None.
    """
    import torch

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
        if counts is not None:
            assert in_prompt is not None and repetition is not None
            assert frequency is not None and presence is not None
            counts, in_prompt = rows_of(counts, rows), rows_of(in_prompt, rows)
            factor = repetition.unsqueeze(1).where((counts > 0) | in_prompt, 1.0)
            logits = torch.where(logits > 0, logits / factor, logits * factor)
            logits = logits - frequency.unsqueeze(1) * counts
            logits = logits - presence.unsqueeze(1) * (counts > 0)
        if bias is not None:
            logits = logits + rows_of(bias, rows)
        if banned is not None:
            wide = torch.cat([logits, logits[:, :1]], dim=1)
            logits = wide.scatter(1, banned.long(), -torch.inf)[:, :-1]
        return logits if bitmask is None else keep_set(logits, bitmask)

    return Bound(run=run)


def keep_set(logits: "Tensor", bitmask: "Tensor") -> "Tensor":
    """logits f32[N, V], -inf where the bit of i32[N, ceil(V / 32)] is not set"""
    import torch

    bit = torch.arange(32, device=logits.device, dtype=torch.int32)
    kept = (bitmask.unsqueeze(-1) >> bit & 1).flatten(1)[:, : logits.shape[1]].bool()
    return logits.where(kept, -torch.inf)


def rows_of(table: "Tensor", rows: "Tensor | None") -> "Tensor":
    """[R, V], i32[N] -> [N, V]"""
    assert rows is not None
    return table.index_select(0, rows)


def sampling_draw(spec: SamplingSpec, ctx: BuildContext) -> Bound:
    """run(logits f32[N, V], temperature f32[N], top_k i32[N], top_p f32[N], min_p f32[N],
    seed i32[N, 2], sample_index i32[N], position i32[N], *, bitmask i32[N, ceil(V / 32)] | None,
    greedy: bool, unfiltered: bool) -> i32[N]

    Temperature 0 takes the largest logit. Otherwise: divide by the temperature; keep the top_k
    largest (0: all); of these the fewest whose renormalized probabilities reach top_p; of these
    the ones with at least min_p of the largest probability; take the largest logit plus Gumbel
    noise (Gumbel-max). Ties go to the lower id. With `bitmask` only tokens whose bit is set exist,
    as if the others' logits were -inf; the logits stay as they are. `greedy`: all rows have
    temperature 0; `unfiltered`: no row filters; both are promises by the host that save work, not
    bits.
    """
    import torch

    def draw(
        logits: "Tensor",
        temperature: "Tensor",
        top_k: "Tensor",
        top_p: "Tensor",
        min_p: "Tensor",
        seed: "Tensor",
        sample_index: "Tensor",
        position: "Tensor",
        *,
        greedy: bool,
        unfiltered: bool,
    ) -> "Tensor":
        if greedy:
            return logits.argmax(-1).int()
        cold = temperature <= 0
        scaled = logits / temperature.where(~cold, 1.0).unsqueeze(1)
        noise = gumbel(seed, sample_index, position, spec.vocab)
        noise = noise.where(~cold.unsqueeze(1), 0.0)
        if unfiltered:
            return (scaled + noise).argmax(-1).int()
        chosen = choose_among(scaled, noise, top_k, top_p, min_p)
        return torch.where(cold, logits.argmax(-1), chosen).int()

    def run(
        logits: "Tensor",
        *args: "Tensor",
        bitmask: "Tensor | None" = None,
        greedy: bool = False,
        unfiltered: bool = False,
    ) -> "Tensor":
        if bitmask is not None:
            logits = keep_set(logits, bitmask)
        call: Callable[..., Tensor] = rowwise(draw) if spec.determinism == "batch" else draw
        return call(logits, *args, greedy=greedy, unfiltered=unfiltered)

    return Bound(run=run)


def choose_among(
    scaled: "Tensor", noise: "Tensor", top_k: "Tensor", top_p: "Tensor", min_p: "Tensor"
) -> "Tensor":
    """i64[N]: the largest of f32[N, V] plus noise among those that the filters keep"""
    import torch

    ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)
    vocab = scaled.shape[1]
    rank = torch.arange(vocab, device=scaled.device)
    limit = top_k.where(top_k > 0, vocab).unsqueeze(1)
    ordered = ordered.masked_fill(rank >= limit, -torch.inf)
    share = ordered.softmax(-1)
    before = share.cumsum(-1) - share
    nucleus = top_p.where(top_p < 1.0, torch.inf).unsqueeze(1)  # sums may round to 1 early
    drop = (before >= nucleus) | (share < share[:, :1] * min_p.unsqueeze(1))
    drop[:, 0] = False
    noisy = (ordered + noise.gather(1, ids)).masked_fill(drop, -torch.inf)
    # the lowest id among equals: argmax alone would take the first in sorted order
    best = noisy.amax(-1, keepdim=True)
    return ids.masked_fill(noisy < best, vocab).amin(-1)


def sampling_logprobs(spec: SamplingSpec, ctx: BuildContext) -> Bound:
    """run(logits f32[N, V], ids i32[N], top: int) -> (logprob f32[N], rank i32[N],
    top_ids i32[N, top], top_logprobs f32[N, top])

    Natural logarithms; rank 1 is the most likely token, ties share the better rank. Among equals
    the lower ids come first, so that no token depends on how many others are asked for.
    """

    def score(logits: "Tensor", ids: "Tensor", top: int) -> "tuple[Tensor, ...]":
        logprobs = logits.log_softmax(-1)
        own = logprobs.gather(1, ids.long().unsqueeze(1))
        rank = (logits > logits.gather(1, ids.long().unsqueeze(1))).sum(-1) + 1
        best = most_likely(logits, top)
        return own.squeeze(1), rank.int(), best.int(), logprobs.gather(1, best)

    def run(logits: "Tensor", ids: "Tensor", top: int) -> "tuple[Tensor, ...]":
        if spec.determinism == "batch":
            result: tuple[Tensor, ...] = rowwise(score)(logits, ids, top=top)
            return result
        return score(logits, ids, top)

    return Bound(run=run)


def most_likely(logits: "Tensor", top: int) -> "Tensor":
    """i64[N, top] token ids in falling order of their logits, the lower id first among equals.

    A library's top-k takes any of several equals, which depend on k. So the ids join the keys:
    the bits of a float32, as an integer that orders as it does, then the id.
    """
    import torch

    if logits.dtype != torch.float32:
        return logits.sort(dim=-1, descending=True, stable=True).indices[:, :top]
    bits = (logits + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    rising = (bits ^ (bits >> 31 & 0x7FFFFFFF)).long()
    last = logits.shape[-1] - 1
    keys = rising * 2**32 + (last - torch.arange(last + 1, device=logits.device))
    return keys.topk(top, dim=-1).indices


def _logits(spec: SamplingSpec, seed: int) -> "Tensor":
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, spec.vocab, generator=generator) * 4


def _filter_inputs(spec: SamplingSpec, seed: int) -> dict[str, Any]:
    """Every kind of restriction with a chance of one half."""
    import torch

    generator = torch.Generator().manual_seed(seed + 2)
    chosen = torch.randint(2, (4,), generator=generator).tolist()

    def draw(high: int, *shape: int) -> "Tensor":
        return torch.randint(high, shape, generator=generator, dtype=torch.int32)

    made: dict[str, Any] = {"logits": _logits(spec, seed)}
    table = 7
    if chosen[0] or chosen[1]:
        made["rows"] = torch.randperm(table, generator=generator)[:5].int()
    if chosen[0]:
        made["counts"] = (draw(30, table, spec.vocab) - 26).clamp(min=0)
        made["in_prompt"] = draw(9, table, spec.vocab) == 0
        for name, values in (
            ("repetition", (1.0, 1.3, 0.7)),
            ("frequency", (0.0, 0.5, -1.5)),
            ("presence", (0.0, 1.5, -0.5)),
        ):
            made[name] = torch.tensor(values)[draw(3, 5).long()]
    if chosen[1]:
        noise = torch.randn(table, spec.vocab, generator=generator)
        made["bias"] = noise * (draw(20, table, spec.vocab) == 0)
    if chosen[2]:
        made["banned"] = draw(spec.vocab + 1, 5, 7)
    if chosen[3]:
        words = torch.randint(-(2**31), 2**31, (5, -(-spec.vocab // 32)), generator=generator)
        made["bitmask"] = words.int()
    return made


def _draw_inputs(spec: SamplingSpec, seed: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)

    def among(*values: float, dtype: Any = torch.float32) -> "Tensor":
        at = torch.randint(len(values), (5,), generator=generator)
        return torch.tensor(values, dtype=dtype)[at]

    seeds = torch.randint(-(2**31), 2**31, (5, 2), generator=generator)
    words = torch.randint(-(2**31), 2**31, (5, -(-spec.vocab // 32)), generator=generator).int()
    words[:, 0] |= 1  # one token at least
    words[1:3, 1:] &= words[1:3, 1:] << 9 & words[3:5, 1:]  # some keep few
    masked = bool(torch.randint(2, (1,), generator=generator))
    return {
        "logits": _logits(spec, seed),
        "temperature": among(0.0, 0.5, 1.0, 2.0),
        "top_k": among(0, 1, 3, 50, dtype=torch.int32),
        "top_p": among(1.0, 0.9, 0.3),
        "min_p": among(0.0, 0.1),
        "seed": seeds.int(),
        "sample_index": among(0, 1, 7, dtype=torch.int32),
        "position": torch.randint(0, 5000, (5,), generator=generator, dtype=torch.int32),
        "bitmask": words if masked else None,
    }


def _logprob_inputs(spec: SamplingSpec, seed: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(0, spec.vocab, (5,), generator=generator, dtype=torch.int32)
    return {"logits": _logits(spec, seed), "ids": ids, "top": 5}


def _exact(spec: SamplingSpec) -> Tolerance:
    return Tolerance(relative=1e-5, absolute=1e-5, norm=1e-5)


OPS = (
    Op(
        name="sampling.filter",
        spec=SamplingSpec,
        reference=Reference(sampling_filter),
        tolerance=_exact,
        inputs=_filter_inputs,
        mutates=("logits",),
    ),
    Op(
        name="sampling.draw",
        spec=SamplingSpec,
        reference=Reference(sampling_draw),
        tolerance=lambda spec: Tolerance(relative=0.0, absolute=0.0, norm=0.0),
        inputs=_draw_inputs,
    ),
    Op(
        name="sampling.logprobs",
        spec=SamplingSpec,
        reference=Reference(sampling_logprobs),
        tolerance=_exact,
        inputs=_logprob_inputs,
    ),
)
