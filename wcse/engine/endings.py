"""Why a node ends with a token, and what a stop string takes away again. Knows rows, nothing of trees or models."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from wcse import _core
from wcse.engine.growth import Row
from wcse.engine.machines import DELIMITED, STOPPED
from wcse.types import Finish


def to_look_at(numbers: np.ndarray, flags: np.ndarray, eos_ids: Collection[int]) -> np.ndarray:
    """The rows, int64, of which somebody must hear or for which ``finish_of`` could say anything; mostly none.

    Args:
        numbers: of a ``RowTable``, with the newest tokens.
        flags: uint8 [R], what the text matcher found.
        eos_ids: tokens that end a text.
    """
    last = numbers["last"]
    found = (flags != 0) | (last < 0) | (numbers["count"] >= numbers["limit"]) | numbers["watched"]
    for token in eos_ids:
        found |= last == token
    return np.flatnonzero(found)


def finish_of(row: Row, token: int, flag: int, eos_ids: Collection[int], context: int) -> Finish | None:
    """Why the row's node ends with ``token``, if it does.

    Args:
        row: ``token`` and its log-probability are its last.
        token: -1 where none could be drawn.
        flag: what the text matcher found, ``DELIMITED`` and ``STOPPED``.
        eos_ids: tokens that end a text.
        context: most tokens of a path.
    """
    root, params, count = row.root, row.root.params, len(row.span.tokens)
    if token < 0 or not math.isfinite(row.logprobs[-1]):
        return Finish.ERROR
    if token in params.stop_token_ids or (token in eos_ids and not params.ignore_eos):
        return Finish.EOS
    if flag & STOPPED and row.length + count > params.min_tokens:
        return Finish.EOS
    if row.length + count >= params.most_tokens:
        return Finish.PATH_CAP
    if row.span.depth >= context:
        return Finish.CTX
    spent = root.stopped or (row.most is not None and row.length + count >= row.most)
    if spent and (row.growth.to_end or not flag & DELIMITED):
        return Finish.BUDGET
    if flag & DELIMITED:
        return Finish.DELIM
    if root.rule.max_tokens and count >= root.rule.max_tokens:
        return Finish.STEP_CAP
    return None


def cut(
    row: Row, eos_ids: Collection[int], matcher: _core.TextMatcher, table: Sequence[bytes]
) -> tuple[str | int | None, int]:
    """Cut ids and log-probabilities of a row that ended, before a completed stop string.

    Returns:
        What stopped the row, as vLLM's ``stop_reason``, and how many tokens went.
    """
    token, params = row.span.tokens[-1], row.root.params
    if token in eos_ids and not params.ignore_eos:
        return None, 0
    if token in params.stop_token_ids:
        return token, 0
    which, excess = matcher.stop(row.slot)
    if params.include_stop_str_in_output:
        return params.stop[which], 0
    # Whole tokens go, back to the one in which the stop string begins: text == decode(ids) stays true.
    before = len(row.span.tokens)
    while excess > 0 and row.span.tokens:
        excess -= len(table[row.span.tokens.pop()])
        row.logprobs.pop()
    return params.stop[which], before - len(row.span.tokens)
