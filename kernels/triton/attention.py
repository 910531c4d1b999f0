"""Tree attention: one pass of a tile of consecutive rows over a flat list of pages; and the merge of split lists.

Which row sees which token is added to the scores as 0 or -30000 by one more small matrix product,
one-hot(row) @ mask, so the softmax has no comparisons. A row that has seen nothing yet holds a maximum near -30000 and
finite rubbish, which its first visible token scales to exactly 0. So keys and values must be finite everywhere in the
pools, and scores far below 30000. Where a tile has more tree rows than ``ONE_HOT`` the mask is applied by selection.
Scores are in units of log2. Softmax state and sums are float32. (Online softmax: Milakov, Gimelshein,
arXiv:1805.02867; merging of partial states: Dao et al., "Flash-Decoding".)
"""

from __future__ import annotations

import torch
from torch import Tensor

import triton
import triton.language as tl
from wcse.kernels.triton.work import DeviceList, block_tokens

LOG2E = 1.4426950408889634
ONE_HOT = 32  # most tree rows of a tile that are masked by matrix product


@triton.jit
def tree_attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    out_ptr,
    part_ptr,
    part_lse_ptr,
    item_ptr,
    page_ptr,
    rows_ptr,
    pos_ptr,
    row_pos_ptr,
    stride_page,
    stride_scale,
    stride_head,
    scale_log2,
    cap_log2,
    window,
    G: tl.constexpr,
    M: tl.constexpr,
    BN: tl.constexpr,
    D: tl.constexpr,  # head size, and as a power of two:
    DP: tl.constexpr,
    HQ: tl.constexpr,
    E: tl.constexpr,  # tree rows of a tile, as a power of two; 0 masks by selection
    CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Grid (items, kv heads). q, out [T, HQ, D]; k, v pools [pages, kv heads, 16, D] by ``stride_page/head``.

    SCALED: keys and values have 8 bits, and each token and head a factor, float32 [pages, kv heads, 16] by
    ``stride_scale``. Factors of keys multiply columns of scores, those of values columns of weights.
    """
    item = item_ptr + tl.program_id(0) * 5
    h = tl.program_id(1)
    row0 = tl.load(item)
    n_rows = tl.load(item + 1)
    begin = tl.load(item + 2)
    end = tl.load(item + 3)

    m = tl.arange(0, M)
    d = tl.arange(0, DP)
    n = tl.arange(0, BN)
    leaf = m // G
    head = h * G + m % G
    live = m < n_rows * G
    at = ((row0 + leaf).to(tl.int64) * HQ + head) * D
    q_mask = live[:, None] & (d < D)[None, :]
    q = tl.load(q_ptr + at[:, None] + d[None, :], mask=q_mask, other=0.0).to(tl.float32)
    kind = q_ptr.dtype.element_ty
    q = (q * scale_log2).to(kind)
    if E > 0:
        e = tl.arange(0, E)
        one_hot = tl.where(e[None, :] == leaf[:, None], 1.0, 0.0).to(kind)
    else:
        e = leaf
    if WINDOW:
        first = tl.load(row_pos_ptr + row0 + e, mask=e < n_rows, other=0) - window + 1
    if CAP:
        cap_rate = 2.885390081777927 / cap_log2  # 2 log2(e) / cap_log2

    top = tl.full([M], -1e30, tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, DP], tl.float32)
    for p in tl.range(begin, end, BN // 16, num_stages=STAGES):
        entry = p + n // 16
        t = n % 16
        page = tl.load(page_ptr + entry)
        seen_by = tl.load(rows_ptr + entry)
        base = (page & 0x07FFFFFF).to(tl.int64) * stride_page + h * stride_head + t * D
        if DP == D:
            k = tl.load(k_ptr + base[:, None] + d[None, :])
            v = tl.load(v_ptr + base[:, None] + d[None, :])
        else:
            k = tl.load(k_ptr + base[:, None] + d[None, :], mask=(d < D)[None, :], other=0.0)
            v = tl.load(v_ptr + base[:, None] + d[None, :], mask=(d < D)[None, :], other=0.0)
        if SCALED:
            k = k.to(tl.float32).to(kind)
            v = v.to(tl.float32).to(kind)
            factor = (page & 0x07FFFFFF).to(tl.int64) * stride_scale + h * 16 + t
            k_factor = tl.load(k_scale_ptr + factor)
            v_factor = tl.load(v_scale_ptr + factor)
        low = tl.maximum(seen_by & 255, t + 1 - ((seen_by >> 16 & 255) - 128))
        high = tl.where(t < (page >> 27 & 31), seen_by >> 8 & 255, 0)
        if E > 0:  # [E, BN]
            see = (e[:, None] >= low[None, :]) & (e[:, None] < high[None, :])
            if WINDOW:
                see = see & ((tl.load(pos_ptr + entry) + t)[None, :] >= first[:, None])
            hidden = tl.where(see, 0.0, -30000.0).to(kind)
            if CAP or SCALED:
                s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
                if SCALED:
                    s = s * k_factor[None, :]
                if CAP:
                    s = cap_log2 - 2.0 * cap_log2 / (tl.exp2(s * cap_rate) + 1.0)  # cap * tanh(s / cap)
                s = tl.dot(one_hot, hidden, s, input_precision=PRECISION)
            else:
                s = tl.dot(one_hot, hidden, input_precision=PRECISION)
                s = tl.dot(q, tl.trans(k), s, input_precision=PRECISION)
        else:  # [M, BN]
            see = (e[:, None] >= low[None, :]) & (e[:, None] < high[None, :])
            if WINDOW:
                see = see & ((tl.load(pos_ptr + entry) + t)[None, :] >= first[:, None])
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            if SCALED:
                s = s * k_factor[None, :]
            if CAP:
                s = cap_log2 - 2.0 * cap_log2 / (tl.exp2(s * cap_rate) + 1.0)
            s = tl.where(see, s, -30000.0)
        new_top = tl.maximum(top, tl.max(s, 1))
        weight = tl.exp2(s - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weight, 1)
        if SCALED:
            weight = weight * v_factor[None, :]
        acc = tl.dot(weight.to(kind), v, acc * shrink[:, None], input_precision=PRECISION)
        top = new_top

    acc = acc / total[:, None]
    # The item is read again (volatile, so that it is) and places are computed again: carried through the loop they
    # would take the registers that let one more block share the processor.
    row0 = tl.load(item, volatile=True)
    n_rows = tl.load(item + 1, volatile=True)
    slot = tl.load(item + 4, volatile=True)
    live = m < n_rows * G
    out_mask = live[:, None] & (d < D)[None, :]
    place = (tl.where(slot < 0, row0, slot) + leaf).to(tl.int64) * HQ + head
    if slot < 0:
        tl.store(out_ptr + place[:, None] * D + d[None, :], acc.to(out_ptr.dtype.element_ty), mask=out_mask)
    else:
        kind = part_ptr.dtype.element_ty
        tl.store(part_ptr + place[:, None] * D + d[None, :], acc.to(kind), mask=out_mask)
        tl.store(part_lse_ptr + place, top + tl.log2(total), mask=live)


@triton.jit
def merge_kernel(
    part_ptr,
    part_lse_ptr,
    out_ptr,
    merge_ptr,
    D: tl.constexpr,
    DP: tl.constexpr,
    HQ: tl.constexpr,
    BH: tl.constexpr,
):
    """Weighted mean of a row's partial results in their order. Grid (rows, ceil(HQ / BH))."""
    row = tl.program_id(0)
    first = tl.load(merge_ptr + row * 3)
    step = tl.load(merge_ptr + row * 3 + 1)
    chunks = tl.load(merge_ptr + row * 3 + 2)
    if chunks == 0:
        return
    h = tl.program_id(1) * BH + tl.arange(0, BH)
    d = tl.arange(0, DP)
    ok = (h < HQ)[:, None] & (d < D)[None, :]
    top = tl.full([BH], -1e30, tl.float32)
    total = tl.zeros([BH], tl.float32)
    acc = tl.zeros([BH, DP], tl.float32)
    for i in range(0, chunks):
        at = (first + i * step).to(tl.int64) * HQ + h
        lse = tl.load(part_lse_ptr + at, mask=h < HQ, other=-1e30)
        x = tl.load(part_ptr + at[:, None] * D + d[None, :], mask=ok, other=0.0).to(tl.float32)
        new_top = tl.maximum(top, lse)
        old = tl.exp2(top - new_top)
        new = tl.exp2(lse - new_top)
        acc = acc * old[:, None] + x * new[:, None]
        total = total * old + new
        top = new_top
    out = out_ptr + (row.to(tl.int64) * HQ + h)[:, None] * D + d[None, :]
    tl.store(out, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=ok)


