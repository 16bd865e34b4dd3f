"""batch.derive in Triton."""

from typing import TYPE_CHECKING

from inferplane.hw import Bound, BuildContext, Device, Reject, Support
from inferplane.hw.ops.derive import DeriveSpec
from inferplane_triton.attention import overlapped
from inferplane_triton.kernels import derive as kernels

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 512
"""tokens, or columns of a page table, at a time"""


class Derive:
    name = "triton.derive"

    def supports(self, spec: DeriveSpec, device: Device) -> Support | Reject:
        if not spec.inplace:
            return Reject("feature", "tables that are not written in place")
        return Support(priority=60, invariance="batch")

    def build(self, spec: DeriveSpec, ctx: BuildContext) -> Bound:
        early = overlapped(ctx.device)

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
            import torch

            seqs, tokens = row.shape[0], token.shape[0]
            ids, position = (torch.empty_like(token) for _ in range(2))
            slots = tuple(torch.empty_like(token) for _ in pages)
            seq_len = torch.empty_like(row)
            tables = tuple(row.new_empty((seqs, columns)) for _ in pages)
            # the first group last: with it the counts change that the others read
            for group in reversed(range(len(pages))):
                kernels.derive[(seqs + 1,)](
                    row, q_start, token, offset, num_computed, last_token, pages[group],
                    ids, position, seq_len, slots[group], tables[group],
                    seqs, tokens, columns, pages[group].stride(0),
                    PAGE=spec.page_size, MAIN=group == 0, BLOCK=BLOCK, num_warps=4, **early,
                )  # fmt: skip
            return (ids, position, seq_len, num_computed, *slots, *tables)

        return Bound(run=run)
