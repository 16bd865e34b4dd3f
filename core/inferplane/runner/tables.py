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
INTEGERS = ("seed_low", "seed_high", "sample_index", "top_k", "min_len")
FLOATS = ("temperature", "top_p", "min_p", "repetition", "frequency", "presence")
PARAMETERS = len(INTEGERS) + len(FLOATS) + STOP_IDS
"""i32 words of a row's sampling parameters: integers, floats by their bits, stop ids"""
WIDTH = 2 + PARAMETERS
"""i32 words that describe one RowInit: row, num_computed, parameters"""


@dataclass(frozen=True, slots=True)
class Parameters:
    """The sampling parameters of some rows: views of one tensor, so that reading them is free."""

    words: "Tensor"  # i32[N, PARAMETERS]

    def integer(self, name: str) -> "Tensor":
        """i32[N]"""
        return self.words[:, INTEGERS.index(name)]

    def real(self, name: str) -> "Tensor":
        """f32[N]"""
        import torch

        return self.words.view(torch.float32)[:, len(INTEGERS) + FLOATS.index(name)]

    @property
    def seed(self) -> "Tensor":
        """i32[N, 2]"""
        return self.words[:, :2]

    @property
    def stop_ids(self) -> "Tensor":
        """i32[N, STOP_IDS]"""
        return self.words[:, -STOP_IDS:]


@dataclass(slots=True)
class Tables:
    """R rows; `inplace` False makes every update return a new tensor."""

    inplace: bool
    vocab: int
    num_computed: "Tensor"  # i32[R]
    last_token: "Tensor"  # i32[R]
    pages: "list[Tensor]"  # by group i32[R, P]
    parameters: "Tensor"  # i32[R, PARAMETERS], see Parameters; stop ids are `vocab` where unused
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
        row = packed[:, 0]
        self.put("num_computed", (row,), packed[:, 1])
        self.put("parameters", (row,), packed[:, 2:])

    def parameters_of(self, row: "Tensor") -> Parameters:
        return Parameters(self.parameters.index_select(0, row))


def make_tables(
    rows: int, columns: Sequence[int], vocab: int, torch_device: str, inplace: bool
) -> Tables:
    """Zeroed tables; `columns` is the width of each group's page table."""
    import torch

    def integers(*shape: int) -> "Tensor":
        return torch.zeros(shape, dtype=torch.int32, device=torch_device)

    parameters = integers(rows, PARAMETERS)
    Parameters(parameters).stop_ids.fill_(vocab)
    return Tables(
        inplace=inplace,
        vocab=vocab,
        num_computed=integers(rows),
        last_token=integers(rows),
        pages=[integers(rows, width) for width in columns],
        parameters=parameters,
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
