"""Products with weights of every format.

Knows nothing of models, trees or engines.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wcse import _core
from wcse.kernels import reference
from wcse.kernels.dense import DenseLinear
from wcse.kernels.ops.common import F32, Backend, address, check, native
from wcse.kernels.packed import INTEGER, PackedLinear
from wcse.types import WcseError

Linear = PackedLinear | DenseLinear


def packed_weight(weight: Linear) -> PackedLinear:
    if isinstance(weight, DenseLinear):
        raise WcseError("the weight is a DenseLinear; the native kernel takes one from pack_linear")
    return weight


def linear(
    x: Tensor,
    packed: Linear,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """``x @ weight.T + bias + residual``.

    Args:
        x: [T, K].
        packed: the weight [N, K], from ``pack_linear`` or ``pack_quantized``, or a ``DenseLinear`` for the other
            backends. Quantised weights count as the floats that ``packed.weight()`` gives; the result has the bits
            that those would give. An ``integer`` weight is multiplied with ``reference.rounded(x)`` instead of x, and
            the sum over a group of inputs is exact.
        bias: [N] or None.
        residual: [T, N] or None.

    Returns:
        [T, N]. The sums run over K in one fixed order, so a row's bits do not depend on T, on its place, or on
        the number of threads.

    Raises:
        WcseError: a tensor does not fit the weight.
    """
    n_rows, k = x.shape
    n = packed.n
    if k != packed.k:
        raise WcseError(f"x has {k} columns; the weight takes {packed.k}")
    if not native(backend, x):
        if isinstance(packed, PackedLinear) and packed.integer:
            x = reference.rounded(x, packed.group)
        return reference.linear(x, packed.weight().to(x.dtype), bias, residual)
    packed = packed_weight(packed)
    check("x", x, F32, (n_rows, k))
    if bias is not None:
        check("bias", bias, F32, (n,))
    if residual is not None:
        check("residual", residual, F32, (n_rows, n))
    out = torch.empty((n_rows, n))
    _core.linear(
        x.data_ptr(),
        packed.panels.data_ptr(),
        packed.bits,
        packed.group,
        packed.wide,
        packed.minima,
        packed.integer,
        address(bias),
        address(residual),
        out.data_ptr(),
        n_rows,
        n,
        k,
        torch.get_num_threads(),
    )
    return out


def linear_paths(quantization: str | None) -> str:
    """Which kernel ``linear`` takes at which number of rows, in words, for a decoder's ``quantization``."""
    isa = _core.cpu_isa()
    if quantization is None:
        return f"float32 tiles ({isa}) for any number of rows"
    if quantization in (*INTEGER, "gguf_a8"):
        return f"inputs rounded to 8 bits, integer dot products ({isa}) for any number of rows"
    few = _core.unpack_rows()
    return (
        f"up to {few} rows weights are unpacked in registers ({isa}); from {few + 1} on a block of them at a time, "
        "for the float32 tiles"
    )
