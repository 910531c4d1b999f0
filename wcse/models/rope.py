"""Tables of rotary embedding, one per distinct rope of a model.

Knows how a rope's frequencies are scaled, nothing of layers or of how a head is rotated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wcse.models.spec import ModelSpec, Rope
from wcse.models.weights import Weights


class RopeTable:
    """Cosines and sines [positions, head_dim/2] of one rope.

    They are grown on demand, so a long context costs nothing until a path is that long.
    """

    def __init__(
        self, rope: Rope, head_dim: int, factors: Tensor | None = None, device: torch.device | None = None
    ) -> None:
        """``factors`` [head_dim/2], when given, divide the frequencies (how GGUF stores llama3 scaling)."""
        self._device = device
        self._frequencies = _frequencies(rope, head_dim)
        if factors is not None:
            self._frequencies = self._frequencies / factors
        self.cos = self.sin = torch.empty(0, head_dim // 2)

    def grow(self, positions: int) -> None:
        """Make rows 0 .. positions-1 available; rows that exist keep their bits."""
        if positions <= len(self.cos):
            return
        length = max(1024, 1 << (positions - 1).bit_length())
        angles = torch.outer(torch.arange(length, dtype=torch.float32), self._frequencies)
        self.cos, self.sin = angles.cos().to(self._device), angles.sin().to(self._device)


def _frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Angle per position of each pair of dimensions, [head_dim/2]; in float32, as transformers does."""
    if rope.kind == "none":
        return torch.zeros(head_dim // 2)
    base = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.kind == "linear":
        return base / rope.factor
    if rope.kind == "llama3":
        return _llama3(base, rope)
    return base


def _llama3(base: Tensor, rope: Rope) -> Tensor:
    """Llama 3.1: wavelengths beyond the original context are stretched by ``factor``, short ones are kept."""
    wavelength = 2 * math.pi / base
    low, high = rope.low_freq_factor, rope.high_freq_factor
    share = ((rope.original_context / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - share) * base / rope.factor + share * base


def rope_tables(spec: ModelSpec, weights: Weights, device: torch.device) -> dict[Rope, RopeTable]:
    """One table per distinct rope."""
    factors = (
        weights.tensor("rope_freqs.weight", spec.head_dim // 2) if "rope_freqs.weight" in weights else None
    )
    return {
        rope: RopeTable(rope, spec.head_dim, None if rope.kind == "none" else factors, device)
        for rope in {layer.rope for layer in spec.layers}
    }
