"""A StepPlan becomes a ForwardBatch: one copy of 32 bit words to the device, the rest from tables.

The words are, in this order: row[B], q_start[B + 1], token[T], token_row[T], token_offset[T],
last[N] (index of the token whose logits are sampled), sample_row[N] (row of its sequence); then the
changes of the tables: (group, row, column, page) x W, sorted by group, and packed rows x K. The
first part is the input of a recorded graph, the second is applied before it.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from inferplane.hw.batch import ForwardBatch, StepPlan
from inferplane.hw.device import Device, Event, ShapePolicy
from inferplane.hw.kv import KVGroup
from inferplane.hw.ops.derive import DeriveSpec
from inferplane.runner.build import Build
from inferplane.runner.tables import WIDTH, Tables, pack_rows

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sizes of a step. `decode`: every sequence computes one token. `padded`: equal buckets have
    equal shapes and may share a recorded graph; otherwise the sizes are exact."""

    tokens: int
    seqs: int
    samples: int
    columns: int
    decode: bool
    padded: bool

    @property
    def words(self) -> int:
        return 2 * self.seqs + 1 + 3 * self.tokens + 2 * self.samples


@dataclass(slots=True)
class Step:
    """A step whose inputs are on the device."""

    plan: StepPlan
    bucket: Bucket
    words: "Tensor"  # i32[bucket.words] on the device


@dataclass(slots=True)
class _Staging:
    """A pinned host buffer, and when the device has read it."""

    buffer: "Tensor"
    read: Event | None = None


