"""What happens between two tokens of a decode loop, without the host: records, ends, places for the next token.

Knows nothing of models, trees or engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wcse.kernels import reference
from wcse.kernels.ops.common import I32, Backend, check_shape, pick, triton_ops
from wcse.types import WcseError

if TYPE_CHECKING:
    from wcse.kernels.triton.work import DeviceList

BROKEN, SPENT, PAUSED, ENDED = 1, 2, 4, 8
"""Bits of ``DecodeRows.done``: logits were broken; nothing left of the row's share; no more room in ``written``;
machine 0 found something (machine m: ``ENDED << m``)."""


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """The rows of a decode loop, on one device; all int32 unless said otherwise. ``advance`` changes all of them."""

    tokens: Tensor  # int64 [R], the next inputs
    positions: Tensor  # [R], of the inputs
    slots: Tensor  # [R], where their keys and values go; -1: nowhere
    counters: Tensor  # [R], of the random numbers
    left: Tensor  # [R], tokens that the row may still write
    machines: Tensor  # [machines, R], row of ``table`` in which each machine is
    done: Tensor  # [R], 0 while the row goes on
    counts: Tensor  # [R], tokens written
    written: Tensor  # [K, R], the tokens
    logprobs: Tensor  # float32 [K, R]


def advance(
    drawn: Tensor, logprobs: Tensor, rows: DecodeRows, table: Tensor, *, backend: Backend = "auto"
) -> None:
    """Record a drawn token for every row that goes on, find out whether it ends there, make it the next input.

    Args:
        drawn: int32 [R], from ``sample``; -1 breaks the row.
        logprobs: float32 [R].
        table: int16 [states, vocabulary], bit patterns of uint16: the next state, and 1 << 15 if the token ends the
            row. A state is a row of the table.

    Raises:
        WcseError: a tensor does not fit. Values are not looked at: that would stop the device.
    """
    n = (len(rows.done),)
    check_shape("drawn", drawn, n)
    check_shape("logprobs", logprobs, n)
    check_shape("machines", rows.machines, (len(rows.machines), *n))
    check_shape("written", rows.written, (len(rows.written), *n))
    for name in ("positions", "slots", "counters", "left", "done", "counts"):
        part = getattr(rows, name)
        check_shape(name, part, n)
        if part.dtype is not I32:
            raise WcseError(f"{name} has dtype {part.dtype}; expected int32")
    if table.dtype is not torch.int16:
        raise WcseError(f"table has dtype {table.dtype}; expected int16")
    if pick(backend, drawn) == "triton":
        return triton_ops().advance(drawn, logprobs, rows, table)
    reference.advance(drawn, logprobs, rows, table)


def grow(rows: DecodeRows, tails: Tensor, work: DeviceList, *, backend: Backend = "auto") -> None:
    """Give every row that goes on the next place of its last page, or the first of the page after it.

    Args:
        tails: int32 [R], entry of each row's last page in ``work.page``; the pages it may use follow it.
        work: a work list that was cut with room to grow; its pages and positions are changed.
    """
    check_shape("tails", tails, (len(rows.done),))
    check_shape("row_pos", work.row_pos, (len(rows.done),))
    if pick(backend, rows.done) == "triton":
        return triton_ops().grow(rows, tails, work)
    reference.grow(rows, tails, work.page, work.row_pos)
