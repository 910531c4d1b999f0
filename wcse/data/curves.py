"""Accuracy against the budget N, recomputed from one set of samples: what every selector would have chosen.

What may be left out is a unit: a sample, or a whole subtree of DVTS. A point is the mean over all subsets of so
many units of a problem, or over many seeded ones where there are too many; never "the first N". With all units
it is the vote itself. Tie rules are those of ``wcse.votes``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from wcse.data.record import SolveRecord
from wcse.metrics import pass_at_k

_MOST_SUBSETS = 512
_MOST_CELLS = 1 << 22
"""Subsets x samples x answer classes that one problem may cost at one N."""

Flags = NDArray[np.bool_]
Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class SampleSet:
    """The solutions of one problem, in path order; n solutions, C answer classes.

    Attributes:
        complete: bool [n], ended by itself.
        members: bool [n, C], sample votes for class.
        scores: float64 [n], aggregated score; -inf where it is missing or not a number.
        correct: bool [n]; undecided counts as wrong.
        units: int64 [n], which of the ``unit_count`` units each belongs to. A unit may have no solution.
    """

    complete: Flags
    members: Flags
    scores: Numbers
    correct: Flags
    scored: bool
    units: Indices
    unit_count: int

    @classmethod
    def of(cls, record: SolveRecord, starts: Sequence[int] | None = None) -> SampleSet:
        """The samples of a record whose solutions are ``independent``.

        Args:
            starts: first child index of the root of each subtree, where a unit is a subtree.
        """
        pairs = sorted(zip(record.ballots(), record.solutions, strict=True), key=lambda pair: pair[0].path)
        ballots = [ballot for ballot, _ in pairs]
        numbers = sorted({b.answer_class for b in ballots if b.answer_class is not None})
        column = {number: index for index, number in enumerate(numbers)}
        members = np.zeros((len(ballots), max(1, len(numbers))), dtype=bool)
        for row, ballot in enumerate(ballots):
            if ballot.complete and ballot.answer_class is not None:
                members[row, column[ballot.answer_class]] = True
        return cls(
            complete=np.array([ballot.complete for ballot in ballots], dtype=bool),
            members=members,
            scores=np.array([_score(ballot.score) for ballot in ballots]),
            correct=np.array([bool(solution.correct) for _, solution in pairs], dtype=bool),
            scored=all(ballot.score is not None for ballot in ballots if ballot.complete),
            units=np.arange(len(ballots))
            if starts is None
            else np.searchsorted(np.asarray(starts), [b.path[0] for b in ballots], side="right") - 1,
            unit_count=len(ballots) if starts is None else len(starts),
        )

    @property
    def n(self) -> int:
        return len(self.correct)


def accuracy_curves(sets: Sequence[SampleSet], sizes: Sequence[int], *, seed: int) -> dict[str, list[float]]:
    """Mean accuracy over problems of each selector at each N of ``sizes``, and ``pass``: some sample is
    right.

    Args:
        sets: one per problem, none with fewer units than the largest N.
        sizes: numbers of units.
        seed: of the subsets, where they are drawn.
    """
    chances = chances_by_problem(sets, sizes, seed=seed)
    return {
        name: [math.fsum(column) / len(sets) for column in zip(*table, strict=True)]
        for name, table in ((name, table.tolist()) for name, table in chances.items())
    }


def chances_by_problem(
    sets: Sequence[SampleSet], sizes: Sequence[int], *, seed: int
) -> dict[str, NDArray[np.float64]]:
    """As :func:`accuracy_curves`, before the mean: float64 [problems, sizes] for each selector and ``pass``."""
    selectors = {"majority": majority_wins}
    if all(samples.scored for samples in sets):
        selectors |= {"weighted": weighted_wins, "argmax": argmax_wins}
    tables = {name: np.zeros((len(sets), len(sizes))) for name in ("pass", *selectors)}
    for place, size in enumerate(sizes):
        for index, samples in enumerate(sets):
            drawn = subsets(samples, size, np.random.default_rng([seed, size, index]))
            single = samples.unit_count == samples.n
            right = int(samples.correct.sum())
            tables["pass"][index, place] = (
                pass_at_k(samples.n, right, size) if single else (drawn & samples.correct).any(axis=1).mean()
            )
            for name, wins in selectors.items():
                tables[name][index, place] = float(wins(samples, drawn).mean()) if samples.n else 0.0
    return tables


def subsets(samples: SampleSet, size: int, rng: np.random.Generator) -> Flags:
    """Membership masks, bool [B, n]: all subsets of ``size`` units, or B seeded ones."""
    n = samples.unit_count
    most = max(16, min(_MOST_SUBSETS, _MOST_CELLS // max(1, samples.members.size)))
    if math.comb(n, size) <= most:
        chosen = np.array(list(combinations(range(n), size)), dtype=np.int64)
    else:
        chosen = np.argsort(rng.random((most, n)), axis=1)[:, :size]
    masks = np.zeros((len(chosen), n), dtype=bool)
    np.put_along_axis(masks, chosen, True, axis=1)
    whole: Flags = masks[:, samples.units]
    return whole


def argmax_wins(samples: SampleSet, masks: Flags) -> Flags:
    """For each subset, bool [B]: the complete sample with the largest score is right."""
    # Complete samples without a usable score rank below all others but above unfinished ones.
    values = np.where(samples.complete, np.maximum(samples.scores, -1e300), -np.inf)
    drawn = np.where(masks, values, -np.inf)
    best = drawn.argmax(axis=1)  # the first of equals: samples are in path order
    return samples.correct[best] & np.isfinite(drawn.max(axis=1))


def majority_wins(samples: SampleSet, masks: Flags) -> Flags:
    """For each subset, bool [B]: the most frequent answer is right; ties by the sum of scores."""
    counts = masks.astype(np.float64) @ samples.members
    return _elect(samples, masks, [counts, _sums(samples, masks)])


def weighted_wins(samples: SampleSet, masks: Flags) -> Flags:
    """For each subset, bool [B]: the answer with the largest sum of scores is right."""
    return _elect(samples, masks, [_sums(samples, masks)])


def _sums(samples: SampleSet, masks: Flags) -> Numbers:
    weights = np.where(np.isfinite(samples.scores), samples.scores, 0.0)
    return masks.astype(np.float64) @ (samples.members * weights[:, None])


def _elect(samples: SampleSet, masks: Flags, keys: list[Numbers]) -> Flags:
    """The class with the largest keys wins; then the larger single score, then the smallest path."""
    present = masks[:, :, None] & samples.members[None]  # [B, n, C]
    voters = present.any(axis=1)
    scores = samples.scores if samples.scored else np.zeros(samples.n)
    single = np.where(present, np.maximum(scores, -1e300)[None, :, None], -np.inf).max(axis=1)
    first = np.where(voters, -present.argmax(axis=1), -np.inf)
    left = voters
    for key in (*keys, single, first):
        value = np.where(left, key, -np.inf)
        top = value.max(axis=1, keepdims=True)
        left = left & (value >= top - 1e-12 * np.abs(top, where=np.isfinite(top), out=np.zeros_like(top)))
    right: Flags = np.any(
        samples.members & samples.correct[:, None], axis=0
    )  # equal answers share their verdict
    won: Flags = np.any(left & right, axis=1)
    return won


def _score(score: float | None) -> float:
    return score if score is not None and math.isfinite(score) else -math.inf
