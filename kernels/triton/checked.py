"""The ops for Triton: check what could make an address wrong, then launch. Shapes and errors as in ``ops``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wcse import _core
from wcse.kernels.ops.common import check_contiguous, check_shape
from wcse.kernels.reference import PAGE
from wcse.kernels.scaled import FP8, ScaledPages
from wcse.kernels.triton import advance as advancing
from wcse.kernels.triton import attention, prompt, rows, sampler, score, work
from wcse.kernels.triton.rates import device_rates
from wcse.types import WcseError

if TYPE_CHECKING:
    from wcse.kernels.ops import Groups, Linear

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check(
    name: str, x: Tensor, like: Tensor, shape: tuple[int, ...], *dtypes: torch.dtype, strided: bool = False
) -> None:
    """Refuse a tensor that a Triton kernel could not address: device, dtype, shape, contiguity."""
    check_shape(name, x, shape)
    if x.device != like.device:
        raise WcseError(f"{name} is on {x.device} and the other tensors on {like.device}: move it with .to()")
    if x.dtype not in (dtypes or DTYPES):
        raise WcseError(f"{name} has dtype {x.dtype}; the Triton kernel takes {dtypes or DTYPES}")
    if not strided:
        check_contiguous(name, x)


Pages = Tensor | ScaledPages
Scales = tuple[Tensor, Tensor] | None


def _pools(
    k_pages: Pages, v_pages: Pages, like: Tensor, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor, Scales]:
    """Checked pools for Triton: both stored as [P, Hkv, 16, d]; ``k_pages`` is the transposed view of that."""
    n_pages, n_kv, tokens, head_dim = shape
    kinds, scales = DTYPES, None
    if isinstance(k_pages, ScaledPages) and isinstance(v_pages, ScaledPages):
        kinds, scales = (FP8,), (k_pages.scale, v_pages.scale)
        for name, scale in zip(("k_pages.scale", "v_pages.scale"), scales, strict=True):
            check(name, scale, like, (n_pages, n_kv, tokens), torch.float32, strided=True)
        k_pages, v_pages = k_pages.values, v_pages.values
    if isinstance(k_pages, ScaledPages) or isinstance(v_pages, ScaledPages):
        raise WcseError("k_pages and v_pages must both be ScaledPages, or neither")
    check("k_pages", k_pages, like, (n_pages, n_kv, head_dim, tokens), *kinds, strided=True)
    check("v_pages", v_pages, like, shape, k_pages.dtype, strided=True)
    if n_pages:
        _check_apart("k_pages", k_pages.transpose(2, 3), v_pages)
        _check_apart("v_pages", v_pages, v_pages)
        if scales:
            _check_apart("k_pages.scale", scales[0], scales[1])
            _check_apart("v_pages.scale", scales[1], scales[1])
    return k_pages, v_pages, scales


def _check_apart(name: str, x: Tensor, like: Tensor) -> None:
    """Refuse pages that are not contiguous, or not as far apart as those of ``like``."""
    if not x[0].is_contiguous() or x.stride(0) != like.stride(0):
        raise WcseError(
            f"{name} has strides {x.stride()} as the Triton kernel reads it, stored as [P, Hkv, 16, d] (keys: pass "
            f"pool.transpose(2, 3)); a page must be contiguous, and the next one {like.stride(0)} numbers behind"
        )


def tree_attention(
    q: Tensor,
    k_pages: Pages,
    v_pages: Pages,
    plan: _core.Plan | work.DevicePlan,
    *,
    scale: float,
    softcap: float,
    window: int,
) -> Tensor:
    n_rows, n_heads, head_dim = q.shape
    n_pages, n_kv = k_pages.shape[:2]
    if not 1 <= head_dim <= 256 or n_heads // n_kv > 128:
        raise WcseError(f"q has head size {head_dim}, {n_heads // n_kv} heads a kv head; at most 256 and 128")
    check("q", q, q, (n_rows, n_heads, head_dim))
    k_pages, v_pages, scales = _pools(k_pages, v_pages, q, (n_pages, n_kv, PAGE, head_dim))
    if scales is None and k_pages.dtype != q.dtype:
        raise WcseError(f"k_pages has dtype {k_pages.dtype} and q {q.dtype}; they must agree")
    if isinstance(plan, _core.Plan):
        rates = device_rates(q.device)
        plan = work.DevicePlan(plan, q.device, n_heads // n_kv, n_kv, head_dim, q.dtype, rates=rates)
    if n_rows == 0:
        return torch.empty_like(q)
    if plan.last_page >= n_pages:
        raise WcseError(
            f"the plan reads page {plan.last_page} but the pools have {n_pages}; pass the pools of its tree"
        )
    path = plan.path() if isinstance(plan, work.DevicePlan) and not (softcap or window or scales) else None
    if path is not None:
        return prompt.attend_path(q, k_pages, v_pages, path, scale=scale)
    return attention.tree_attention(
        q,
        k_pages,
        v_pages,
        plan.list(window),
        scale=scale,
        softcap=softcap,
        window=window,
        scales=scales,
    )


def check_rope(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_pages: Pages,
    v_pages: Pages,
    norms: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor, Scales]:
    """The pools, when everything fits."""
    n_rows = len(qkv)
    n_pages, n_kv, tokens, head_dim = v_pages.shape
    check("qkv", qkv, qkv, tuple(qkv.shape))
    check("positions", positions, qkv, (n_rows,), torch.int32)
    check("slots", slots, qkv, (n_rows,), torch.int32)
    check("cos", cos, qkv, (cos.shape[0], head_dim // 2))
    check("sin", sin, qkv, (cos.shape[0], head_dim // 2))
    for name, weight in zip(("q_norm", "k_norm"), norms, strict=True):
        if weight is not None:
            check(name, weight, qkv, (head_dim,))
    return _pools(k_pages, v_pages, qkv, (n_pages, n_kv, tokens, head_dim))


def rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, *, eps: float, offset: float) -> Tensor:
    check("x", x, x, tuple(x.shape))
    check("weight", weight, x, (x.shape[1],))
    if residual is not None:
        check("residual", residual, x, tuple(x.shape))
    return rows.rms_norm(x, residual, weight, eps=eps, offset=offset)


def sample(logits: Tensor, picked: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    check("logits", logits, logits, tuple(logits.shape))
    if picked.is_cpu:
        _check_draws(len(logits), picked, *parameters[:4])
    names = ("rows", "temperature", "top_k", "top_p", "min_p", "keys", "counters")
    dtypes = (torch.int32, torch.float32, torch.int32, torch.float32, torch.float32, torch.int64, torch.int32)
    given = (picked, *parameters[:4], parameters[4].view(torch.int64), parameters[5])
    there = [x.to(logits.device, non_blocking=True) for x in given]
    for name, x, dtype in zip(names, there, dtypes, strict=True):
        check(name, x, logits, (len(picked),), dtype)
    return sampler.sample(logits, *there)


def _check_draws(
    n_rows: int, rows: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> None:
    """The ranges that the native sampler demands."""
    tiny = torch.finfo(torch.float32).tiny
    fits = (
        ("rows", rows, (rows >= 0) & (rows < n_rows), "a row of logits"),
        (
            "temperature",
            temperature,
            (temperature == 0) | ((temperature >= tiny) & temperature.isfinite()),
            "0 or a positive finite number",
        ),
        ("top_k", top_k, top_k >= -1, "-1 or 0 (off) or a positive number"),
        ("top_p", top_p, (top_p > 0) & (top_p <= 1), "a number in (0, 1]"),
        ("min_p", min_p, (min_p >= 0) & (min_p <= 1), "a number in [0, 1]"),
    )
    for name, x, good, expected in fits:
        if not bool(good.all()):
            j = int((~good).nonzero()[0])
            raise WcseError(f"{name}[{j}]={x[j].item()}; expected {expected}")


def rope_write_kv(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_pages: Pages,
    v_pages: Pages,
    **options: Any,
) -> Tensor:
    """As ``ops.rope_write_kv``; ``options`` are its keywords."""
    norms = (options["q_norm"], options["k_norm"])
    k_pages, v_pages, scales = check_rope(qkv, positions, slots, cos, sin, k_pages, v_pages, norms)
    return rows.rope_write_kv(qkv, positions, slots, cos, sin, k_pages, v_pages, scales=scales, **options)


def gated_act(gate_up: Tensor, *, act: str) -> Tensor:
    check("gate_up", gate_up, gate_up, tuple(gate_up.shape))
    return rows.gated_act(gate_up, act=act)


def score_steps(
    hidden: Tensor,
    picked: Tensor,
    layers: Sequence[tuple[Linear, Tensor | None]],
    known: Tensor,
    above: Tensor,
    groups: Groups,
    *,
    bounded: bool,
) -> Tensor:
    """All layers but the last are GEMMs over the chosen rows; the last is one kernel with all that follows."""
    check("hidden", hidden, hidden, tuple(hidden.shape))
    check("rows", picked, hidden, (len(picked),), torch.int32)
    check("known", known, hidden, (len(known), 5), torch.float64)
    check("above", above, hidden, (len(picked),), torch.int32)
    *first, (last, bias) = layers
    x = hidden
    for i, (weight, b) in enumerate(first):
        x = F.relu(x) if i else hidden[picked.long()]
        x = F.linear(x, weight.weight().to(x.dtype), None if b is None else b.to(x.dtype))
    if first:
        picked = torch.arange(len(x), dtype=torch.int32, device=x.device)
    check("weight", last.weight(), x, (last.n, x.shape[1]))
    if bias is not None:
        check("bias", bias, x, (last.n,))
    paths = score.score_rows(x, picked, last.weight(), bias, known, above, relu=bool(first), bounded=bounded)
    if len(groups.how):
        count, places = len(groups.how), len(groups.best)
        check("best", groups.best, hidden, (places, 2), torch.float64)
        check("bounds", groups.bounds, hidden, (count + 1,), torch.int32)
        check("how", groups.how, hidden, (count,), torch.int32)
        check("group", groups.group, hidden, (len(picked),), torch.int32)
        check("order", groups.order, hidden, (len(picked),), torch.float64)
        score.enter_groups(paths, groups)
    return paths


advance, grow = advancing.advance, advancing.grow
