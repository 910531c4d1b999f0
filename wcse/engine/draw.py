"""Draws the next token of every row from its logits, after each row's own rules, with log-probabilities.

Log-probabilities are always of the raw logits. Knows rows of numbers, nothing of trees or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wcse.engine.params import SamplingParams
from wcse.engine.rules import Guide
from wcse.kernels import ops
from wcse.kernels.copies import take_rows

TOP_ROWS = 64  # rows of the vocabulary sorted at once

Top = dict[int, tuple[float, int]]
"""Token id -> (log-probability, rank); the written token first, then the most likely ones."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What one row wants: parameters, the key and counter of its random number, and its rules."""

    params: SamplingParams
    temperature: float
    key: int
    counter: int
    guide: Guide | None
    tops: bool  # somebody listens to the likeliest tokens


def draw(
    logits: Tensor, index: Sequence[int], draws: Sequence[Draw], *, backend: ops.Backend = "auto"
) -> tuple[np.ndarray, list[float], dict[int, Top]]:
    """Draw ``draws[j]`` from ``logits[index[j]]``.

    Args:
        logits: float32 [R, vocabulary]; not changed.

    Returns:
        Tokens int32 [len(draws)] (-1 where the logits are broken or nothing is allowed), their
        log-probabilities, and by number of the draw what ``params.logprobs`` asked for.
    """
    at = np.asarray(index, dtype=np.int32)
    plain = [j for j, d in enumerate(draws) if d.guide is None]
    ruled = [j for j, d in enumerate(draws) if d.guide is not None]
    if not ruled:
        tokens, logprobs = _sample(logits, at, draws, backend)
    else:
        tokens, logprobs = np.empty(len(draws), np.int32), np.empty(len(draws), np.float32)
        if plain:
            tokens[plain], logprobs[plain] = _sample(logits, at[plain], [draws[j] for j in plain], backend)
        changed = take_rows(logits, at[ruled]).float().cpu()  # rules are numpy, which lacks bfloat16
        raw = changed.clone()
        for row, j in zip(changed.numpy(), ruled, strict=True):
            guide = draws[j].guide
            assert guide is not None
            guide.apply(row)
        order = np.arange(len(ruled), dtype=np.int32)
        found, _ = _sample(changed, order, [draws[j] for j in ruled], "auto")
        tokens[ruled] = found
        true = ops.token_logprobs(raw, torch.from_numpy(np.maximum(found, 0))).numpy()
        logprobs[ruled] = np.where(found < 0, np.nan, true)
    return tokens, logprobs.tolist(), _tops(logits, at, tokens, draws)


def _sample(
    logits: Tensor, at: np.ndarray, draws: Sequence[Draw], backend: ops.Backend
) -> tuple[np.ndarray, np.ndarray]:
    n = len(draws)
    tokens, logprobs = ops.sample(
        logits,
        torch.from_numpy(at),
        torch.from_numpy(np.fromiter((d.temperature for d in draws), np.float32, n)),
        torch.from_numpy(np.fromiter((d.params.top_k for d in draws), np.int32, n)),
        torch.from_numpy(np.fromiter((d.params.top_p for d in draws), np.float32, n)),
        torch.from_numpy(np.fromiter((d.params.min_p for d in draws), np.float32, n)),
        torch.from_numpy(np.fromiter((d.key for d in draws), np.uint64, n).view(np.int64)),
        torch.from_numpy(np.fromiter((d.counter for d in draws), np.int32, n)),
        backend=backend,
    )
    return tokens.cpu().numpy(), logprobs.cpu().numpy()


def _tops(logits: Tensor, at: np.ndarray, tokens: np.ndarray, draws: Sequence[Draw]) -> dict[int, Top]:
    wanted = [j for j, d in enumerate(draws) if d.tops and d.params.logprobs is not None and tokens[j] >= 0]
    found: dict[int, Top] = {}
    for begin in range(0, len(wanted), TOP_ROWS):
        part = wanted[begin : begin + TOP_ROWS]
        counts = [draws[j].params.logprobs or 0 for j in part]
        tops = top_logprobs(take_rows(logits, at[part]), tokens[part].tolist(), counts)
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
