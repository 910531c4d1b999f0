"""Weights as the vendor's matrix products take them: on a GPU, or for tests. Knows nothing of models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wcse.kernels.scaled import quantize_rows
from wcse.types import WcseError


@dataclass(frozen=True, slots=True, eq=False)
class _Matrix:
    """A weight [N, K] that is one tensor."""

    tensor: Tensor

    @property
    def n(self) -> int:
        return self.tensor.shape[0]

    @property
    def k(self) -> int:
        return self.tensor.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class DenseLinear(_Matrix):
    """A weight [N, K] in the dtype and on the device in which it is used."""

    def weight(self) -> Tensor:
        """The weight [N, K], not a copy."""
        return self.tensor

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.tensor.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class Fp8Linear(_Matrix):
    """A weight [N, K] in e4m3 with a factor for each of its rows; activations get one for each of theirs on the fly.

    The product is torch's scaled GEMM; devices before compute capability 8.9 have none.
    """

    scale: Tensor  # float32 [1, N]; ``tensor`` is e4m3

    @staticmethod
    def of(weight: Tensor) -> Fp8Linear:
        """Quantise a weight [N, K] where it lies.

        Raises:
            WcseError: the scaled GEMM does not take such a shape.
        """
        if weight.shape[0] % 16 or weight.shape[1] % 16:
            raise WcseError(
                f"quantization='fp8': a matrix is {tuple(weight.shape)}; both must be multiples of 16"
            )
        values, factor = quantize_rows(weight)
        return Fp8Linear(values, factor[None].contiguous())

    def weight(self) -> Tensor:
        """The weight [N, K] that the numbers stand for, float32."""
        return self.tensor.float() * self.scale.T

    def product(self, x: Tensor) -> Tensor:
        """``x @ weight.T`` for x [T, K], in the dtype of x; computed from x rounded to e4m3."""
        values, factor = quantize_rows(x)
        out = torch._scaled_mm(
            values,
            self.tensor.T,
            scale_a=factor[:, None].contiguous(),
            scale_b=self.scale,
            out_dtype=torch.bfloat16,
        )
        return out.to(x.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.tensor.nbytes + self.scale.nbytes
