"""Sampling and embedding in Triton. The tiles of a row follow from the vocabulary alone, so that
no row depends on how many others there are."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferplane.hw import Bound, BuildContext, Device, Reject, Support
from inferplane.hw.ops.embedding import EmbeddingSpec
from inferplane.hw.ops.sampling import SamplingSpec
from inferplane_triton.attention import core_count, next_power, overlapped
from inferplane_triton.kernels import sampling as kernels
from inferplane_triton.kernels import wide_sampling

if TYPE_CHECKING:
    from torch import Tensor

MAX_VOCAB = 2**23
"""probabilities in units of 2^-40 must add up in 64 bits"""
NO_FUSION = {"enable_fp_fusion": False}
"""products are rounded before they are subtracted, as in the reference"""


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a row is cut. `cap`: candidates of a filtered row that are listed; rows with more of
    them are drawn by all processors together. `bits`: width of a radix digit. `wide_ways`: parts
    that a reading of such a row tells apart; `wide_unroll`: loads in flight; `wide_list`: tokens
    that are few enough to list."""

    segment: int = 2048
    group: int = 64
    cap: int = 4096
    bits: int = 4
    block: int = 256
    warps: int = 4
    search_warps: int = 4
    bound_warps: int = 8
    wide_ways: int = 16
    wide_warps: int = 16
    wide_unroll: int = 4
    wide_list: int = 1024


DEFAULT = Tiles()


