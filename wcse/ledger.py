"""What a piece of work cost, in tokens, pages and seconds; policy and verifier apart.

Knows nothing of models or engines: they fill it in, outputs add it up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Ledger:
    """Cost of one problem under one strategy. Ledgers add up; page counts are peaks, so they take the
    maximum.

    "Computed" tokens went through a model's layers. "Reused" tokens did not, because their keys and values
    were already in the tree: a reader that keeps one cache per sequence would have had to compute (or store)
    them.

    Attributes:
        policy_computed: tokens that the policy read or wrote, pruned branches included.
        policy_reused: prefix tokens that the policy found in its tree.
        policy_sampled: tokens drawn from the policy, pruned branches included (a part of
            ``policy_computed``).
        prm_computed: tokens that the verifier read; 0 for a head on the policy's own hidden states.
        prm_reused: prefix tokens that the verifier did not read again.
        prm_asked: what a verifier that writes adds to the policy's own tokens: its questions and verdicts, once each
            (a part of ``prm_computed``).
        kv_pages: most pages of 16 tokens held at one time.
        kv_pages_unshared: pages that one cache per sequence would have held at that time.
        policy_flops, prm_flops: operations for every token of the tree once; what was evicted and computed again
            is in ``policy_computed`` only.
        seconds: wall time attributed to this work.
    """

    policy_computed: int = 0
    policy_reused: int = 0
    policy_sampled: int = 0
    prm_computed: int = 0
    prm_reused: int = 0
    prm_asked: int = 0
    kv_pages: int = 0
    kv_pages_unshared: int = 0
    policy_flops: float = 0.0
    prm_flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Ledger) -> Ledger:
        totals: dict[str, Any] = {
            f.name: (max if f.name in _PEAKS else _plus)(getattr(self, f.name), getattr(other, f.name))
            for f in fields(self)
        }
        return Ledger(**totals)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ledger:
        return cls(**data)


_PEAKS = frozenset({"kv_pages", "kv_pages_unshared"})


def _plus(a: float, b: float) -> float:
    return a + b
