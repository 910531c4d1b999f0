"""Scores of steps: gather rows, final norm, one or two columns, link; and the best of each group, on the device.

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
    norm_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    eps,
    offset,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
):
    """Grid (scores,). weight [COLUMNS, N]; one column: sigmoid(z0); two: softmax(z)[1] = sigmoid(z1 - z0)."""
    j = tl.program_id(0)
    n = tl.arange(0, BLOCK)
    ok = n < N
    x = tl.load(x_ptr + tl.load(row_ptr + j).to(tl.int64) * N + n, mask=ok, other=0.0).to(tl.float32)
    if NORM:
        weight = tl.load(norm_ptr + n, mask=ok, other=0.0).to(tl.float32) + offset
        x = x * tl.rsqrt(tl.sum(x * x, 0) / N + eps) * weight
    if RELU:
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    z = tl.sum(x * tl.load(weight_ptr + n, mask=ok, other=0.0).to(tl.float32), 0)
    if BIAS:
        z += tl.load(bias_ptr).to(tl.float32)
    if COLUMNS == 2:
        second = tl.sum(x * tl.load(weight_ptr + N + n, mask=ok, other=0.0).to(tl.float32), 0)
        if BIAS:
            second += tl.load(bias_ptr + 1).to(tl.float32)
        z = second - z
    tl.store(out_ptr + j, 1.0 / (1.0 + tl.exp(-z)))


def score_rows(
    x: Tensor,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Tensor | None,
    *,
    eps: float,
    offset: float,
    relu: bool,
) -> Tensor:
    """float32 [S] of x[rows]; shapes as in ``ops.score_rows``."""
    n_scores, width = len(rows), x.shape[1]
    out = torch.empty(n_scores, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(width)
    score_kernel[(n_scores,)](
        x,
        rows,
        x if norm is None else norm,
        weight,
        x if bias is None else bias,
        out,
        eps,
        offset,
        N=width,
        BLOCK=block,
        COLUMNS=weight.shape[0],
        NORM=norm is not None,
        BIAS=bias is not None,
        RELU=relu,
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
