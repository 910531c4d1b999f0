"""Scores of steps: gather rows, one or two columns, link, sums along paths; then the best paths of each group.

One program a row, then one a group. No logits of the vocabulary, nothing waits for the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

import triton
import triton.language as tl

if TYPE_CHECKING:
    from wcse.kernels.ops import Groups


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
def path_value(path_ptr, how, ok):
    """What paths [BLOCK, 5] at ``path_ptr`` are ranked by; NaN is -inf."""
    last = tl.load(path_ptr, mask=ok, other=0.0)
    least = tl.load(path_ptr + 1, mask=ok, other=0.0)
    logs = tl.load(path_ptr + 2, mask=ok, other=0.0)
    mean = tl.load(path_ptr + 3, mask=ok, other=0.0) / tl.load(path_ptr + 4, mask=ok, other=1.0)
    value = tl.where(how == 0, last, tl.where(how == 1, least, tl.where(how == 2, tl.exp(logs), mean)))
    return tl.where(value != value, -float("inf"), value)


@triton.jit
def enter_kernel(
    path_ptr, group_ptr, order_ptr, best_ptr, bound_ptr, how_ptr, out_ptr, n_steps, BLOCK: tl.constexpr
):
    """Grid (groups,). The places of the group and the steps that are candidates of it, ranked by counting: each goes
    where as many are better as there are places before it. BLOCK covers the places of the largest group and all steps.
    """
    g = tl.program_id(0)
    how = tl.load(how_ptr + g)
    begin = tl.load(bound_ptr + g)
    places = tl.load(bound_ptr + g + 1) - begin
    n = tl.arange(0, BLOCK)
    held = n < places
    step = n - places
    new = (step >= 0) & (step < n_steps)
    new = new & (tl.load(group_ptr + step, mask=new, other=-1) == g)
    value = tl.load(best_ptr + 2 * (begin + n), mask=held, other=-float("inf"))
    value = tl.where(new, path_value(path_ptr + 5 * step, how, new), value)
    order = tl.load(best_ptr + 2 * (begin + n) + 1, mask=held, other=float("inf"))
    order = tl.where(new, tl.load(order_ptr + step, mask=new, other=0.0), order)
    rank = tl.zeros([BLOCK], tl.int32)
    for i in range(places + n_steps):
        at = i - places
        mine = (at < 0) | (tl.load(group_ptr + at, mask=at >= 0, other=-1) == g)
        place_ptr = best_ptr + 2 * (begin + i)
        its_value = tl.load(place_ptr, mask=at < 0, other=0.0)
        its_order = tl.load(place_ptr + 1, mask=at < 0, other=0.0)
        if at >= 0:
            its_value = path_value(path_ptr + 5 * at, how, at >= 0)
            its_order = tl.load(order_ptr + at)
        before = (its_order < order) | ((its_order == order) & (i < n))
        better = (its_value > value) | ((its_value == value) & before)
        rank += tl.where(better & mine, 1, 0)
    kept = (held | new) & (rank < places)
    tl.store(out_ptr + 2 * (begin + rank), value, mask=kept)
    tl.store(out_ptr + 2 * (begin + rank) + 1, order, mask=kept)


def enter_groups(paths: Tensor, groups: Groups) -> None:
    """Enter float64 paths [S, 5] in ``groups.best``."""
    ranked = torch.empty_like(groups.best)
    block = triton.next_power_of_2(len(groups.best) + len(paths))
    enter_kernel[(len(groups.how),)](
        paths,
        groups.group,
        groups.order,
        groups.best,
        groups.bounds,
        groups.how,
        ranked,
        len(paths),
        BLOCK=block,
        num_warps=max(1, min(8, block // 128)),
    )
    groups.best.copy_(ranked)
