"""RMS norm (with the residual's addition), gated activation, and rotary embedding with the write of keys and values.

One program a row (a row and head for the rotation); loads and stores once each, arithmetic in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

import triton
import triton.language as tl


@triton.jit
def rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    eps,
    offset,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
):
    """Grid (rows,). With ADD, residual += x, rounded to its dtype, comes first."""
    at = tl.program_id(0).to(tl.int64) * N + tl.arange(0, BLOCK)
    ok = tl.arange(0, BLOCK) < N
    x = tl.load(x_ptr + at, mask=ok, other=0.0).to(tl.float32)
    if ADD:
        kind = residual_ptr.dtype.element_ty
        x = (x + tl.load(residual_ptr + at, mask=ok, other=0.0).to(tl.float32)).to(kind)
        tl.store(residual_ptr + at, x, mask=ok)
        x = x.to(tl.float32)
    weight = tl.load(weight_ptr + tl.arange(0, BLOCK), mask=ok, other=0.0).to(tl.float32) + offset
    x = x * tl.rsqrt(tl.sum(x * x, 0) / N + eps) * weight
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), mask=ok)


def rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, *, eps: float, offset: float) -> Tensor:
    """The norm of x, or of ``residual += x``; [T, N]."""
    n_rows, width = x.shape
    out = torch.empty_like(x)
    block = triton.next_power_of_2(width)
    add = residual is not None
    rms_norm_kernel[(n_rows,)](
        x,
        residual if add else x,
        weight,
        out,
        eps,
        offset,
        N=width,
        BLOCK=block,
        ADD=add,
        num_warps=_warps(block),
    )
    return out


def _warps(block: int) -> int:
    """About sixteen numbers a thread, so that loads are wide and a row has few reductions across warps."""
    return max(1, min(16, block // 512))


@triton.jit
def gated_act_kernel(x_ptr, out_ptr, F: tl.constexpr, BLOCK: tl.constexpr, GELU: tl.constexpr):
    """Grid (rows, ceil(F / BLOCK)). x [T, 2F], gate first."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = column < F
    gate = tl.load(x_ptr + row * 2 * F + column, mask=ok, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * F + F + column, mask=ok, other=0.0).to(tl.float32)
    if GELU:  # x sigmoid(2 y) = x (1 + tanh y) / 2, y = sqrt(2 / pi) (x + 0.044715 x^3)
        gate = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    else:
        gate = gate * tl.sigmoid(gate)
    tl.store(out_ptr + row * F + column, (gate * up).to(out_ptr.dtype.element_ty), mask=ok)


