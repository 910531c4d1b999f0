"""Attention over the tree, and the write of keys and values that precedes it.

Knows nothing of models, trees or engines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wcse import _core
from wcse.kernels import reference
from wcse.kernels.ops.common import (
    F32,
    I32,
    Backend,
    address,
    check,
    check_pages,
    check_shape,
    pick,
    triton_ops,
)
from wcse.kernels.reference import PAGE
from wcse.kernels.scaled import ScaledPages
from wcse.types import WcseError

if TYPE_CHECKING:
    from wcse.kernels.triton.work import DevicePlan


def tree_attention(
    q: Tensor,
    k_pages: Tensor | ScaledPages,
    v_pages: Tensor | ScaledPages,
    plan: _core.Plan | DevicePlan,
    *,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    backend: Backend = "auto",
) -> Tensor:
    """Attention of every row over its own path of the tree; each shared page is read once per tile of rows.

    Args:
        q: [T, Hq, d] queries, rows in the order of ``plan``; d a multiple of 8 from 8 to 256.
        k_pages: [P, Hkv, d, 16] keys, transposed inside a page. Query head h reads head h // (Hq // Hkv). For
            Triton a transposed view of keys stored as [P, Hkv, 16, d]. The native kernel takes pools of float32 or
            float16, which count as the floats that they hold.
        v_pages: [P, Hkv, 16, d] values. Pages are contiguous, and as far apart as one likes. For Triton keys and values
            must be finite everywhere in the pools. Both may be ``ScaledPages`` (8 bits), except for the native kernel.
        plan: the plan of this step; for Triton best one that ``device_plan`` made, once for all layers.
        scale: factor of the scores, usually d ** -0.5.
        softcap: scores become softcap * tanh(score / softcap); 0 turns it off.
        window: a row at position p sees keys at positions > p - window; 0 turns it off.

    Returns:
        [T, Hq, d]. Native: a row's bits do not depend on the other rows, nor on threads. Triton: the same call gives
        the same bits; another batch may round differently. float32 sums; float32 queries use no TF32.

    Raises:
        WcseError: a tensor, the plan or an option does not fit.
    """
    n_rows, n_heads, head_dim = q.shape
    n_pages, n_kv = k_pages.shape[:2]
    check_shape("k_pages", k_pages, (n_pages, n_kv, head_dim, PAGE))
    check_shape("v_pages", v_pages, (n_pages, n_kv, PAGE, head_dim))
    if n_rows != plan.n_rows:
        raise WcseError(f"q has {n_rows} rows but the plan has {plan.n_rows}; pass the plan of this step")
    if n_kv == 0 or n_heads % n_kv:
        raise WcseError(f"q has {n_heads} heads; expected a multiple of the {n_kv} heads of k_pages")
    if softcap < 0 or window < 0:
        raise WcseError(f"softcap={softcap}, window={window}: must not be negative; 0 turns them off")
    kind = pick(backend, q)
    if kind == "triton":
        return triton_ops().tree_attention(
            q, k_pages, v_pages, plan, scale=scale, softcap=softcap, window=window
        )
    plan = plan if isinstance(plan, _core.Plan) else plan.plan
    if kind == "torch":
        return reference.tree_attention(
            q, k_pages, v_pages, plan, scale=scale, softcap=softcap, window=window
        )
    if head_dim % 8 or not 8 <= head_dim <= 256:
        raise WcseError(f"q has head size {head_dim}; the native kernel takes multiples of 8 up to 256")
    k_pages, v_pages = _plain(k_pages), _plain(v_pages)
    check("q", q, F32, (n_rows, n_heads, head_dim))
    half = check_pages(k_pages, v_pages, (n_pages, n_kv), head_dim)
    out = torch.empty_like(q)
    try:
        _core.tree_attention(
            plan,
            q.data_ptr(),
            k_pages.data_ptr(),
            v_pages.data_ptr(),
            out.data_ptr(),
            n_heads,
            n_kv,
            head_dim,
            n_pages,
            k_pages.stride(0),
            scale,
            softcap,
            window,
            half,
            torch.get_num_threads(),
        )
    except ValueError as error:  # the plan reads pages that the pool does not have
        raise WcseError(str(error)) from None
    return out


def _plain(pages: Tensor | ScaledPages) -> Tensor:
    """Pages for the native kernels."""
    if isinstance(pages, ScaledPages):
        raise WcseError(
            "pages of 8 bits are for the backends 'triton' and 'torch'; the native kernels take float32"
        )
    return pages


def device_plan(
    plan: _core.Plan,
    device: torch.device,
    *,
    n_heads: int,
    n_kv: int,
    head_dim: int,
    dtype: torch.dtype,
) -> DevicePlan:
    """A plan with its work lists in device memory, for Triton; made once a step and passed to every layer."""
    from wcse.kernels.triton.rates import device_rates
    from wcse.kernels.triton.work import DevicePlan

    return DevicePlan(plan, device, n_heads // n_kv, n_kv, head_dim, dtype, rates=device_rates(device))


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
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    norm_offset: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """Split fused QKV, normalise heads (optional), rotate, and write K and V to their slots in the pools.

    Args:
        qkv: [T, (Hq + 2 Hkv) * d]: query heads, then key heads, then value heads.
        positions: int32 [T], absolute; rows of ``cos`` and ``sin``.
        slots: int32 [T], page * 16 + offset; distinct.
        cos, sin: [Pmax, d / 2], half-split (Hugging Face) rotary tables.
        k_pages, v_pages: pools, written in place; see ``tree_attention``.
        q_norm, k_norm: [d] RMS-norm weights applied per head before the rotation; ``eps`` and ``norm_offset``
            as in ``rms_norm``.

    Returns:
        [T, Hq, d] rotated queries. A key or value that is not finite is stored as 0, so that it can spoil its
        own row only and never a neighbour that shares the page; in pools of float16 one that is too large is
        stored as the largest.

    Raises:
        WcseError: a tensor does not fit, or a position or slot lies outside the tables or pools (Triton does not
            look at their values: that would stop the device; a negative slot writes nothing there).
    """
    n_rows, width = qkv.shape
    n_all = n_heads + 2 * n_kv_heads
    if n_heads < 1 or n_kv_heads < 1 or width % n_all or width // n_all % 2:
        raise WcseError(
            f"qkv has {width} columns; expected ({n_heads} + 2 * {n_kv_heads}) heads of even size"
        )
    head_dim = width // n_all
    n_pages = k_pages.shape[0]
    k_shape = (n_pages, n_kv_heads, head_dim, PAGE)
    v_shape = (n_pages, n_kv_heads, PAGE, head_dim)
    kind = pick(backend, qkv)
    if kind != "cpp":
        check_shape("k_pages", k_pages, k_shape)
        check_shape("v_pages", v_pages, v_shape)
        run = triton_ops().rope_write_kv if kind == "triton" else reference.rope_write_kv
        return run(
            qkv,
            positions,
            slots,
            cos,
            sin,
            k_pages,
            v_pages,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            q_norm=q_norm,
            k_norm=k_norm,
            eps=eps,
            norm_offset=norm_offset,
        )
    if head_dim > 256:
        raise WcseError(f"qkv has heads of size {head_dim}; the native kernel takes up to 256")
    k_pages, v_pages = _plain(k_pages), _plain(v_pages)
    table = (cos.shape[0], head_dim // 2)
    check("qkv", qkv, F32, (n_rows, width))
    check("positions", positions, I32, (n_rows,))
    check("slots", slots, I32, (n_rows,))
    check("cos", cos, F32, table)
    check("sin", sin, F32, table)
    half = check_pages(k_pages, v_pages, (n_pages, n_kv_heads), head_dim)
    for name, weight in (("q_norm", q_norm), ("k_norm", k_norm)):
        if weight is not None:
            check(name, weight, F32, (head_dim,))
    q = torch.empty((n_rows, n_heads, head_dim))
    try:
        _core.rope_write_kv(
            qkv.data_ptr(),
            positions.data_ptr(),
            slots.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            address(q_norm),
            address(k_norm),
            q.data_ptr(),
            k_pages.data_ptr(),
            v_pages.data_ptr(),
            n_rows,
            n_heads,
            n_kv_heads,
            head_dim,
            table[0],
            n_pages,
            k_pages.stride(0),
            eps,
            norm_offset,
            half,
            torch.get_num_threads(),
        )
    except ValueError as error:  # a position or slot out of range; nothing was written
        raise WcseError(str(error)) from None
    return q
