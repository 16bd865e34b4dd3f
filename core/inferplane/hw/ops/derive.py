"""What a step computes, from the few words that the host sends and the device's tables: a batch's
token ids, positions, slots and page tables. Integers only, and small: on a device that launches
each torch op as a kernel, the launches are its whole cost (two dozen here), so one kernel may
do all of it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferplane.hw.batch import FROM_DEVICE
from inferplane.hw.op import Bound, BuildContext, Determinism, Op, Reference, Tolerance

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DeriveSpec:
    """`inplace`: the table of computed tokens is written to; otherwise it is returned anew."""

    page_size: int
    inplace: bool = True
    determinism: Determinism = "run"


def derive(spec: DeriveSpec, ctx: BuildContext) -> Bound:
    """run(row i32[B], q_start i32[B + 1], token i32[T], token_row i32[T], offset i32[T],
    num_computed i32[R], last_token i32[R], pages G x i32[R, P], columns) -> (token_ids i32[T],
    position i32[T], seq_len i32[B], num_computed i32[R], G x slot i32[T], G x page table
    i32[B, columns])

    Token t belongs to row token_row[t] and is offset[t] tokens after those that are computed; a
    token of FROM_DEVICE is the row's last one. Tokens q_start[i] to q_start[i + 1] are those of
    row[i], which has seq_len[i] tokens afterwards, and num_computed[row[i]] becomes that. Tokens
    from q_start[B] on and sequences without tokens are padding: of row 0, where nothing is ever
    computed.
    """
    import torch

    size = spec.page_size

    def run(
        row: "Tensor",
        q_start: "Tensor",
        token: "Tensor",
        token_row: "Tensor",
        offset: "Tensor",
        num_computed: "Tensor",
        last_token: "Tensor",
        pages: "tuple[Tensor, ...]",
        columns: int,
    ) -> "tuple[Tensor, ...]":
        position = num_computed.index_select(0, token_row) + offset
        known = last_token.index_select(0, token_row)
        seq_len = num_computed.index_select(0, row) + (q_start[1:] - q_start[:-1])
        put = num_computed.index_put_ if spec.inplace else num_computed.index_put
        column = position.div(size, rounding_mode="floor")
        inside = position - column * size
        where = (token_row.long(), column.long())
        return (
            torch.where(token == FROM_DEVICE, known, token),
            position,
            seq_len,
            put((row.long(),), seq_len),
            *(table[where] * size + inside for table in pages),
            *(table[:, :columns].index_select(0, row) for table in pages),
        )

    return Bound(run=run)


def _inputs(spec: DeriveSpec, seed: int) -> dict[str, Any]:
    """Decodes, then prefills, then padding, in random rows of the tables."""
    import random

    import torch

    choose = random.Random(seed)
    rows, width, groups = 12, 9, choose.randint(1, 3)
    lengths = [1] * choose.randint(0, 4)
    lengths += [choose.randint(1, 2 * spec.page_size) for _ in range(choose.randint(1, 4))]
    row = choose.sample(range(1, rows), len(lengths))
    token_row = [r for r, length in zip(row, lengths, strict=True) for _ in range(length)]
    offset = [at for length in lengths for at in range(length)]
    starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    token = [choose.choice((FROM_DEVICE, choose.randrange(1000))) for _ in token_row]
    spare, more = choose.randint(0, 3), choose.randint(0, 3)

    def integers(values: list[int]) -> "Tensor":
        return torch.tensor(values, dtype=torch.int32)

    generator = torch.Generator().manual_seed(seed)
    computed = torch.randint(6 * spec.page_size, (rows,), generator=generator, dtype=torch.int32)
    computed[0] = 0
    table = torch.randint(1, 999, (groups, rows, width), generator=generator, dtype=torch.int32)
    table[:, 0] = 0
    return {
        "row": integers(row + [0] * spare),
        "q_start": integers(starts + starts[-1:] * spare),
        "token": integers(token + [0] * more),
        "token_row": integers(token_row + [0] * more),
        "offset": integers(offset + [0] * more),
        "num_computed": computed,
        "last_token": torch.randint(999, (rows,), generator=generator, dtype=torch.int32),
        "pages": tuple(table.unbind(0)),
        "columns": choose.randint(1, width),
    }


OPS = (
    Op(
        name="batch.derive",
        spec=DeriveSpec,
        reference=Reference(derive),
        tolerance=lambda spec: Tolerance(relative=0.0, absolute=0.0, norm=0.0),
        inputs=_inputs,
        mutates=("num_computed",),
        own=True,
    ),
)
