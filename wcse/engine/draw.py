"""Draws the next token of every row from its logits, after each row's own rules, with log-probabilities.

Log-probabilities are always of the raw logits. Knows rows of numbers, nothing of trees or text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wcse.engine.rules import Guide
from wcse.kernels import ops
from wcse.kernels.copies import take_rows

TOP_ROWS = 64  # rows of the vocabulary sorted at once

Top = dict[int, tuple[float, int]]
"""Token id -> (log-probability, rank); the written token first, then the most likely ones."""


@dataclass(slots=True)
class Draws:
    """What each of D rows wants: how it draws, its random number, its rules."""

    temperature: Tensor  # float32 [D]
    top_k: Tensor  # int32 [D]
    top_p: Tensor  # float32 [D]
    min_p: Tensor  # float32 [D]
    keys: Tensor  # int64 [D], of the random number
    counters: Tensor  # int32 [D], of the random number
    guides: Mapping[int, Guide]  # of the rows that have rules, in rising order
    likeliest: Mapping[int, int]  # of the rows that want likely tokens, how many (-1: all)

    @property
    def numbers(self) -> tuple[Tensor, ...]:
        """What ``ops.sample`` takes after the logits and their rows."""
        return (self.temperature, self.top_k, self.top_p, self.min_p, self.keys, self.counters)

    def take(self, rows: np.ndarray) -> Draws:
        """Those of some rows, int64 [D'], in rising order."""
        if len(rows) == len(self.keys):
            return self
        new = {row: i for i, row in enumerate(rows.tolist())}
        temperature, top_k, top_p, min_p, keys, counters = (take_rows(part, rows) for part in self.numbers)
        guides = {new[row]: guide for row, guide in self.guides.items() if row in new}
        likeliest = {new[row]: count for row, count in self.likeliest.items() if row in new}
        return Draws(temperature, top_k, top_p, min_p, keys, counters, guides, likeliest)


def draw(
    logits: Tensor, index: np.ndarray, draws: Draws, *, backend: ops.Backend = "auto"
) -> tuple[np.ndarray, np.ndarray, dict[int, Top]]:
    """Draw row j from ``logits[index[j]]``.

    Args:
        logits: float32 [R, vocabulary]; not changed.
        index: int32 [D].

    Returns:
        Tokens int32 [D] (-1 where the logits are broken or nothing is allowed), their log-probabilities float32
        [D], and by row what it wants of ``likeliest``.
    """
    if not draws.guides:
        tokens, logprobs = _sample(logits, index, draws.numbers, backend)
        return tokens, logprobs, _tops(logits, index, tokens, draws)
    tokens, logprobs = np.empty(len(index), np.int32), np.empty(len(index), np.float32)
    ruled = np.fromiter(draws.guides, np.int64, len(draws.guides))
    plain = np.setdiff1d(np.arange(len(index)), ruled)
    if len(plain):
        asked = tuple(take_rows(part, plain) for part in draws.numbers)
        tokens[plain], logprobs[plain] = _sample(logits, index[plain], asked, backend)
    changed = take_rows(logits, index[ruled]).float().cpu()  # rules are numpy, which lacks bfloat16
    raw = changed.clone()
    for row, guide in zip(changed.numpy(), draws.guides.values(), strict=True):
        guide.apply(row)
    asked = tuple(take_rows(part, ruled) for part in draws.numbers)
    found, _ = _sample(changed, np.arange(len(ruled), dtype=np.int32), asked, "auto")
    tokens[ruled] = found
    true = ops.token_logprobs(raw, torch.from_numpy(np.maximum(found, 0))).numpy()
    logprobs[ruled] = np.where(found < 0, np.nan, true)
    return tokens, logprobs, _tops(logits, index, tokens, draws)


def draw_parts(
    parts: Iterable[Tensor], index: np.ndarray, draws: Draws, *, backend: ops.Backend = "auto"
) -> tuple[np.ndarray, np.ndarray, dict[int, Top]]:
    """``draw`` from logits that come some rows at a time, each part gone when the next one is there."""
    tokens, logprobs = np.empty(len(index), np.int32), np.empty(len(index), np.float32)
    tops: dict[int, Top] = {}
    begin = 0
    for logits in parts:
        mine = np.flatnonzero((index >= begin) & (index < begin + len(logits)))
        found = draw(logits, index[mine] - np.int32(begin), draws.take(mine), backend=backend)
        tokens[mine], logprobs[mine] = found[:2]
        tops.update((int(mine[row]), top) for row, top in found[2].items())
        begin += len(logits)
    return tokens, logprobs, tops


def _sample(
    logits: Tensor, index: np.ndarray, asked: tuple[Tensor, ...], backend: ops.Backend
) -> tuple[np.ndarray, np.ndarray]:
    temperature, top_k, top_p, min_p, keys, counters = asked
    rows = torch.from_numpy(index)
    tokens, logprobs = ops.sample(
        logits, rows, temperature, top_k, top_p, min_p, keys, counters, backend=backend
    )
    return tokens.cpu().numpy(), logprobs.cpu().numpy()


def _tops(logits: Tensor, index: np.ndarray, tokens: np.ndarray, draws: Draws) -> dict[int, Top]:
    wanted = [row for row in draws.likeliest if tokens[row] >= 0]
    found: dict[int, Top] = {}
    for begin in range(0, len(wanted), TOP_ROWS):
        part = wanted[begin : begin + TOP_ROWS]
        counts = [draws.likeliest[row] for row in part]
        tops = top_logprobs(take_rows(logits, index[part]), tokens[part].tolist(), counts)
        found.update(zip(part, tops, strict=True))
    return found


def top_logprobs(logits: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[Top]:
    """The log-probability of ``tokens[i]`` and of the ``counts[i]`` most likely tokens (-1: all) of each row.

    Args:
        logits: float32 [R, vocabulary].
    """
    logprobs = logits.cpu().double().log_softmax(-1).float()
    own = logprobs.gather(1, torch.tensor(tokens)[:, None])
    ranks = ((logprobs > own).sum(-1) + 1).tolist()
    vocab = logits.shape[1]
    most = [vocab if count < 0 else min(count, vocab) for count in counts]
    values, ids = logprobs.topk(max(most, default=0))
    result = []
    for i, token in enumerate(tokens):
        top: Top = {token: (own[i, 0].item(), ranks[i])}
        likely = zip(ids[i, : most[i]].tolist(), values[i, : most[i]].tolist(), strict=True)
        for rank, (other, logprob) in enumerate(likely, 1):
            top.setdefault(other, (logprob, rank))
        result.append(top)
    return result
