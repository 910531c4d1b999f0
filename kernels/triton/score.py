"""Scores of steps: gather rows, one or two columns, link, sums along paths; the best of each group, on the device.

One program a row or a group. No logits of the vocabulary, nothing waits for the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

import triton
import triton.language as tl


@triton.jit
def score_kernel(
    x_ptr,
    row_ptr,
    weight_ptr,
    bias_ptr,
    known_ptr,
    above_ptr,
    out_ptr,
    n_known,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    BOUNDED: tl.constexpr,
):
    """Grid (scores,). weight [COLUMNS, N]; z = z0 of one column, z1 - z0 of two; sigmoid(z) if BOUNDED, else z.

    A program computes the steps above its own that are in the batch, too (rarely any), so that none waits for another.
    """
    j = tl.program_id(0)
    n = tl.arange(0, BLOCK)
    ok = n < N
    first = tl.load(weight_ptr + n, mask=ok, other=0.0).to(tl.float32)
    if COLUMNS == 2:
        second = tl.load(weight_ptr + N + n, mask=ok, other=0.0).to(tl.float32)
    steps = 1
    place = tl.load(above_ptr + j)
    while place >= n_known:
        place = tl.load(above_ptr + place - n_known)
        steps += 1
    path_ptr = known_ptr + place.to(tl.int64) * 5
    score = tl.load(path_ptr, mask=place >= 0, other=float("nan"))
    least = tl.load(path_ptr + 1, mask=place >= 0, other=float("inf"))
    logs = tl.load(path_ptr + 2, mask=place >= 0, other=0.0)
    total = tl.load(path_ptr + 3, mask=place >= 0, other=0.0)
    count = tl.load(path_ptr + 4, mask=place >= 0, other=0.0)
    for step in range(steps):
        at = j
        for _ in range(steps - 1 - step):
            at = tl.load(above_ptr + at) - n_known
        x = tl.load(x_ptr + tl.load(row_ptr + at).to(tl.int64) * N + n, mask=ok, other=0.0).to(tl.float32)
        if RELU:
            x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        z = tl.sum(x * first, 0)
        if BIAS:
            z += tl.load(bias_ptr).to(tl.float32)
        if COLUMNS == 2:
            other = tl.sum(x * second, 0)
            if BIAS:
                other += tl.load(bias_ptr + 1).to(tl.float32)
            z = other - z
        if BOUNDED:
            z = 1.0 / (1.0 + tl.exp(-z))
        score = z.to(tl.float64)
        least = tl.where((least <= score) | (least != least), least, score)
        log = tl.log(tl.where(score > 0, score, 1.0))
        logs += tl.where(score > 0, log, tl.where(score == 0, -float("inf"), float("nan")))
        total += score
        count += 1.0
    tl.store(out_ptr + j * 5, score)
    tl.store(out_ptr + j * 5 + 1, least)
    tl.store(out_ptr + j * 5 + 2, logs)
    tl.store(out_ptr + j * 5 + 3, total)
    tl.store(out_ptr + j * 5 + 4, count)


def score_rows(
    x: Tensor,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    known: Tensor,
    above: Tensor,
    *,
    relu: bool,
    bounded: bool,
) -> Tensor:
    """float64 [S, 5] of x[rows], x [T, N], weight [1 or 2, N], after the paths in ``known`` [K, 5]."""
    n_scores, width = len(rows), x.shape[1]
    out = torch.empty((n_scores, 5), dtype=torch.float64, device=x.device)
    block = triton.next_power_of_2(width)
    score_kernel[(n_scores,)](
        x,
        rows,
        weight,
        x if bias is None else bias,
        known,
        above,
        out,
        len(known),
        N=width,
        BLOCK=block,
        COLUMNS=weight.shape[0],
        BIAS=bias is not None,
        RELU=relu,
        BOUNDED=bounded,
        num_warps=max(1, min(16, block // 512)),
    )
    return out


@triton.jit
def group_top_k_kernel(score_ptr, bound_ptr, out_ptr, K: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (groups,). The K times best of scores[bound[g]:bound[g + 1]]; NaN last, lower places first."""
    g = tl.program_id(0)
    begin = tl.load(bound_ptr + g)
    size = tl.load(bound_ptr + g + 1) - begin
    n = tl.arange(0, BLOCK)
    x = tl.load(score_ptr + begin + n, mask=n < size, other=0.0)
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    key = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    # One number a place: larger score first, then lower place; taken and missing places are negative for good.
    key = ((tl.where(x != x, -(1 << 31), key) + (1 << 31)) << 20) + (BLOCK - 1 - n)
    key = tl.where(n < size, key, -1)
    for i in range(K):
        best = tl.max(key, 0)
        place = BLOCK - 1 - (best & ((1 << 20) - 1)).to(tl.int32)
        tl.store(out_ptr + g * K + i, tl.where(best < 0, -1, begin + place))
        key = tl.where(n == place, -1, key)


def group_top_k(scores: Tensor, bounds: Tensor, k: int, *, largest_group: int) -> Tensor:
    """int32 [groups, k] of places in ``scores``, best first; -1 where a group has fewer."""
    groups = len(bounds) - 1
    out = torch.empty((groups, k), dtype=torch.int32, device=scores.device)
    block = triton.next_power_of_2(max(1, largest_group))
    group_top_k_kernel[(groups,)](
        scores, bounds, out, K=k, BLOCK=block, num_warps=max(1, min(8, block // 128))
    )
    return out
