"""Norms and activations: ops on rows that share nothing.

Knows nothing of models, trees or engines.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from wcse import _core
from wcse.kernels import reference
from wcse.kernels.ops.common import F32, Backend, address, check, pick, triton_ops
from wcse.types import WcseError

Activation = Literal["silu", "gelu_tanh"]


def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0, backend: Backend = "auto"
) -> Tensor:
    """``x * rsqrt(mean(x^2) + eps) * (weight + offset)``; x [T, D], weight [D], result [T, D]."""
    kind = pick(backend, x)
    if kind == "torch":
        return reference.rms_norm(x, weight, eps=eps, offset=offset)
    return _norm(kind, x, None, weight, eps=eps, offset=offset)


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
    kind = pick(backend, residual)
    if kind == "torch":
        return reference.add_rms_norm(residual, x, weight, eps=eps, offset=offset)
    return _norm(kind, x, residual, weight, eps=eps, offset=offset)


def _norm(
    kind: str, x: Tensor, residual: Tensor | None, weight: Tensor, *, eps: float, offset: float
) -> Tensor:
    """The compiled kernels: one for both norms."""
    if kind == "triton":
        return triton_ops().rms_norm(x, residual, weight, eps=eps, offset=offset)
    n_rows, width = x.shape if residual is None else residual.shape
    check("x", x, F32, (n_rows, width))
    check("weight", weight, F32, (width,))
    if residual is not None:
        check("residual", residual, F32, (n_rows, width))
    out = torch.empty_like(x)
    _core.rms_norm(
        x.data_ptr(),
        address(residual),
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
    kind = pick(backend, gate_up)
    if kind == "triton":
        return triton_ops().gated_act(gate_up, act=act)
    if kind == "torch":
        return reference.gated_act(gate_up, act=act)
    check("gate_up", gate_up, F32, (n_rows, width))
    out = torch.empty((n_rows, width // 2))
    _core.gated_act(
        gate_up.data_ptr(), out.data_ptr(), n_rows, width // 2, act == "gelu_tanh", torch.get_num_threads()
    )
    return out
