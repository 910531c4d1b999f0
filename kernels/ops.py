"""One checked function per kernel: ``from wcse.kernels import ops``.

Each op takes ``backend``: "cpp" (the native kernel: float32 tensors on the CPU), "torch" (``reference.py``: any
float dtype and device), or "auto" ("cpp" for tensors on the CPU, else "torch"). Tensors reach the native code as
addresses, so everything that could make an address wrong is checked here: dtype, shape, device and contiguity.
The native loops use as many threads as torch does at the time of the call; their results do not depend on it.

Common sizes: T rows (new tokens), Hq query heads, Hkv key/value heads, d head size, P pages of 16 tokens.
Knows nothing of models, trees or engines.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from wcse import _core
from wcse.kernels import reference
from wcse.kernels.packed import (
    Format,
    PackedLinear,
    QuantizedWeight,
    pack_linear,
    pack_quantized,
    quantize,
    stack,
)
from wcse.kernels.reference import PAGE
from wcse.types import WcseError

Backend = Literal["auto", "cpp", "torch"]
Activation = Literal["silu", "gelu_tanh"]

__all__ = [
    "PAGE",
    "Format",
    "PackedLinear",
    "QuantizedWeight",
    "add_rms_norm",
    "gated_act",
    "linear",
    "pack_linear",
    "pack_quantized",
    "quantize",
    "rms_norm",
    "rope_write_kv",
    "sample",
    "stack",
    "token_logprobs",
    "tree_attention",
]

_F32 = torch.float32
_I32 = torch.int32


def _native(backend: Backend, x: Tensor) -> bool:
    """Whether the native kernel shall run, decided from the first tensor."""
    if backend == "auto":
        return x.is_cpu
    if backend in ("cpp", "torch"):
        return backend == "cpp"
    raise WcseError(f"backend={backend!r} is unknown; use 'auto', 'cpp' or 'torch'")


def _check(name: str, x: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse a tensor whose address may not go to the native code."""
    if x.dtype is dtype and x.shape == shape and x.is_contiguous() and x.is_cpu:
        return
    if tuple(x.shape) != shape:
        raise WcseError(f"{name} has shape {tuple(x.shape)}; expected {shape}")
    if x.dtype is not dtype:
        raise WcseError(f"{name} has dtype {x.dtype}; the native kernel takes {dtype}: convert with .to()")
    if not x.is_cpu:
        raise WcseError(f"{name} is on {x.device}; the native kernel runs on the CPU: use backend='torch'")
    raise WcseError(f"{name} is not contiguous (strides {x.stride()}): pass {name}.contiguous()")