class Inputs:
    """Packs plans and derives batches. `derive`: batch.derive, bound. `buckets`: sizes to pad
    decode steps to, on static devices all steps; `mixed`: (tokens, sequences) to pad other steps
    to, where one holds them."""

    def __init__(
        self,
        device: Device,
        tables: Tables,
        derive: Callable[..., Any],
        groups: list[KVGroup],
        policy: ShapePolicy,
        buckets: tuple[int, ...],
        mixed: tuple[tuple[int, int], ...],
        max_columns: int,
        depth: int,
    ) -> None:
        self._device = device
        self.tables = tables
        self._derive = derive
        self._page_size = groups[0].spec.page_size
        self._buckets = buckets
        self._mixed = mixed
        self._policy = policy
        self._max_columns = max_columns
        self._staging = [_Staging(device.host_buffer(4096, "int32")) for _ in range(depth + 2)]
        self._static: dict[Bucket, Tensor] = {}

    def bucket_of(self, plan: StepPlan) -> Bucket:
        tokens, seqs, samples = len(plan.tokens), len(plan.rows), len(plan.sample)
        longest = max(s + q for s, q in zip(plan.starts, plan.q_lens, strict=True))
        columns = -(-longest // self._page_size)
        decode = plan.num_decode == seqs
        if self._policy != "dynamic" and decode:
            return self._decode_bucket(self._pad(seqs))
        if self._policy == "static":
            seqs = self._pad(seqs)
            return self._mixed_bucket(max(self._pad(tokens), seqs), seqs)
        for size in self._mixed:
            if tokens <= size[0] and seqs <= size[1]:
                return self._mixed_bucket(*size)
        return Bucket(tokens, seqs, samples, columns, decode, padded=False)

    def known_buckets(self, max_seqs: int) -> list[Bucket]:
        """Every bucket that a device with bucketed shapes can meet, the largest first."""
        if self._policy != "bucketed":
            return []
        sizes = {self._pad(count) for count in range(1, max_seqs + 1)}
        mixed = [self._mixed_bucket(*size) for size in self._mixed]
        found = [self._decode_bucket(size) for size in sizes] + mixed
        return sorted(found, key=lambda bucket: (-bucket.tokens, -bucket.seqs))

    def _decode_bucket(self, seqs: int) -> Bucket:
        return Bucket(seqs, seqs, seqs, self._max_columns, decode=True, padded=True)

    def _mixed_bucket(self, tokens: int, seqs: int) -> Bucket:
        return Bucket(tokens, seqs, seqs, self._max_columns, decode=False, padded=True)

    def _pad(self, count: int) -> int:
        for size in self._buckets:
            if size >= count:
                return size
        return 1 << (count - 1).bit_length()

    def blank(self, bucket: Bucket) -> Step:
        """A step of a padded bucket that is nothing but padding."""
        nothing = StepPlan(step=0, rows=[], q_lens=[], starts=[], tokens=[], num_decode=0)
        return Step(nothing, bucket, self._place(bucket).zero_())

    def send(self, plan: StepPlan) -> Step:
        """Copy the plan's words to the device and apply its changes to the tables."""
        import torch

        bucket = self.bucket_of(plan)
        words = pack(plan, bucket)
        writes = sorted(plan.pages, key=lambda write: write.group)
        pages = [w for p in writes for w in (p.group, p.row, p.column, p.page)]
        rows = pack_rows(plan.init, self.tables.vocab)
        total = len(words) + len(pages) + len(rows)
        staging = self._staging[plan.step % len(self._staging)]
        if staging.read is not None:
            staging.read.synchronize()
        if staging.buffer.numel() < total:
            staging.buffer = self._device.host_buffer(2 * total, "int32")
        view = staging.buffer[:total]
        view.numpy()[:] = words + pages + rows
        target = self._device.info.torch_device
        # on the CPU the copy is real, too: the staging buffer is written again soon
        head = self._place(bucket).copy_(view[: len(words)], non_blocking=True)
        if total > len(words):
            sent = torch.empty(total - len(words), dtype=torch.int32, device=target)
            sent.copy_(view[len(words) :], non_blocking=True)
            self._apply(plan, sent[: len(pages)], sent[len(pages) :])
        staging.read = self._device.record()
        return Step(plan, bucket, head)

    def _place(self, bucket: Bucket) -> "Tensor":
        """Where the words of a step go: of a padded bucket, where its recording reads them."""
        import torch

        if bucket in self._static:
            return self._static[bucket]
        where = self._device.info.torch_device
        made = torch.empty(bucket.words, dtype=torch.int32, device=where)
        if bucket.padded:
            self._static[bucket] = made
        return made

    def _apply(self, plan: StepPlan, pages: "Tensor", rows: "Tensor") -> None:
        at = pages.view(-1, 4)
        for group, count in sorted(Counter(write.group for write in plan.pages).items()):
            mine, at = at[:count], at[count:]
            self.tables.put_pages(group, mine[:, 1], mine[:, 2], mine[:, 3])
        if plan.init:
            self.tables.start_rows(rows.view(-1, WIDTH))

    def derive(self, step: Step) -> ForwardBatch:
        """The batch from words and tables; also counts the step's tokens as computed."""
        bucket, tables = step.bucket, self.tables
        B, T, N = bucket.seqs, bucket.tokens, bucket.samples
        row, q_start, token, token_row, offset, last, _ = step.words.split(
            [B, B + 1, T, T, T, N, N]
        )
        words, pages = (row, q_start, token, token_row, offset), tuple(tables.pages)
        made = self._derive(*words, tables.num_computed, tables.last_token, pages, bucket.columns)
        token_ids, position, seq_len, tables.num_computed, *by_group = made
        return ForwardBatch(
            token_ids=token_ids,
            position=position,
            slot=tuple(by_group[: len(pages)]),
            row=row,
            q_start=q_start,
            seq_len=seq_len,
            page_table=tuple(by_group[len(pages) :]),
            logit_index=last,
            **self._host_fields(step),
        )

    def refresh(self, batch: ForwardBatch, step: Step) -> None:
        """Give a batch that was derived for another step of the bucket this step's host fields."""
        for name, value in self._host_fields(step).items():
            setattr(batch, name, value)

    def _host_fields(self, step: Step) -> dict[str, Any]:
        bucket, plan = step.bucket, step.plan
        spare = bucket.seqs - len(plan.rows)
        starts = [0, *accumulate(plan.q_lens)]
        lengths = [s + q for s, q in zip(plan.starts, plan.q_lens, strict=True)]
        if bucket.padded:  # what a recording may rely on
            longest_q = 1 if bucket.decode else bucket.tokens
            longest = bucket.columns * self._page_size
        else:
            longest_q, longest = max(plan.q_lens), max(lengths)
        return {
            "num_tokens": len(plan.tokens),
            "num_seqs": len(plan.rows),
            "num_decode": plan.num_decode,
            "num_verify": plan.num_verify,
            "host_q_start": starts + [starts[-1]] * spare,
            "host_seq_len": lengths + [0] * spare,
            "host_exact": plan.exact,
            "max_q": longest_q,
            "max_kv": longest,
            "padded": bucket.padded,
        }


def pack(plan: StepPlan, bucket: Bucket) -> list[int]:
    """The words of a plan, padded to the bucket."""
    spare_seqs = bucket.seqs - len(plan.rows)
    spare_tokens = bucket.tokens - len(plan.tokens)
    spare_samples = bucket.samples - len(plan.sample)
    starts, token_row, offset = [0], list[int](), list[int]()
    for row, count in zip(plan.rows, plan.q_lens, strict=True):
        starts.append(starts[-1] + count)
        if count == 1:
            token_row.append(row)
            offset.append(0)
        else:
            token_row += [row] * count
            offset += range(count)
    zeros = [0] * spare_tokens
    last = [starts[i + 1] - 1 for i in plan.sample]
    sample_row = [plan.rows[i] for i in plan.sample]
    words = plan.rows + [0] * spare_seqs
    words += starts + [starts[-1]] * spare_seqs
    words += plan.tokens + zeros + token_row + zeros + offset + zeros
    zeros = [0] * spare_samples
    return words + last + zeros + sample_row + zeros


def bind_derive(build: Build) -> Callable[..., Any]:
    spec = DeriveSpec(
        page_size=build.groups[0].spec.page_size,
        inplace=build.device.info.traits.inplace,
        determinism=build.determinism,
    )
    return build.bind("batch.derive", spec).run
