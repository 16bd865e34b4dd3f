"""What one step computes: the StepPlan that the scheduler makes and the ForwardBatch that ops see.

The scheduler writes plain integers (StepPlan, no torch), so that a plan can be sent to every rank.
The runner of each rank turns it into a ForwardBatch: padded tensors on the device.

Letters: T tokens, B sequences, N sampled rows, P pages of a page table, R rows of the device
tables, G KV groups. Row 0 and page 0 of each group are null: padding reads and writes them.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from torch import Tensor

FROM_DEVICE = -1
"""In StepPlan.tokens: the token that this row sampled last, which the host may not know yet."""


class RowInit(msgspec.Struct, array_like=True):
    """First use, or use after retraction, of a row of the device tables.

    `tokens` (prompt and output so far) is sent only when penalties must count them; `prompt_len`
    says how many of them are prompt. `min_len`: stop ids are masked while the sequence would have
    fewer than this many tokens. `stop_ids` at most 64.
    """

    row: int
    num_computed: int
    seed: int
    sample_index: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    min_len: int
    stop_ids: list[int]
    logit_bias: dict[int, float]
    prompt_len: int
    tokens: list[int]


class PageWrite(msgspec.Struct, array_like=True):
    """page_table[group][row, column] = page"""

    group: int
    row: int
    column: int
    page: int


class PromptLogprobs(msgspec.Struct, array_like=True):
    """Score the prompt tokens `targets`: targets[i] follows the token `first` + i of those that
    sequence `index` of this step computes. `first` and the targets are at most its q_len.
    At each of them the logprobs of `ids` are wanted, too."""

    index: int
    top: int
    targets: list[int]
    first: int = 0
    ids: list[int] = []


class StepPlan(msgspec.Struct, kw_only=True):
    """One step. Sequences come in the order decode, verify, prefill."""

    step: int
    rows: list[int]
    """[B] row of each sequence in the device tables"""
    q_lens: list[int]
    """[B] tokens that each sequence computes in this step, at least 1"""
    starts: list[int]
    """[B] tokens of the sequence computed by all earlier steps (upper bound unless `exact`)"""
    tokens: list[int]
    """[T] token ids, concatenated over the sequences; FROM_DEVICE for the last sampled one"""
    num_decode: int
    num_verify: int = 0
    exact: bool = True
    sample: list[int] = []
    """[N] indexes (into rows) of the sequences whose last token's logits are sampled"""
    logprobs: list[int] = []
    """[N] how many top logprobs each sampled sequence wants; -1 for none at all"""
    logprob_ids: dict[int, list[int]] = {}
    """index into sample -> tokens whose logprobs that sequence wants, if it names some"""
    init: list[RowInit] = []
    pages: list[PageWrite] = []
    prompt_logprobs: list[PromptLogprobs] = []


Scored = tuple[float, int, list[tuple[int, float]], list[float]]
"""logprob, rank, [(token, logprob), ...] of the most likely, and the logprobs of the wanted ids"""


class StepResult(msgspec.Struct, kw_only=True):
    """What the device computed for a StepPlan, on the host.

    `logprobs[i]` belongs to sample[i], None if it wants none.
    `prompt_logprobs[i]` belongs to plan.prompt_logprobs[i], one entry per target.
    """

    tokens: list[int]
    logprobs: list[Scored | None] = []
    prompt_logprobs: list[list[Scored]] = []


@dataclass(slots=True, kw_only=True)
class ForwardBatch:
    """What models, ops and executors see of a step. All tensors live on the device.

    Shapes are those of the bucket (padded): the live counts say how much is real. Padding tokens
    have row 0, position 0 and a slot in page 0; padding sequences have seq_len 0 and an empty
    q range. The `host_*` fields are for backends that plan on the host: exact if `host_exact`,
    otherwise upper bounds.
    """

    # live counts (host)
    num_tokens: int
    num_seqs: int
    num_decode: int
    num_verify: int
    # per token
    token_ids: "Tensor"  # i32[T]
    position: "Tensor"  # i32[T], or i32[3, T] for multimodal rope
    slot: "tuple[Tensor, ...]"  # G x i32[T]: page * page_size + offset in the page
    # per sequence
    row: "Tensor"  # i32[B]
    q_start: "Tensor"  # i32[B + 1]
    seq_len: "Tensor"  # i32[B], tokens in the KV cache once this step has written its own
    page_table: "tuple[Tensor, ...]"  # G x i32[B, P]
    logit_index: "Tensor"  # i32[N], tokens whose hidden state goes to the logits
    # host copies
    host_q_start: list[int]
    host_seq_len: list[int]
    host_exact: bool
    max_q: int
    max_kv: int
    padded: bool = False
    """the shapes are those of a bucket, and the step may be replayed for others of the bucket: the
    host fields are not those of the replays, but max_q and max_kv hold for all of them"""
    # features that not every batch uses
    tree_mask: "Tensor | None" = None  # u8[T, W]
    """bit j % 8 of byte j // 8: the token sees token j of those that its sequence computes in this
    step. Tokens of a draft see themselves; one that does not, as padding, sees all before it"""
    lora: "LoraSegments | None" = None
    input_embeds: "Tensor | None" = None  # [M, d] replaces embeddings at embed_index
    embed_index: "Tensor | None" = None  # i32[M]
    rank_tokens: list[int] | None = None  # tokens of each data-parallel rank
    pipeline_input: "Tensor | None" = None  # [T, d] hidden states of the previous stage
    aux_hidden: "list[Tensor]" = field(default_factory=list)  # hidden states kept for a draft model


@dataclass(slots=True, frozen=True)
class LoraSegments:
    """Consecutive tokens that use one adapter slot: tokens start[i]:start[i+1] use slot[i]."""

    start: "Tensor"  # i32[S + 1]
    slot: "Tensor"  # i32[S], -1 for none