def gated_act(gate_up: Tensor, *, act: str) -> Tensor:
    """[T, 2F] -> [T, F]."""
    n_rows, width = gate_up.shape
    out = gate_up.new_empty((n_rows, width // 2))
    block = min(1024, triton.next_power_of_2(width // 2))
    grid = (n_rows, triton.cdiv(width // 2, block))
    gated_act_kernel[grid](gate_up, out, F=width // 2, BLOCK=block, GELU=act == "gelu_tanh", num_warps=4)
    return out


@triton.jit
def _rotated(
    x_ptr, norm_ptr, cos, sin, d, eps, offset, HALF: tl.constexpr, HP: tl.constexpr, NORM: tl.constexpr
):
    """Both halves of one head, normed (if asked) and rotated, float32."""
    ok = d < HALF
    a = tl.load(x_ptr + d, mask=ok, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + HALF + d, mask=ok, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / (2 * HALF) + eps)
        a = a * scale * (tl.load(norm_ptr + d, mask=ok, other=0.0).to(tl.float32) + offset)
        b = b * scale * (tl.load(norm_ptr + HALF + d, mask=ok, other=0.0).to(tl.float32) + offset)
    return a * cos - b * sin, b * cos + a * sin


@triton.jit
def _finite(x):
    """x, or 0 where it is NaN or infinite: x - x is 0 for finite numbers only."""
    wide = x.to(tl.float32)
    return tl.where(wide - wide == 0.0, wide, 0.0).to(x.dtype)


@triton.jit
def _store(
    pool_ptr,
    scale_ptr,
    a,
    b,
    slot,
    h,
    d,
    stride_page,
    stride_scale,
    HALF: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Both halves of one head at its place; what is not finite as 0."""
    page = (slot // 16).to(tl.int64)
    to = pool_ptr + page * stride_page + (h * 16 + slot % 16) * 2 * HALF + d
    kind = pool_ptr.dtype.element_ty
    if SCALED:
        a = _finite(a.to(tl.float32))
        b = _finite(b.to(tl.float32))
        most = tl.maximum(tl.max(tl.abs(a), 0), tl.max(tl.abs(b), 0))
        factor = tl.maximum(most, 1e-30) / 448.0  # the largest number of e4m3
        tl.store(scale_ptr + page * stride_scale + h * 16 + slot % 16, factor)
        a = a / factor
        b = b / factor
        tl.store(to, a.to(kind), mask=d < HALF)
        tl.store(to + HALF, b.to(kind), mask=d < HALF)
    else:
        tl.store(to, _finite(a.to(kind)), mask=d < HALF)
        tl.store(to + HALF, _finite(b.to(kind)), mask=d < HALF)


@triton.jit
def rope_write_kv_kernel(
    qkv_ptr,
    position_ptr,
    slot_ptr,
    cos_ptr,
    sin_ptr,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    q_ptr,
    q_norm_ptr,
    k_norm_ptr,
    eps,
    offset,
    stride_page,
    stride_scale,
    HQ: tl.constexpr,
    HK: tl.constexpr,
    HALF: tl.constexpr,
    HP: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Grid (rows, HQ + 2 HK): one head a program. Pools [pages, HK, 16, 2 HALF]. A slot < 0 writes nothing.

    SCALED: pools of e4m3, and a factor for each token and head, float32 [pages, HK, 16]. Pages lie ``stride_page``
    numbers apart, their factors ``stride_scale``.
    """
    row = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    d = tl.arange(0, HP)
    ok = d < HALF
    x_ptr = qkv_ptr + (row * (HQ + 2 * HK) + h) * 2 * HALF
    position = tl.load(position_ptr + row).to(tl.int64)
    slot = tl.load(slot_ptr + row)
    if h < HQ + HK:
        cos = tl.load(cos_ptr + position * HALF + d, mask=ok, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + position * HALF + d, mask=ok, other=0.0).to(tl.float32)
        if h < HQ:
            a, b = _rotated(x_ptr, q_norm_ptr, cos, sin, d, eps, offset, HALF, HP, Q_NORM)
            to = q_ptr + (row * HQ + h) * 2 * HALF + d
            tl.store(to, a.to(q_ptr.dtype.element_ty), mask=ok)
            tl.store(to + HALF, b.to(q_ptr.dtype.element_ty), mask=ok)
        elif slot >= 0:
            a, b = _rotated(x_ptr, k_norm_ptr, cos, sin, d, eps, offset, HALF, HP, K_NORM)
            _store(k_ptr, k_scale_ptr, a, b, slot, h - HQ, d, stride_page, stride_scale, HALF, SCALED)
    elif slot >= 0:
        a = tl.load(x_ptr + d, mask=ok, other=0.0)
        b = tl.load(x_ptr + HALF + d, mask=ok, other=0.0)
        _store(v_ptr, v_scale_ptr, a, b, slot, h - HQ - HK, d, stride_page, stride_scale, HALF, SCALED)


def rope_write_kv(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    *,
    n_heads: int,
    n_kv_heads: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    norm_offset: float,
    scales: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Shapes as in ``ops.rope_write_kv``; ``k_pages`` as Triton wants it there."""
    n_rows, width = qkv.shape
    head_dim = width // (n_heads + 2 * n_kv_heads)
    q = qkv.new_empty((n_rows, n_heads, head_dim))
    rope_write_kv_kernel[(n_rows, n_heads + 2 * n_kv_heads)](
        qkv,
        positions,
        slots,
        cos,
        sin,
        k_pages,
        v_pages,
        *(scales or (cos, cos)),  # not read
        q,
        qkv if q_norm is None else q_norm,
        qkv if k_norm is None else k_norm,
        eps,
        norm_offset,
        v_pages.stride(0),
        scales[0].stride(0) if scales else 0,
        HQ=n_heads,
        HK=n_kv_heads,
        HALF=head_dim // 2,
        HP=triton.next_power_of_2(head_dim // 2),
        Q_NORM=q_norm is not None,
        K_NORM=k_norm is not None,
        SCALED=scales is not None,
        num_warps=1,
    )
    return q
