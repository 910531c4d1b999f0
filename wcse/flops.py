"""What a token costs a model, in floating-point operations. Knows sizes, no weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, Self


class Sizes(Protocol):
    """The part of ``wcse.models.spec.ModelSpec`` that is read here."""

    @property
    def dim(self) -> int: ...
    @property
    def ffn_dim(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def layers(self) -> tuple[object, ...]: ...


@dataclass(frozen=True, slots=True)
class ModelCost:
    """A model's cost per token: ``2 * params`` for its matrices, ``attention`` per pair of positions.

    ``attention`` is 4 * layers * query heads * head size: a product and a sum for q.k and for p.v each. ``models`` is
    how many models read each token, where the costs of several are added up.
    """

    params: int
    attention: int
    models: int = 1

    @classmethod
    def of(cls, sizes: Sizes, *, head: bool = True) -> Self:
        """``head``: the output matrix is multiplied for each token, as in a policy that writes."""
        query, kv = sizes.n_heads * sizes.head_dim, sizes.n_kv_heads * sizes.head_dim
        layer = sizes.dim * (2 * query + 2 * kv) + 3 * sizes.dim * sizes.ffn_dim
        params = len(sizes.layers) * layer + (sizes.vocab_size * sizes.dim if head else 0)
        return cls(params, 4 * len(sizes.layers) * query)

    def __add__(self, other: ModelCost) -> ModelCost:
        """Both models read the same tokens."""
        models = self.models + other.models
        return ModelCost(self.params + other.params, self.attention + other.attention, models)

    def flops(self, tokens: int, context: int) -> float:
        """Operations for ``tokens`` new tokens after ``context`` stored ones."""
        return 2.0 * self.params * tokens + self.attention * (tokens * context + tokens * tokens / 2)

    def tokens(self, flops: float, context: int) -> int:
        """The most new tokens after ``context`` that ``flops`` pay for."""
        linear, square = 2.0 * self.params + self.attention * context, self.attention / 2
        if flops <= 0 or linear <= 0:
            return 0
        # The positive root of square t^2 + linear t = flops, in the form that loses no digits.
        guess = math.floor(2 * flops / (linear + math.sqrt(linear * linear + 4 * square * flops)))
        return guess + 1 if self.flops(guess + 1, context) <= flops else guess