class Cut:
    """The constants of one vocabulary and device."""

    def __init__(self, vocab: int, tiles: Tiles, device: Device) -> None:
        self.vocab = vocab
        # programs that run at the same time; an interpreter runs them one after the other
        self.cores = 1 if device.info.torch_device == "cpu" else core_count(device)
        self.early = overlapped(device)
        self.tiles = tiles
        self.groups = tiles.segment // tiles.group
        self.segments = -(-vocab // tiles.segment)
        self.segments_pad = next_power(self.segments)
        self.peaks = self.segments * self.groups
        self.peaks_pad = next_power(self.peaks)


@dataclass(slots=True)
class Search:
    """What the kernels of a filtered draw, or of logprobs, leave for each other."""

    peaks: "Tensor"  # f32[N, S * G]
    sums: "Tensor"  # f32[N, S]
    stats: "Tensor"  # f32[N, 4]
    count: "Tensor"  # i32[N, 3]
    values: "Tensor"  # f32[N, cap]
    ids: "Tensor"  # i32[N, cap]
    marks: "Tensor"  # i32[1 + cores + N]
    parts: "Tensor"  # i64[2, cores, 2 * ways]

    @classmethod
    def empty(cls, logits: "Tensor", cut: Cut, listed: bool = True) -> "Search":
        rows, cap = logits.shape[0], cut.tiles.cap if listed else 1
        return cls(
            peaks=logits.new_empty((rows, cut.peaks)),
            sums=logits.new_empty((rows, cut.segments)),
            stats=logits.new_empty((rows, 4)),
            count=_integers(logits, rows, 3),
            values=logits.new_empty((rows, cap)),
            ids=_integers(logits, rows, cap),
            marks=_integers(logits, 1 + cut.cores + rows),
            parts=_integers(logits, 2, cut.cores, 2 * cut.tiles.wide_ways, wide=True),
        )


def _integers(like: "Tensor", *shape: int, wide: bool = False) -> "Tensor":
    import torch

    return torch.empty(shape, dtype=torch.int64 if wide else torch.int32, device=like.device)


def _supports(spec: SamplingSpec) -> Support | Reject:
    if spec.vocab > MAX_VOCAB:
        return Reject("shape", f"vocab {spec.vocab} is more than {MAX_VOCAB}")
    return Support(priority=60, invariance="batch")


def _rows(logits: "Tensor") -> "Tensor":
    return logits if logits.stride(1) == 1 else logits.contiguous()


def alike(values: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
    """One-dimensional tensors with equal strides: columns of one table, or copies."""
    step = values[0].stride(0)
    if all(value.stride(0) == step for value in values):
        return values
    return tuple(value.contiguous() for value in values)


class Filter:
    name = "triton.filter"

    def supports(self, spec: SamplingSpec, device: Device) -> Support | Reject:
        return _supports(spec)

    def build(self, spec: SamplingSpec, ctx: BuildContext) -> Bound:
        vocab, block = spec.vocab, min(2048, next_power(spec.vocab))
        early = overlapped(ctx.device)

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
            logits = _rows(logits)
            out = logits.new_empty((logits.shape[0], vocab))
            step = 1
            if counts is not None:
                assert rows is not None and in_prompt is not None and repetition is not None
                assert frequency is not None and presence is not None
                counts, in_prompt = counts.contiguous(), in_prompt.contiguous()
                repetition, frequency, presence = alike((repetition, frequency, presence))
                step = repetition.stride(0)
            wide = [None if x is None else x.contiguous() for x in (bias, banned, bitmask)]
            most = 0 if banned is None else banned.shape[1]
            if len(logits):
                own = None if rows is None else rows.contiguous()
                kernels.restrict[-(-vocab // block), len(logits)](
                    logits, out, own, counts, in_prompt, repetition, frequency, presence, *wide,
                    vocab, -(-vocab // 32), logits.stride(0), step, most,
                    BANNED_PAD=next_power(max(most, 1)), BLOCK=block, num_warps=4,
                    **early, **NO_FUSION,
                )  # fmt: skip
            return out

        return Bound(run=run)


class Draw:
    """Greedy and unfiltered: best of each segment, then of the row. Filtered: peaks, a bound, the
    candidates above it, then the exact cut and the draw."""

    name = "triton.draw"

    def __init__(self, tiles: Tiles = DEFAULT) -> None:
        self._tiles = tiles

    def supports(self, spec: SamplingSpec, device: Device) -> Support | Reject:
        return _supports(spec)

    def build(self, spec: SamplingSpec, ctx: BuildContext) -> Bound:
        cut = Cut(spec.vocab, self._tiles, ctx.device)
        restrict = ctx.bind("sampling.filter", spec).run

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
            if bitmask is not None:
                logits = restrict(logits, bitmask=bitmask)
            settings = alike((temperature, top_k, top_p, min_p, sample_index))
            seed = seed if seed.stride(1) == 1 else seed.contiguous()
            filtered = not (greedy or unfiltered)
            where = (seed, settings[4], position.contiguous())
            return _draw(cut, _rows(logits), settings[:4], where, greedy, filtered)

        return Bound(run=run)


def _draw(
    cut: Cut,
    logits: "Tensor",
    settings: "tuple[Tensor, ...]",
    where: "tuple[Tensor, ...]",
    greedy: bool,
    filtered: bool,
) -> "Tensor":
    rows, tiles = logits.shape[0], cut.tiles
    tokens = _integers(logits, rows)
    if rows == 0:
        return tokens
    grid = (cut.segments, rows)
    step, seed_step = settings[0].stride(0), where[0].stride(0)
    best = logits.new_empty((rows, cut.segments))
    best_ids = _integers(logits, rows, cut.segments)
    search = Search.empty(logits, cut) if filtered else None
    lists: tuple[Tensor | None, ...] = (None,) * 6
    if search is not None:
        kernels.peaks[grid](
            logits, *settings, None, search.peaks, search.sums, None,
            cut.vocab, logits.stride(0), step, SEGMENT=tiles.segment, GROUP=tiles.group,
            LOGPROBS=False, num_warps=tiles.warps, **cut.early,
        )  # fmt: skip
        kernels.bound[rows,](
            search.peaks, search.sums, *settings, search.stats, search.count, search.marks,
            cut.vocab, cut.segments, step, TOP=0, LOGPROBS=False, GROUPS=cut.groups,
            PADDED=cut.peaks_pad, SEGMENTS_PAD=cut.segments_pad, CORES=cut.cores,
            CORES_PAD=next_power(cut.cores), num_warps=tiles.bound_warps, **cut.early,
        )  # fmt: skip
        lists = (search.peaks, search.stats, search.count, search.values, search.ids, search.marks)
    kernels.visit[grid](
        logits, *settings, *where, best, best_ids, *lists,
        cut.vocab, logits.stride(0), step, seed_step, cut.cores,
        GREEDY=greedy, FILTERED=filtered, SEGMENT=tiles.segment, GROUPS=cut.groups,
        CAP=tiles.cap, num_warps=tiles.warps, **cut.early,
    )  # fmt: skip
    if search is not None:
        wide_sampling.wide[cut.cores,](
            tokens, logits, *settings, *where, *lists[1:], search.parts,
            cut.vocab, logits.stride(0), step, seed_step, CORES=cut.cores,
            CORES_PAD=next_power(cut.cores), CAP=tiles.cap, ENOUGH=min(tiles.cap, tiles.wide_list),
            WAYS=tiles.wide_ways, BITS=tiles.bits, LANES=32 * tiles.wide_warps,
            UNROLL=tiles.wide_unroll,
            num_warps=tiles.wide_warps, **cut.early,
        )  # fmt: skip
    kernels.finish[rows,](
        best, best_ids, tokens, *settings, *where, *lists[1:5],
        cut.vocab, cut.segments, step, seed_step,
        FILTERED=filtered, SEGMENTS_PAD=cut.segments_pad, CAP=tiles.cap, BITS=tiles.bits,
        BLOCK=tiles.block, num_warps=tiles.search_warps if filtered else 1, **cut.early,
    )  # fmt: skip
    return tokens


class Logprobs:
    name = "triton.logprobs"

    def __init__(self, tiles: Tiles = DEFAULT) -> None:
        self._tiles = tiles

    def supports(self, spec: SamplingSpec, device: Device) -> Support | Reject:
        return _supports(spec)

    def build(self, spec: SamplingSpec, ctx: BuildContext) -> Bound:
        cut = Cut(spec.vocab, self._tiles, ctx.device)

        def run(logits: "Tensor", ids: "Tensor", top: int) -> "tuple[Tensor, ...]":
            return _logprobs(cut, _rows(logits), ids.contiguous(), top)

        return Bound(run=run)


def _logprobs(cut: Cut, logits: "Tensor", ids: "Tensor", top: int) -> "tuple[Tensor, ...]":
    rows, tiles = logits.shape[0], cut.tiles
    own, best = logits.new_empty((rows,)), logits.new_empty((rows, top))
    rank, best_ids = _integers(logits, rows), _integers(logits, rows, top)
    if rows == 0:
        return own, rank, best_ids, best
    grid = (cut.segments, rows)
    search = Search.empty(logits, cut, listed=top > 0)
    above = _integers(logits, rows, cut.segments)
    kernels.peaks[grid](
        logits, None, None, None, None, ids, search.peaks, search.sums, above,
        cut.vocab, logits.stride(0), 1,
        SEGMENT=tiles.segment, GROUP=tiles.group, LOGPROBS=True, num_warps=tiles.warps,
        **cut.early,
    )  # fmt: skip
    if top:
        kernels.bound[rows,](
            search.peaks, search.sums, None, None, None, None, search.stats, search.count,
            None, cut.vocab, cut.segments, 1, TOP=top, LOGPROBS=True, GROUPS=cut.groups,
            PADDED=cut.peaks_pad, SEGMENTS_PAD=cut.segments_pad, CORES=1, CORES_PAD=1,
            num_warps=tiles.bound_warps, **cut.early,
        )  # fmt: skip
        kernels.collect[grid](
            logits, search.peaks, search.stats, search.count, search.values, search.ids,
            cut.vocab, logits.stride(0),
            SEGMENT=tiles.segment, GROUPS=cut.groups, CAP=tiles.cap, num_warps=tiles.warps,
            **cut.early,
        )  # fmt: skip
    kernels.logprobs[rows,](
        logits, ids, search.peaks, search.sums, above, search.count, search.values, search.ids,
        own, rank, best_ids, best, cut.vocab, cut.segments, logits.stride(0),
        TOP=top, GROUPS=cut.groups, SEGMENTS_PAD=cut.segments_pad, CAP=tiles.cap,
        BLOCK=tiles.block, num_warps=4, **cut.early,
    )  # fmt: skip
    return own, rank, best_ids, best


class Embedding:
    name = "triton.embedding"

    def supports(self, spec: EmbeddingSpec, device: Device) -> Support | Reject:
        if spec.dtype not in ("bfloat16", "float16", "float32"):
            return Reject("dtype", f"{spec.dtype} is not bfloat16, float16 or float32")
        return Support(priority=60, invariance="batch")

    def build(self, spec: EmbeddingSpec, ctx: BuildContext) -> Bound:
        import torch

        scale = torch.tensor(spec.scale, dtype=getattr(torch, spec.dtype)).item()
        block = min(2048, next_power(spec.dim))
        early = overlapped(ctx.device)

        def run(ids: "Tensor", weight: "Tensor") -> "Tensor":
            weight, rows = _rows(weight), ids.shape[0]
            out = weight.new_empty((rows, spec.dim))
            if rows:
                kernels.embed[rows, -(-spec.dim // block)](
                    ids.contiguous(), weight, out, spec.dim, weight.stride(0),
                    SCALE=scale, BLOCK=block, num_warps=4, **early,
                )  # fmt: skip
            return out

        return Bound(run=run)
