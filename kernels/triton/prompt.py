"""A long prompt that stands alone: all rows on one path, read by the vendor's causal attention (torch's SDPA).

Tree attention has nothing to share there; a fused kernel that is made for long queries is faster. Knows paths only.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from wcse import _core

LEAST = 512
"""Rows from which a path counts as long."""


def path_slots(plan: _core.Plan) -> np.ndarray | None:
    """Slots int64 [tokens] of the path when all rows are the last tokens of one; None when they are not."""
    nodes = plan.nodes
    if (np.asarray(nodes.hi) != plan.n_rows).any():
        return None
    positions = np.asarray(plan.positions)
    tokens = int(np.asarray(nodes.length).sum())
    if not np.array_equal(positions, np.arange(tokens - plan.n_rows, tokens)):
        return None
    pages = np.asarray(plan.pages).astype(np.int64)
    parts = []
    for begin, length in zip(nodes.page_begin.tolist(), nodes.length.tolist(), strict=True):
        at = np.arange(length)
        parts.append(pages[begin + at // 16] * 16 + at % 16)
    return np.concatenate(parts)


def attend_path(q: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor, *, scale: float) -> Tensor:
    """Causal attention of q [T, Hq, d], the last T of the tokens at ``slots``. Pools as in ``ops``.

    Keys and values are gathered from their pages: one read and one write of each.
    """
    page, offset = slots // 16, slots % 16
    keys = k_pages[page, :, :, offset].transpose(0, 1)[None]  # [1, Hkv, tokens, d]
    values = v_pages[page, :, offset, :].transpose(0, 1)[None]
    tokens, rows = len(slots), len(q)
    bias = None if rows == tokens else causal_lower_right(rows, tokens)
    group = q.shape[1] // keys.shape[1]
    if bias is not None and group > 1:  # this bias has no enable_gqa
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        keys,
        values,
        attn_mask=bias,
        is_causal=bias is None,
        scale=scale,
        enable_gqa=bias is None,
    )
    return out[0].transpose(0, 1).contiguous()
