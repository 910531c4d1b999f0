"""Products with weights of every format.

Knows nothing of models, trees or engines.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wcse import _core
from wcse.kernels import reference
from wcse.kernels.dense import DenseLinear, Fp8Linear
from wcse.kernels.ops.common import F32, Backend, address, check, native
from wcse.kernels.packed import INTEGER, PackedLinear
from wcse.types import WcseError

Linear = PackedLinear | DenseLinear | Fp8Linear


def packed_weight(weight: Linear) -> PackedLinear:
    if not isinstance(weight, PackedLinear):
        raise WcseError(
            f"the weight is a {type(weight).__name__}; the native kernel takes one from pack_linear"
        )
    return weight


def linear(
    x: Tensor,
    packed: Linear,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    out: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """``x @ weight.T + bias + residual``.

    Args:
        x: [T, K].
        packed: the weight [N, K], from ``pack_linear`` or ``pack_quantized``; for the other backends a
            ``DenseLinear`` or ``Fp8Linear``. Quantised weights count as the floats that ``packed.weight()`` gives; the
            result has the bits that those would give (but with ``Fp8Linear``, which rounds ``x`` too). An ``integer``
            weight is multiplied with ``reference.rounded(x)`` instead of x, and the sum over a group of inputs is
            exact.
        bias: [N] or None.
        residual: [T, N] or None.
        out: float32 [T, N], the memory of the result; None: new memory. Only the native kernel takes it: a result of
            many megabytes is not mapped anew at each call then.

    Returns:
        [T, N]. The sums run over K in one fixed order, so a row's bits do not depend on T, on its place, or on
        the number of threads.

    Raises:
        WcseError: a tensor does not fit the weight, or ``out`` was given to another backend.
    """
    n_rows, k = x.shape
    n = packed.n
    if k != packed.k:
        raise WcseError(f"x has {k} columns; the weight takes {packed.k}")
    if out is not None and not native(backend, x):
        raise WcseError("out: only the native kernel writes into given memory; leave it out")
    if isinstance(packed, Fp8Linear) and not native(backend, x):
        out = packed.product(x)
        out = out if bias is None else out.add_(bias)
        return out if residual is None else out.add_(residual)
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
    if out is None:
        out = torch.empty((n_rows, n))
    check("out", out, F32, (n_rows, n))
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
