"""What the device remembers of each running sequence between steps, one row each.

The host sends only changes, so it never needs the token of a running step to plan the next one.
Row 0 is null: padding reads and writes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferplane.hw.batch import RowInit

if TYPE_CHECKING:
    from torch import Tensor

STOP_IDS = 64
INTEGERS = ("row", "num_computed", "seed_low", "seed_high", "sample_index", "top_k", "min_len")
FLOATS = ("temperature", "top_p", "min_p", "repetition", "frequency", "presence")
WIDTH = len(INTEGERS) + len(FLOATS) + STOP_IDS
"""i32 words that describe one RowInit: integers, floats by their bits, stop ids"""


@dataclass(slots=True)
class Tables:
    """R rows; `inplace` False makes every update return a new tensor."""

    inplace: bool
    vocab: int
    num_computed: "Tensor"  # i32[R]
    last_token: "Tensor"  # i32[R]
    pages: "list[Tensor]"  # by group i32[R, P]
    seed: "Tensor"  # i32[R, 2]
    sample_index: "Tensor"  # i32[R]
    top_k: "Tensor"  # i32[R]
    min_len: "Tensor"  # i32[R]
    temperature: "Tensor"  # f32[R]
    top_p: "Tensor"  # f32[R]
    min_p: "Tensor"  # f32[R]
    repetition: "Tensor"  # f32[R]
    frequency: "Tensor"  # f32[R]
    presence: "Tensor"  # f32[R]
    stop_ids: "Tensor"  # i32[R, STOP_IDS], `vocab` where unused
    # made when the first request needs them
    counts: "Tensor | None" = None  # i32[R, V]
    in_prompt: "Tensor | None" = None  # bool[R, V]
    bias: "Tensor | None" = None  # f32[R, V]

    def put(self, name: str, index: "tuple[Tensor, ...]", value: "Tensor") -> None:
        """tables.name[index] = value"""
        old = getattr(self, name)
        index = tuple(i.long() for i in index)
        if self.inplace:
            old.index_put_(index, value)
        else:
            setattr(self, name, old.index_put(index, value))

    def put_pages(self, group: int, row: "Tensor", column: "Tensor", page: "Tensor") -> None:
        index = (row.long(), column.long())
        if self.inplace:
            self.pages[group].index_put_(index, page)
        else:
            self.pages[group] = self.pages[group].index_put(index, page)

    def start_rows(self, packed: "Tensor") -> None:
        """Take over RowInits, i32[K, WIDTH] as `pack_rows` made them."""
        import torch

        row = packed[:, 0]
        at = dict(zip(INTEGERS, packed[:, : len(INTEGERS)].unbind(1), strict=True))
        first = len(INTEGERS)
        floats = packed[:, first : first + len(FLOATS)].contiguous().view(torch.float32)
        at |= dict(zip(FLOATS, floats.unbind(1), strict=True))
        for name in (*INTEGERS[4:], "num_computed", *FLOATS):
            self.put(name, (row,), at[name])
        self.put("seed", (row,), torch.stack([at["seed_low"], at["seed_high"]], dim=1))
        self.put("stop_ids", (row,), packed[:, first + len(FLOATS) :])


def make_tables(
    rows: int, columns: Sequence[int], vocab: int, torch_device: str, inplace: bool
) -> Tables:
    """Zeroed tables; `columns` is the width of each group's page table."""
    import torch

    def integers(*shape: int) -> "Tensor":
        return torch.zeros(shape, dtype=torch.int32, device=torch_device)

    def floats() -> "Tensor":
        return torch.zeros(rows, dtype=torch.float32, device=torch_device)

    return Tables(
        inplace=inplace,
        vocab=vocab,
        num_computed=integers(rows),
        last_token=integers(rows),
        pages=[integers(rows, width) for width in columns],
        seed=integers(rows, 2),
        sample_index=integers(rows),
        top_k=integers(rows),
        min_len=integers(rows),
        temperature=floats(),
        top_p=floats(),
        min_p=floats(),
        repetition=floats(),
        frequency=floats(),
        presence=floats(),
        stop_ids=integers(rows, STOP_IDS) + vocab,
    )


def pack_rows(inits: list[RowInit], vocab: int) -> "list[int]":
    """The words of the given rows, one after the other."""
    import struct

    words: list[int] = []
    for init in inits:
        low, high = init.seed & 0xFFFFFFFF, init.seed >> 32 & 0xFFFFFFFF
        top_k = min(max(init.top_k, 0), 2**31 - 1)
        words += [init.row, init.num_computed, _signed(low), _signed(high), init.sample_index]
        words += [top_k, init.min_len]
        words += struct.unpack(
            "6i",
            struct.pack(
                "6f",
                init.temperature,
                init.top_p,
                init.min_p,
                init.repetition_penalty,
                init.frequency_penalty,
                init.presence_penalty,
            ),
        )
        words += init.stop_ids[:STOP_IDS] + [vocab] * (STOP_IDS - len(init.stop_ids))
    return words


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def start_penalties(tables: Tables, inits: list[RowInit]) -> None:
    """Count the tokens of rows with penalties. Rare, so it copies by itself."""
    import torch

    device = tables.num_computed.device
    shape = (tables.num_computed.shape[0], tables.vocab)
    if tables.counts is None:
        tables.counts = torch.zeros(shape, dtype=torch.int32, device=device)
        tables.in_prompt = torch.zeros(shape, dtype=torch.bool, device=device)
    for init in inits:
        row = torch.tensor([init.row], device=device)
        output = torch.tensor(init.tokens[init.prompt_len :], dtype=torch.int64)
        prompt = torch.zeros(tables.vocab, dtype=torch.bool)
        prompt[torch.tensor(init.tokens[: init.prompt_len], dtype=torch.int64)] = True
        counts = torch.bincount(output, minlength=tables.vocab).int()
        tables.put("counts", (row,), counts.to(device).unsqueeze(0))
        tables.put("in_prompt", (row,), prompt.to(device).unsqueeze(0))


def start_bias(tables: Tables, inits: list[RowInit]) -> None:
    """Write the logit bias of rows; rows without one become zero again."""
    import torch

    device = tables.num_computed.device
    if tables.bias is None:
        shape = (tables.num_computed.shape[0], tables.vocab)
        tables.bias = torch.zeros(shape, dtype=torch.float32, device=device)
    for init in inits:
        dense = torch.zeros(tables.vocab)
        if init.logit_bias:
            ids = torch.tensor(list(init.logit_bias), dtype=torch.int64)
            dense[ids] = torch.tensor(list(init.logit_bias.values()), dtype=torch.float32)
        row = torch.tensor([init.row], device=device)
        tables.put("bias", (row,), dense.to(device).unsqueeze(0))
