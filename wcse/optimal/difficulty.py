"""How hard a problem is: three measures, two ways to make bins, and folds. Higher values are easier.

``oracle`` is pass@1 over all samples and uses gold answers: it explains, it cannot be deployed. ``verifier`` and
``agreement`` look at a few samples only, the probes, as ``wcse.search.auto`` does when it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from wcse.data.record import SolutionRecord, SolveRecord
from wcse.search.auto import FEATURES, agreement, bin_of, mean_score
from wcse.types import WcseError

KINDS = ("oracle", *FEATURES)
ABSOLUTE = (0.5, 0.1)
"""Edges of easy, medium and hard by pass@1 (Liu et al., arXiv 2502.06703)."""
BIN_RULES = ("quintile", "absolute")


@dataclass(frozen=True, slots=True)
class Difficulty:
    """What is measured, on how many samples, and how bins are made of it."""

    kind: str = "verifier"
    samples: int = 4
    bins: str = "quintile"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise WcseError(f"difficulty={self.kind!r} is unknown; use one of {', '.join(KINDS)}")
        if self.bins not in BIN_RULES:
            raise WcseError(f"bins={self.bins!r} is unknown; use one of {', '.join(BIN_RULES)}")
        if self.samples < 1:
            raise WcseError(f"probes={self.samples} must be at least 1")

    def value(self, record: SolveRecord) -> float:
        """The measure on a record of independent samples.

        Raises:
            WcseError: it has too few samples, or no scores where scores are asked for.
        """
        if self.kind == "oracle":
            return sum(bool(s.correct) for s in record.solutions) / len(record.solutions)
        probes = self.probes(record)
        if self.kind == "agreement":
            return agreement([s.answer_class for s in probes])
        if record.agg_strategy is None:
            raise WcseError(
                f"difficulty=verifier: {record.strategy} recorded no scores; give a verifier (prm)"
            )
        return mean_score([s.agg if s.agg is not None else 0.0 for s in probes])

    def probes(self, record: SolveRecord) -> list[SolutionRecord]:
        """The samples that stand for the probes of ``auto``: the last ones.

        A tree search of what they leave of the budget begins with the root's first children, as the first samples
        do; the last ones share no step with it.

        Raises:
            WcseError: the record has too few samples.
        """
        last = sorted(record.solutions, key=lambda s: s.path)[-self.samples :]
        if len(last) < self.samples:
            raise WcseError(
                f"probes={self.samples}: {record.strategy} recorded {len(last)} samples; "
                "use fewer probes or larger budgets"
            )
        return last

    def edges(self, values: Sequence[float]) -> tuple[float, ...]:
        """Falling edges of the bins: those of the rule, or the values that part ``values`` into fifths."""
        if self.bins == "absolute":
            return ABSOLUTE
        ordered = sorted(values, reverse=True)
        cuts = [ordered[-(-len(ordered) * part // 5) - 1] for part in range(1, 5)] if ordered else []
        return tuple(sorted({cut for cut in cuts if cut > ordered[-1]}, reverse=True))

    def assign(self, values: Mapping[str, float]) -> dict[str, int]:
        """The bin of each problem; fifths are made by rank, so they are equal however many values tie."""
        if self.bins == "absolute":
            return {name: bin_of(value, ABSOLUTE) for name, value in values.items()}
        ranked = sorted(values, key=lambda name: (-values[name], name))
        return {name: 5 * rank // len(ranked) for rank, name in enumerate(ranked)}


def fold_bins(bins: Mapping[str, int], seed: int) -> dict[str, int]:
    """The fold of each problem; every bin is parted in two halves that differ by at most one problem."""
    folds: dict[str, int] = {}
    for number in sorted(set(bins.values())):
        members = [name for name in bins if bins[name] == number]
        members.sort(key=lambda name: blake2b(f"{seed}|{name}".encode(), digest_size=8).digest())
        folds |= {name: rank % 2 for rank, name in enumerate(members)}
    return folds