def tile_options(
    tile_m: int,
    group: int,
    head_dim: int,
    dtype: torch.dtype,
    window: int,
    softcap: float,
    heads: int,
    *,
    scaled: bool = False,
) -> dict[str, object]:
    """Constants and launch options of a tile; what the launcher and the ahead-of-time checks share.

    ``dtype`` is that of the queries; keys and values have it too, or 8 bits if ``scaled``.
    """
    rows = tile_m // group
    wide = head_dim > 128
    precision = "ieee" if torch.version.hip else "tf32x3"  # three products of TF32 are nearly float32
    return {
        "G": group,
        "M": tile_m,
        "BN": block_tokens(head_dim, dtype),
        "D": head_dim,
        "DP": max(16, triton.next_power_of_2(head_dim)),
        "HQ": heads,
        "E": max(16, triton.next_power_of_2(rows)) if rows <= ONE_HOT else 0,
        "CAP": softcap > 0,
        "WINDOW": window > 0,
        "PRECISION": precision if dtype is torch.float32 else "tf32",
        "SCALED": scaled,
        "STAGES": 2 if wide or dtype is torch.float32 else 3,
        "num_warps": 8 if tile_m == 128 or (wide and tile_m == 64) else 4,
    }


Scales = tuple[Tensor, Tensor] | None


