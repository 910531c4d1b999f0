"""Pages of 8 bits: e4m3 numbers and one factor for each token and head. Knows nothing of kernels or trees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3


@dataclass(frozen=True, slots=True)
class ScaledPages:
    """Keys or values of a pool. A number is ``values * scale``; each factor is the largest of its head's over 448."""

    values: Tensor  # e4m3 [P, Hkv, 16, d], or keys as the transposed view of that, [P, Hkv, d, 16]
    scale: Tensor  # float32 [P, Hkv, 16]

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def dense(self, dtype: torch.dtype, *, keys: bool) -> Tensor:
        """All numbers; ``keys`` says that the values are the transposed view."""
        factor = self.scale.unsqueeze(2 if keys else 3)
        return (self.values.to(torch.float32) * factor).to(dtype)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 [..., d] and float32 [...] of finite numbers [..., d]."""
    wide = x.float()
    factor = wide.abs().amax(-1).clamp(min=1e-30) / LARGEST
    return (wide / factor.unsqueeze(-1)).to(FP8), factor
