"""A step's batch from its words and the device's tables: hw/ops/derive.py in one launch a group.

Moves a page table row for each sequence and a few words for each token: a microsecond at any size.
What counts is that two dozen small kernels become one.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

FROM_DEVICE = tl.constexpr(-1)
"""a token that is the last one of its row (hw/batch.py)"""
WORDS = ["row_ptr", "q_start_ptr", "token_ptr", "offset_ptr"]
"""parts of one tensor, at any alignment"""


@triton.jit(do_not_specialize=["seqs", "tokens", "columns"], do_not_specialize_on_alignment=WORDS)
def derive(
    row_ptr, q_start_ptr, token_ptr, offset_ptr, computed_ptr, last_ptr, pages_ptr,
    id_ptr, position_ptr, seq_len_ptr, slot_ptr, table_ptr,
    seqs, tokens, columns, stride_pages,
    PAGE: tl.constexpr, MAIN: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Programs (B + 1): each sequence with its tokens, so that nobody else reads the count that it
    changes; then the tokens that are padding, of row 0. MAIN: what does not depend on the group."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    seq = tl.program_id(0)
    begin = tl.load(q_start_ptr + seq)
    row = tl.load(row_ptr + seq, mask=seq < seqs, other=0)
    end = tl.load(q_start_ptr + seq + 1, mask=seq < seqs, other=tokens)
    before = tl.load(computed_ptr + row)
    known = tl.load(last_ptr + row)
    pages_ptr += row.to(tl.int64) * stride_pages
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < end
        position = before + tl.load(offset_ptr + at, mask=inside, other=0)
        page = tl.load(pages_ptr + position // PAGE, mask=inside, other=0)
        tl.store(slot_ptr + at, page * PAGE + position % PAGE, mask=inside)
        if MAIN:
            token = tl.load(token_ptr + at, mask=inside, other=0)
            tl.store(id_ptr + at, tl.where(token == FROM_DEVICE, known, token), mask=inside)
            tl.store(position_ptr + at, position, mask=inside)
    if seq < seqs:
        table_ptr += seq.to(tl.int64) * columns
        for start in range(0, columns, BLOCK):
            at = start + tl.arange(0, BLOCK)
            page = tl.load(pages_ptr + at, mask=at < columns, other=0)
            tl.store(table_ptr + at, page, mask=at < columns)
        if MAIN:
            tl.store(seq_len_ptr + seq, before + end - begin)
            tl.debug_barrier()  # other threads of this program read the count, too
            tl.store(computed_ptr + row, before + end - begin)