def partials(q: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Memory for partial results, in the dtype of results, and their log-sum-exps; one of each at least, so that it has
    an address.
    """
    _, heads, head_dim = q.shape
    parts = torch.empty((max(1, slots), heads, head_dim), dtype=q.dtype, device=q.device)
    return parts, torch.empty((max(1, slots), heads), dtype=torch.float32, device=q.device)


def run_tiles(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    work: DeviceList,
    out: Tensor,
    parts: tuple[Tensor, Tensor],
    *,
    scale: float,
    softcap: float,
    window: int,
    scales: Scales = None,
) -> None:
    """All items of a work list: whole rows go to ``out``, partial ones to ``parts``."""
    heads, head_dim = q.shape[1:]
    kv_heads = k_pages.shape[1]
    options = tile_options(
        work.tile_m,
        heads // kv_heads,
        head_dim,
        q.dtype,
        window,
        softcap,
        heads,
        scaled=scales is not None,
    )
    tree_attention_kernel[(work.n_items, kv_heads)](
        q,
        k_pages,
        v_pages,
        *(scales or (parts[1], parts[1])),  # not read
        out,
        *parts,
        work.items,
        work.page,
        work.rows,
        work.pos,
        work.row_pos,
        v_pages.stride(0),
        scales[0].stride(0) if scales else 0,
        v_pages.stride(1),
        scale * LOG2E,
        softcap * LOG2E,
        window,
        **options,
    )


def run_merge(out: Tensor, parts: tuple[Tensor, Tensor], merge: Tensor) -> None:
    """Partial results to rows of ``out``; ``merge`` [3 rows] as in ``DeviceList``."""
    n_rows, heads, head_dim = out.shape
    block = min(16, triton.next_power_of_2(heads))
    padded = max(16, triton.next_power_of_2(head_dim))
    merge_kernel[(n_rows, triton.cdiv(heads, block))](
        *parts, out, merge, D=head_dim, DP=padded, HQ=heads, BH=block, num_warps=4
    )


def tree_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    work: DeviceList,
    *,
    scale: float,
    softcap: float,
    window: int,
    scales: Scales = None,
    out: Tensor | None = None,
) -> Tensor:
    """Launch the kernel and, where lists were split, the merge. Shapes as in ``ops.tree_attention``."""
    out = torch.empty_like(q) if out is None else out
    parts = partials(q, work.n_slots)
    options = {"scale": scale, "softcap": softcap, "window": window}
    run_tiles(q, k_pages, v_pages, work, out, parts, scales=scales, **options)
    if work.n_slots:
        run_merge(out, parts, work.merge)
    return out