def _check_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape) != shape:
        raise WcseError(f"{name} has shape {tuple(x.shape)}; expected {shape}")


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def tree_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plan: _core.Plan,
    *,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    backend: Backend = "auto",
) -> Tensor:
    """Attention of every row over its own path of the tree; each shared page is read once per tile of rows.

    Args:
        q: [T, Hq, d] queries, rows in the order of ``plan``; d a multiple of 8 from 8 to 256.
        k_pages: [P, Hkv, d, 16] keys, transposed inside a page. Query head h reads head h // (Hq // Hkv).
        v_pages: [P, Hkv, 16, d] values.
        plan: the ``_core.Plan`` of this step.
        scale: factor of the scores, usually d ** -0.5.
        softcap: scores become softcap * tanh(score / softcap); 0 turns it off.
        window: a row at position p sees keys at positions > p - window; 0 turns it off.

    Returns:
        [T, Hq, d]. A row's bits do not depend on the other rows, nor on threads.

    Raises:
        WcseError: a tensor, the plan or an option does not fit.
    """
    n_rows, n_heads, head_dim = q.shape
    n_pages, n_kv = k_pages.shape[:2]
    _check_shape("k_pages", k_pages, (n_pages, n_kv, head_dim, PAGE))
    _check_shape("v_pages", v_pages, (n_pages, n_kv, PAGE, head_dim))
    if n_rows != plan.n_rows:
        raise WcseError(f"q has {n_rows} rows but the plan has {plan.n_rows}; pass the plan of this step")
    if n_kv == 0 or n_heads % n_kv:
        raise WcseError(f"q has {n_heads} heads; expected a multiple of the {n_kv} heads of k_pages")
    if softcap < 0 or window < 0:
        raise WcseError(f"softcap={softcap}, window={window}: must not be negative; 0 turns them off")
    if not _native(backend, q):
        return reference.tree_attention(
            q, k_pages, v_pages, plan, scale=scale, softcap=softcap, window=window
        )
    if head_dim % 8 or not 8 <= head_dim <= 256:
        raise WcseError(f"q has head size {head_dim}; the native kernel takes multiples of 8 up to 256")
    _check("q", q, _F32, (n_rows, n_heads, head_dim))
    _check("k_pages", k_pages, _F32, (n_pages, n_kv, head_dim, PAGE))
    _check("v_pages", v_pages, _F32, (n_pages, n_kv, PAGE, head_dim))
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
            scale,
            softcap,
            window,
            torch.get_num_threads(),
        )
    except ValueError as error:  # the plan reads pages that the pool does not have
        raise WcseError(str(error)) from None
    return out


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
        own row only and never a neighbour that shares the page.

    Raises:
        WcseError: a tensor does not fit, or a position or slot lies outside the tables or pools.
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
    if not _native(backend, qkv):
        _check_shape("k_pages", k_pages, k_shape)
        _check_shape("v_pages", v_pages, v_shape)
        return reference.rope_write_kv(
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
    table = (cos.shape[0], head_dim // 2)
    _check("qkv", qkv, _F32, (n_rows, width))
    _check("positions", positions, _I32, (n_rows,))
    _check("slots", slots, _I32, (n_rows,))
    _check("cos", cos, _F32, table)
    _check("sin", sin, _F32, table)
    _check("k_pages", k_pages, _F32, k_shape)
    _check("v_pages", v_pages, _F32, v_shape)
    for name, weight in (("q_norm", q_norm), ("k_norm", k_norm)):
        if weight is not None:
            _check(name, weight, _F32, (head_dim,))
    q = torch.empty((n_rows, n_heads, head_dim))
    try:
        _core.rope_write_kv(
            qkv.data_ptr(),
            positions.data_ptr(),
            slots.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            _address(q_norm),
            _address(k_norm),
            q.data_ptr(),
            k_pages.data_ptr(),
            v_pages.data_ptr(),
            n_rows,
            n_heads,
            n_kv_heads,
            head_dim,
            table[0],
            n_pages,
            eps,
            norm_offset,
            torch.get_num_threads(),
        )
    except ValueError as error:  # a position or slot out of range; nothing was written
        raise WcseError(str(error)) from None
    return q


def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0, backend: Backend = "auto"
) -> Tensor:
    """``x * rsqrt(mean(x^2) + eps) * (weight + offset)``; x [T, D], weight [D], result [T, D]."""
    if not _native(backend, x):
        return reference.rms_norm(x, weight, eps=eps, offset=offset)
    n_rows, width = x.shape
    _check("x", x, _F32, (n_rows, width))
    _check("weight", weight, _F32, (width,))
    out = torch.empty_like(x)
    _core.rms_norm(
        x.data_ptr(),
        0,
        weight.data_ptr(),
        out.data_ptr(),
        n_rows,
        width,
        eps,
        offset,
        torch.get_num_threads(),
    )
    return out


def add_rms_norm(
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    eps: float,
    offset: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """``residual += x`` in place, then ``rms_norm(residual)``; residual and x [T, D], weight [D]."""
    if not _native(backend, residual):
        return reference.add_rms_norm(residual, x, weight, eps=eps, offset=offset)
    n_rows, width = residual.shape
    _check("residual", residual, _F32, (n_rows, width))
    _check("x", x, _F32, (n_rows, width))
    _check("weight", weight, _F32, (width,))
    out = torch.empty_like(x)
    _core.rms_norm(
        x.data_ptr(),
        residual.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        n_rows,
        width,
        eps,
        offset,
        torch.get_num_threads(),
    )
    return out


def gated_act(gate_up: Tensor, act: Activation = "silu", *, backend: Backend = "auto") -> Tensor:
    """``act(gate_up[:, :F]) * gate_up[:, F:]``; gate_up [T, 2F], result [T, F]; act "silu" or "gelu_tanh"."""
    if act not in ("silu", "gelu_tanh"):
        raise WcseError(f"act={act!r} is unknown; use 'silu' or 'gelu_tanh'")
    n_rows, width = gate_up.shape
    if width % 2:
        raise WcseError(f"gate_up has {width} columns; expected an even number")
    if not _native(backend, gate_up):
        return reference.gated_act(gate_up, act=act)
    _check("gate_up", gate_up, _F32, (n_rows, width))
    out = torch.empty((n_rows, width // 2))
    _core.gated_act(
        gate_up.data_ptr(), out.data_ptr(), n_rows, width // 2, act == "gelu_tanh", torch.get_num_threads()
    )
    return out


def linear(
    x: Tensor,
    packed: PackedLinear,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """``x @ weight.T + bias + residual``.

    Args:
        x: [T, K].
        packed: the weight [N, K], from ``pack_linear`` or ``pack_quantized``. Quantised weights count as the floats
            that ``packed.weight()`` gives; the result has the bits that those would give.
        bias: [N] or None.
        residual: [T, N] or None.

    Returns:
        [T, N]. The sums run over K in one fixed order, so a row's bits do not depend on T, on its place, or on
        the number of threads. Activations and sums are float32 for every format.

    Raises:
        WcseError: a tensor does not fit the weight.
    """
    n_rows, k = x.shape
    n = packed.n
    if k != packed.k:
        raise WcseError(f"x has {k} columns; the weight takes {packed.k}")
    if not _native(backend, x):
        return reference.linear(x, packed.weight().to(x.dtype), bias, residual)
    _check("x", x, _F32, (n_rows, k))
    if bias is not None:
        _check("bias", bias, _F32, (n,))
    if residual is not None:
        _check("residual", residual, _F32, (n_rows, n))
    out = torch.empty((n_rows, n))
    _core.linear(
        x.data_ptr(),
        packed.panels.data_ptr(),
        packed.bits,
        packed.group,
        packed.wide,
        packed.minima,
        _address(bias),
        _address(residual),
        out.data_ptr(),
        n_rows,
        n,
        k,
        torch.get_num_threads(),
    )
    return out


def sample(
    logits: Tensor,
    rows: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    keys: Tensor,
    counters: Tensor,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Draw tokens. Draw j reads ``logits[rows[j]]``; several draws may read one row.

    Order of the filters: temperature, min-p, top-k, top-p; lower ids count first among equal logits. The number
    u comes from Philox4x32-10 with key ``keys[j]`` and counter ``(counters[j], 0, 0, 0)`` (first word >> 8,
    times 2^-24); the token is the first id, in id order, whose share of the kept probability exceeds u.

    Args:
        logits: [R, V] float32.
        rows: int32 [D].
        temperature: float32 [D]; 0 takes the largest logit, the lowest id among equals.
        top_k: int32 [D]; 0 or -1 turns it off.
        top_p: float32 [D] in (0, 1]; 1 turns it off.
        min_p: float32 [D] in [0, 1]; 0 turns it off.
        keys: int64 or uint64 [D]; the 64 bits are the key.
        counters: int32 [D].

    Returns:
        tokens int32 [D] and logprobs float32 [D], the log-softmax of the raw logits at the token. A row with a
        NaN or +inf, or with nothing but -inf, gives token -1 and logprob NaN.

    Raises:
        WcseError: a tensor does not fit or a parameter is out of range; no token is drawn.
    """
    n_rows, vocab = logits.shape
    draws = (rows.shape[0],)
    if keys.dtype not in (torch.int64, torch.uint64):
        raise WcseError(f"keys has dtype {keys.dtype}; expected int64 or uint64")
    if not _native(backend, logits):
        return reference.sample(logits, rows, temperature, top_k, top_p, min_p, keys, counters)
    _check("logits", logits, _F32, (n_rows, vocab))
    _check("rows", rows, _I32, draws)
    _check("temperature", temperature, _F32, draws)
    _check("top_k", top_k, _I32, draws)
    _check("top_p", top_p, _F32, draws)
    _check("min_p", min_p, _F32, draws)
    _check("keys", keys, keys.dtype, draws)
    _check("counters", counters, _I32, draws)
    tokens = torch.empty(draws, dtype=_I32)
    logprobs = torch.empty(draws)
    try:
        _core.sample(
            logits.data_ptr(),
            rows.data_ptr(),
            temperature.data_ptr(),
            top_k.data_ptr(),
            top_p.data_ptr(),
            min_p.data_ptr(),
            keys.data_ptr(),
            counters.data_ptr(),
            tokens.data_ptr(),
            logprobs.data_ptr(),
            n_rows,
            vocab,
            draws[0],
            torch.get_num_threads(),
        )
    except ValueError as error:  # a row or parameter out of range
        raise WcseError(str(error)) from None
    return tokens, logprobs


def token_logprobs(logits: Tensor, tokens: Tensor, *, backend: Backend = "auto") -> Tensor:
    """The log-softmax of each row of logits at one token.

    Args:
        logits: [R, V] float32.
        tokens: int32 [R].

    Returns:
        float32 [R]; NaN for a row with a NaN or +inf, or with nothing but -inf.

    Raises:
        WcseError: a tensor does not fit or a token is not in the vocabulary.
    """
    rows, vocab = logits.shape
    if not _native(backend, logits):
        return reference.token_logprobs(logits, tokens)
    _check("logits", logits, _F32, (rows, vocab))
    _check("tokens", tokens, _I32, (rows,))
    out = torch.empty(rows)
    try:
        _core.token_logprobs(
            logits.data_ptr(), tokens.data_ptr(), out.data_ptr(), rows, vocab, torch.get_num_threads()
        )
    except ValueError as error:  # a token out of range
        raise WcseError(str(error)) from None
    return out
