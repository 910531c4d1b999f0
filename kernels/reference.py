"""The meaning of every kernel in plain torch: slow, obvious, any float dtype (tests run it in float64).

Knows nothing of pointers, threads or instruction sets, and does not check its arguments; ``ops.py`` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wcse import _core
from wcse.kernels.scaled import ScaledPages, quantize_rows
from wcse.types import PathScores

PAGE = 16
"""Tokens in one page of the KV pools."""


def _path_tokens(plan: _core.Plan) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For every row: page, offset in the page and absolute position of the tokens it may see, root first."""
    names = ("lo", "hi", "page_begin", "page_end", "length", "seen", "pos")
    nodes = list(zip(*(getattr(plan.nodes, name).tolist() for name in names), strict=True))
    pages = torch.as_tensor(plan.pages).long()
    rows = []
    for row in range(plan.n_rows):
        parts = []
        for lo, hi, page_begin, page_end, length, seen, pos in nodes:
            if lo <= row < hi:
                token = torch.arange(min(length, seen + row - lo))
                parts.append((pages[page_begin:page_end][token // PAGE], token % PAGE, pos + token))
        page, offset, position = (torch.cat(column) for column in zip(*parts, strict=True))
        rows.append((page, offset, position))
    return rows


def tree_attention(
    q: Tensor,
    k_pages: Tensor | ScaledPages,
    v_pages: Tensor | ScaledPages,
    plan: _core.Plan,
    *,
    scale: float,
    softcap: float,
    window: int,
) -> Tensor:
    """Attention of each row over the tokens on its path. Shapes as in ``ops.tree_attention``."""
    if isinstance(k_pages, ScaledPages) and isinstance(v_pages, ScaledPages):
        k_pages, v_pages = k_pages.dense(q.dtype, keys=True), v_pages.dense(q.dtype, keys=False)
    n_heads, head_dim = q.shape[1:]
    n_kv = k_pages.shape[1]
    row_positions = plan.positions.tolist()
    out = torch.empty_like(q)
    for row, (pages, offsets, positions) in enumerate(_path_tokens(plan)):
        if window:
            seen = positions > row_positions[row] - window
            pages, offsets = pages[seen], offsets[seen]
        keys = k_pages[pages, :, :, offsets].to(q.dtype)  # [tokens, Hkv, d]
        values = v_pages[pages, :, offsets, :].to(q.dtype)
        grouped = q[row].view(n_kv, n_heads // n_kv, head_dim)
        scores = torch.einsum("hgd,nhd->hgn", grouped, keys) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        out[row] = torch.einsum("hgn,nhd->hgd", scores.softmax(-1), values).reshape(n_heads, head_dim)
    return out


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, offset: float) -> Tensor:
    """``x * rsqrt(mean(x^2) + eps) * (weight + offset)`` over the last dimension."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (weight + offset)


def add_rms_norm(residual: Tensor, x: Tensor, weight: Tensor, *, eps: float, offset: float) -> Tensor:
    """``residual += x`` in place; returns the norm of the sum."""
    residual.add_(x)
    return rms_norm(residual, weight, eps=eps, offset=offset)


def gated_act(gate_up: Tensor, *, act: str) -> Tensor:
    """Activation of the first half of the columns times the second half."""
    gate, up = gate_up.chunk(2, dim=-1)
    activated = F.silu(gate) if act == "silu" else F.gelu(gate, approximate="tanh")
    return activated * up


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """``x @ weight.T + bias + residual``."""
    out = F.linear(x, weight, bias)
    return out if residual is None else out + residual


def rounded(x: Tensor, group: int) -> Tensor:
    """``x`` [T, K] as the integer kernels take it: 8 bits a value, in float32, one scale per ``group`` inputs of a row.

    A code is ``x / scale`` rounded to the nearest (ties to even); ``scale`` is the largest magnitude / 127,
    both in float32. A group of magnitudes below 2^-120 is 0, one with a NaN or an infinity is NaN.
    """
    n_rows, k = x.shape
    groups = F.pad(x.float(), (0, -k % group)).view(n_rows, -1, group)
    top = groups.abs().amax(-1, keepdim=True)
    inverse = torch.full_like(top, 127) / top  # 127 / top would be 127 times a rounded reciprocal
    codes = torch.where(top >= 2.0**-120, (groups * inverse).round(), 0)
    values = torch.where(groups.isfinite().all(-1, keepdim=True), codes * (top / 127).to(x.dtype), math.nan)
    return values.view(n_rows, -1)[:, :k]


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotary embedding of ``x`` [T, H, d] with ``cos``/``sin`` [T, d/2]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rope_write_kv(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_pages: Tensor | ScaledPages,
    v_pages: Tensor | ScaledPages,
    *,
    n_heads: int,
    n_kv_heads: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    norm_offset: float,
) -> Tensor:
    """Split, optionally normalise, rotate; write K and V to their slots; return the rotated queries."""
    head_dim = qkv.shape[1] // (n_heads + 2 * n_kv_heads)
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    q, k, v = heads.split([n_heads, n_kv_heads, n_kv_heads], dim=1)
    if q_norm is not None:
        q = rms_norm(q, q_norm, eps=eps, offset=norm_offset)
    if k_norm is not None:
        k = rms_norm(k, k_norm, eps=eps, offset=norm_offset)
    position = positions.long()
    q, k = (rope(part, cos[position], sin[position]) for part in (q, k))
    page, offset = slots.long() // PAGE, slots.long() % PAGE
    # A value that is not finite would reach every later reader of its page (0 x NaN = NaN).
    if isinstance(k_pages, ScaledPages) and isinstance(v_pages, ScaledPages):
        for part, pages, stored in (
            (k, k_pages, k_pages.values.transpose(2, 3)),
            (v, v_pages, v_pages.values),
        ):
            numbers, pages.scale[page, :, offset] = quantize_rows(torch.where(part.isfinite(), part, 0))
            stored.view(torch.uint8)[page, :, offset, :] = numbers.view(torch.uint8)
        return q.contiguous()
    assert isinstance(k_pages, Tensor) and isinstance(v_pages, Tensor)
    k_pages[page, :, :, offset] = _storable(k, k_pages.dtype)
    v_pages[page, :, offset, :] = _storable(v, v_pages.dtype)
    return q.contiguous()


def _storable(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In ``dtype``; 0 where not finite, and the largest number where it is too large for that."""
    most = torch.finfo(dtype).max
    return torch.where(x.isfinite(), x, 0).clamp(-most, most).to(dtype)


_MASK32 = 0xFFFFFFFF


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 1 << 32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return c0, c1, c2, c3


def uniform(key: int, counter: int) -> float:
    """The draw in [0, 1), a multiple of 2^-24, of token ``counter`` of the node with this 64-bit key."""
    word = philox4x32((counter, 0, 0, 0), (key & _MASK32, key >> 32 & _MASK32))[0]
    return (word >> 8) * 2.0**-24


def kept_tokens(logits: Tensor, *, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Mask [V] of the tokens that may be drawn: min-p, then top-k, then top-p; lower ids first among equals."""
    weights = torch.exp((logits - logits.max()) / temperature)
    order = torch.sort(logits, descending=True, stable=True).indices
    ranked = weights[order]
    keep = ranked >= min_p
    if top_k > 0:
        keep &= torch.arange(len(ranked)) < top_k
    if top_p < 1:
        ranked = ranked * keep
        before = ranked.cumsum(0) - ranked
        keep &= before < top_p * ranked.sum()
        keep[0] = True
    return torch.zeros_like(keep).index_put_((order,), keep)


def sample_one(
    logits: Tensor, *, temperature: float, top_k: int, top_p: float, min_p: float, u: float
) -> tuple[int, float]:
    """One draw from one row [V]: the token and its log-probability under the raw logits."""
    top = logits.max()
    if not bool(torch.isfinite(top)):  # a NaN or +inf somewhere, or -inf everywhere
        return -1, math.nan
    if temperature == 0:
        token = int((logits == top).nonzero()[0])
    else:
        keep = kept_tokens(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        weights = torch.exp((logits - top) / temperature) * keep
        total = weights.cumsum(0)
        token = min(
            int(torch.searchsorted(total, u * total[-1], right=True)),
            int(weights.nonzero()[-1]),
        )
    return token, float(logits[token] - torch.logsumexp(logits, 0))


def sample(
    logits: Tensor,
    rows: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    keys: Tensor,
    counters: Tensor,
) -> tuple[Tensor, Tensor]:
    """One draw per entry of ``rows``. Shapes as in ``ops.sample``."""
    tokens, logprobs = [], []
    for i in range(len(rows)):
        token, logprob = sample_one(
            logits[int(rows[i])],
            temperature=float(temperature[i]),
            top_k=int(top_k[i]),
            top_p=float(top_p[i]),
            min_p=float(min_p[i]),
            u=uniform(int(keys[i]) & (1 << 64) - 1, int(counters[i])),
        )
        tokens.append(token)
        logprobs.append(logprob)
    return torch.tensor(tokens, dtype=torch.int32), torch.tensor(logprobs, dtype=torch.float32)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """The log-softmax of ``logits`` [R, V] at ``tokens`` [R]; NaN where a row is not finite at its top."""
    chosen = logits.gather(1, tokens.long()[:, None])[:, 0] - torch.logsumexp(logits, 1)
    return torch.where(torch.isfinite(logits.amax(1)), chosen, math.nan)


def score_steps(
    hidden: Tensor, rows: Tensor, layers: Sequence[tuple[Tensor, Tensor | None]], *, bounded: bool
) -> Tensor:
    """Gather, head and link. Shapes as in ``ops.score_steps``, weights dense."""
    x = hidden[rows.long()]
    for i, (weight, bias) in enumerate(layers):
        x = F.linear(x, weight, None if bias is None else bias.to(x.dtype))
        if i + 1 < len(layers):
            x = torch.relu(x)
    z = x[:, 1] - x[:, 0] if x.shape[1] == 2 else x[:, 0]
    return torch.sigmoid(z) if bounded else z


def path_scores(scores: Tensor, known: Tensor, above: Tensor) -> Tensor:
    """float64 [S, 5]: each score added to the path that ``above`` names. Shapes as in ``ops.score_steps``."""
    paths = list(known.double())
    empty = torch.tensor(PathScores(), dtype=torch.float64, device=scores.device)
    for score, place in zip(scores.double(), above.tolist(), strict=True):
        _, least, logs, total, steps = paths[place] if place >= 0 else empty
        paths.append(
            torch.stack([score, torch.minimum(least, score), logs + score.log(), total + score, steps + 1])
        )
    return torch.stack(paths[len(known) :]) if len(scores) else known.double()[:0]


def enter_groups(paths: Tensor, groups: Any) -> None:
    """Enter each path in its group, float64 [S, 5]. Shapes as in ``ops.scoring.Groups``."""
    last, least, logs, total, steps = paths.double().cpu().unbind(1)
    values = torch.stack([last, least, logs.exp(), total / steps]).nan_to_num(-math.inf, math.inf, -math.inf)
    bounds, group = groups.bounds.tolist(), groups.group.tolist()
    for g, how in enumerate(groups.how.tolist()):
        begin, end = bounds[g], bounds[g + 1]
        new = [(float(values[how, s]), float(groups.order[s])) for s in range(len(group)) if group[s] == g]
        old = [(value, order) for value, order in groups.best[begin:end].tolist()]
        ranked = sorted(old + new, key=lambda place: (-place[0], place[1]))
        groups.best[begin:end] = torch.tensor(ranked[: end - begin], dtype=torch.float64).reshape(-1, 2)


def advance(drawn: Tensor, logprobs: Tensor, rows: Any, table: Tensor) -> None:
    """See ``ops.advance``."""
    for r in range(len(drawn)):
        if rows.done[r]:
            continue
        token, count = int(drawn[r]), int(rows.counts[r])
        rows.written[count, r], rows.logprobs[count, r] = token, logprobs[r]
        rows.counts[r] += 1
        rows.left[r] -= 1
        rows.counters[r] += 1
        done = (token < 0) | (rows.left[r] <= 0) << 1 | (count + 1 >= len(rows.written)) << 2
        for m, state in enumerate(rows.machines[:, r].tolist()):
            entry = int(table[state, max(token, 0)]) & 0xFFFF
            rows.machines[m, r] = entry & 0x7FFF
            done |= (entry >> 15) << (3 + m)
        rows.done[r] = done
        if not done:
            rows.tokens[r] = token
            rows.positions[r] += 1


def grow(rows: Any, tails: Tensor, page: Tensor, row_pos: Tensor) -> None:
    """See ``ops.grow``."""
    for r in range(len(tails)):
        rows.slots[r] = -1
        if rows.done[r]:
            continue
        if int(page[tails[r]]) >> 27 & 31 == PAGE:
            tails[r] += 1
        entry = int(page[tails[r]])
        rows.slots[r] = (entry & 0x7FFFFFF) * PAGE + (entry >> 27 & 31)
        page[tails[r]] += 1 << 27
        row_pos[r] = rows.positions[r]
