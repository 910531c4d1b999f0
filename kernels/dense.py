"""A weight as the vendor's matrix product takes it: on a GPU, or for tests. Knows nothing of models."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class DenseLinear:
    """A weight [N, K] in the dtype and on the device in which it is used."""

    tensor: Tensor

    @property
    def n(self) -> int:
        return self.tensor.shape[0]

    @property
    def k(self) -> int:
        return self.tensor.shape[1]

    def weight(self) -> Tensor:
        """The weight [N, K], not a copy."""
        return self.tensor

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.tensor.numel() * self.tensor.element_size()
