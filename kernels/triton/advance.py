"""Between two tokens of a decode loop that the host does not watch: what was drawn becomes the next input.

``advance_kernel`` keeps each row's record and finds out whether it goes on; ``grow_kernel`` gives a row that does a
place for its next token and shows it in a work list. Programs of ``BLOCK`` rows; every number is read and written once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

import triton
import triton.language as tl

if TYPE_CHECKING:
    from wcse.kernels.ops.decoding import DecodeRows
    from wcse.kernels.triton.work import DeviceList

BLOCK = 128


@triton.jit
def advance_kernel(
    drawn_ptr,
    drawn_logprob_ptr,
    token_ptr,
    position_ptr,
    counter_ptr,
    left_ptr,
    machine_ptr,
    done_ptr,
    count_ptr,
    written_ptr,
    logprob_ptr,
    table_ptr,
    n_rows,
    V,
    K: tl.constexpr,
    MACHINES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (ceil(rows / BLOCK),). machine [MACHINES, rows]; written, logprob [K, rows]; table [states, V] int16."""
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = r < n_rows
    done = tl.load(done_ptr + r, mask=inside, other=1)
    runs = inside & (done == 0)
    drawn = tl.load(drawn_ptr + r, mask=runs, other=0)
    count = tl.load(count_ptr + r, mask=runs, other=0)
    at = count.to(tl.int64) * n_rows + r
    tl.store(written_ptr + at, drawn, mask=runs)
    tl.store(logprob_ptr + at, tl.load(drawn_logprob_ptr + r, mask=runs, other=0.0), mask=runs)
    count += 1
    left = tl.load(left_ptr + r, mask=runs, other=0) - 1
    token = tl.maximum(drawn, 0)  # -1: broken logits
    flags = tl.where(drawn < 0, 1, 0) | tl.where(left <= 0, 2, 0) | tl.where(count >= K, 4, 0)
    for m in tl.static_range(MACHINES):
        state_ptr = machine_ptr + m * n_rows + r
        state = tl.load(state_ptr, mask=runs, other=0).to(tl.int64)
        entry = tl.load(table_ptr + state * V + token, mask=runs, other=0).to(tl.int32) & 0xFFFF
        tl.store(state_ptr, entry & 0x7FFF, mask=runs)
        flags |= (entry >> 15) << (3 + m)
    position = tl.load(position_ptr + r, mask=runs, other=0)
    counter = tl.load(counter_ptr + r, mask=runs, other=0)
    tl.store(done_ptr + r, flags, mask=runs)
    tl.store(count_ptr + r, count, mask=runs)
    tl.store(left_ptr + r, left, mask=runs)
    tl.store(counter_ptr + r, counter + 1, mask=runs)
    goes_on = runs & (flags == 0)
    tl.store(token_ptr + r, token.to(tl.int64), mask=goes_on)
    tl.store(position_ptr + r, position + 1, mask=goes_on)


@triton.jit
def grow_kernel(
    done_ptr,
    position_ptr,
    slot_ptr,
    tail_ptr,
    page_ptr,
    row_pos_ptr,
    n_rows,
    BLOCK: tl.constexpr,
):
    """Grid (ceil(rows / BLOCK),). A row's tail is the entry of its last page; the pages that it may use follow it."""
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = r < n_rows
    goes_on = inside & (tl.load(done_ptr + r, mask=inside, other=1) == 0)
    tail = tl.load(tail_ptr + r, mask=goes_on, other=0)
    page = tl.load(page_ptr + tail, mask=goes_on, other=0)
    full = (page >> 27 & 31) == 16
    tail = tl.where(full, tail + 1, tail)
    page = tl.load(page_ptr + tail, mask=goes_on, other=0)
    slot = (page & 0x07FFFFFF) * 16 + (page >> 27 & 31)
    tl.store(tail_ptr + r, tail, mask=goes_on)
    tl.store(page_ptr + tail, page + (1 << 27), mask=goes_on)
    tl.store(slot_ptr + r, tl.where(goes_on, slot, -1), mask=inside)
    tl.store(row_pos_ptr + r, tl.load(position_ptr + r, mask=goes_on, other=0), mask=goes_on)


def advance(drawn: Tensor, logprobs: Tensor, rows: DecodeRows, table: Tensor) -> None:
    """Shapes as in ``ops.advance``."""
    n = len(rows.done)
    advance_kernel[(triton.cdiv(n, BLOCK),)](
        drawn,
        logprobs,
        rows.tokens,
        rows.positions,
        rows.counters,
        rows.left,
        rows.machines,
        rows.done,
        rows.counts,
        rows.written,
        rows.logprobs,
        table,
        n,
        table.shape[1],
        K=rows.written.shape[0],
        MACHINES=rows.machines.shape[0],
        BLOCK=BLOCK,
        num_warps=4,
    )


def grow(rows: DecodeRows, tails: Tensor, work: DeviceList) -> None:
    """Shapes as in ``ops.grow``."""
    n = len(rows.done)
    grow_kernel[(triton.cdiv(n, BLOCK),)](
        rows.done, rows.positions, rows.slots, tails, work.page, work.row_pos, n, BLOCK=BLOCK, num_warps=4
    )
