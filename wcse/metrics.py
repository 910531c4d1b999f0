"""Numbers about runs, from counts alone: intervals, tests, and what k of n samples would have reached.

Each ``*_at_k`` is the exact mean over all k-subsets of one problem's n samples, so it does not depend on the
order of the samples and never uses "the first k". Averages over problems are the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import groupby

import numpy as np

from wcse.types import WcseError
from wcse.votes import rank_key


def wilson(k: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a share: ``k`` successes in ``n`` trials, at the ``z`` quantile (95 %).

    ``k`` may be a fraction: the mean over several samples of each of the ``n`` problems, times ``n``.

    Nothing tried says nothing: (0, 1) for ``n = 0``.

    Raises:
        WcseError: not 0 <= k <= n.
    """
    if not 0 <= k <= n:
        raise WcseError(f"k={k} successes of n={n} trials; need 0 <= k <= n")
    if n == 0:
        return 0.0, 1.0
    share, spread = k / n, z * z / n
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # At the ends one bound is exact; rounding must not push it past 0 or 1.
    low = 0.0 if k == 0 else (middle - half) / (1 + spread)
    high = 1.0 if k == n else (middle + half) / (1 + spread)
    return low, high


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n samples, drawn without replacement, hold one of the ``c`` correct ones.

    ``1 - C(n-c, k) / C(n, k)``; NaN for k > n, where there is no such subset.

    Raises:
        WcseError: not 0 <= c <= n, or k < 1.
    """
    if not 0 <= c <= n or k < 1:
        raise WcseError(f"n={n}, c={c}, k={k}; need 0 <= c <= n and k >= 1")
    if k > n:
        return math.nan
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / j for j in range(n - c + 1, n + 1))


def best_of_k(scores: Sequence[float], correct: Sequence[bool], k: int) -> float:
    """Chance that the sample with the largest score among k of n is correct.

    A tie counts by its share of correct samples; NaN ranks below every number. NaN for k > n.

    Args:
        scores: aggregated score of each complete sample.
        correct: whether its answer is right.
    """
    n = len(scores)
    if n != len(correct) or k < 1:
        raise WcseError(f"{n} scores, {len(correct)} marks, k={k}; need one mark a score and k >= 1")
    if k > n:
        return math.nan
    # Best score first: the subsets whose best lies in a group of equal scores are those drawn from this group
    # and below, less those drawn from below alone. Fractions: C(n, k) leaves a float's range at n = 1,030.
    marks = sorted((rank_key(score, ()), bool(mark)) for score, mark in zip(scores, correct, strict=True))
    left, wins = n, Fraction(0)
    for _, group in groupby(marks, key=lambda pair: pair[0]):
        tied = [mark for _, mark in group]
        subsets = math.comb(left, k) - math.comb(left - len(tied), k)
        wins += Fraction(subsets * sum(tied), len(tied))
        left -= len(tied)
    return float(wins / math.comb(n, k))


def majority_at_k(votes: Sequence[int], gold_votes: int, invalid: int, k: int) -> float:
    """Chance that the gold class wins the majority vote of k of n samples; a tie counts by its share.

    Args:
        votes: samples in each wrong answer class.
        gold_votes: samples in the correct class.
        invalid: samples without an answer; they are drawn but do not vote.
        k: samples drawn. NaN for k > n = sum(votes) + gold_votes + invalid.
    """
    n = sum(votes) + gold_votes + invalid
    if k < 1 or min(gold_votes, invalid, *votes) < 0:
        raise WcseError(
            f"votes={list(votes)}, gold_votes={gold_votes}, invalid={invalid}, k={k}: below 0, or k < 1"
        )
    if k > n:
        return math.nan
    wins = Fraction(0)
    for top in range(1, min(gold_votes, k) + 1):
        ways = _ways_below(votes, invalid, top, k - top)
        share = sum(Fraction(count, ties + 1) for ties, count in enumerate(ways))
        wins += math.comb(gold_votes, top) * share
    return float(wins / math.comb(n, k))


def diversity_at_k(multiplicities: Sequence[int], n: int, k: int) -> float:
    """Expected number of different correct solutions among k of n samples; NaN for k > n.

    Args:
        multiplicities: how often each different correct solution occurs among the n samples.
    """
    if k < 1 or any(count < 1 for count in multiplicities) or sum(multiplicities) > n:
        raise WcseError(
            f"multiplicities={list(multiplicities)}, n={n}, k={k}; need counts of at least 1 that sum to at "
            "most n, and k >= 1"
        )
    if k > n:
        return math.nan
    return math.fsum(pass_at_k(n, count, k) for count in multiplicities)


def selection_efficiency(accuracy: float, majority: float, coverage: float) -> float:
    """How much of the way from the majority vote to the best possible choice a selector goes: 1 is all of it.

    Below 0 it does worse than the vote. NaN where there is no way to go.
    """
    room = coverage - majority
    return (accuracy - majority) / room if room >= 1e-9 else math.nan


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of McNemar's test: two methods on the same problems.

    Args:
        only_a, only_b: problems that only the one or only the other got right.

    Raises:
        WcseError: a count below 0.
    """
    if min(only_a, only_b) < 0:
        raise WcseError(f"only_a={only_a}, only_b={only_b}; counts are at least 0")
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**n)))


def bootstrap(
    values: Sequence[float], *, seed: int = 0, draws: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean of ``values``, problems drawn with replacement.

    Give differences between two methods problem by problem for a paired comparison. (NaN, NaN) for no values.
    """
    if not len(values):
        return math.nan, math.nan
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            array[rng.integers(0, len(array), (part, len(array)))].mean(axis=1)
            for part in _parts(draws, len(array))
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def crossed_bootstrap(
    a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], *, seed: int = 0, draws: int = 10_000
) -> tuple[float, float]:
    """95 % percentile interval of mean(a) - mean(b), where both sides answered the same problems in several runs.

    Problems are drawn with replacement, the same for both sides; so are the runs of each side, one fewer than there
    are: few runs drawn in full would spread too little (Rao and Wu, 1988). One run alone says nothing about others.

    Args:
        a, b: marks as [runs, problems]; the numbers of runs may differ.
    """
    rng = np.random.default_rng(seed)
    sides = [np.asarray(marks, dtype=np.float64) for marks in (a, b)]
    problems = sides[0].shape[1]
    found = []
    for part in _parts(draws, problems):
        drawn = rng.integers(0, problems, (part, problems))
        total = np.zeros(part)
        for sign, marks in zip((1.0, -1.0), sides, strict=True):
            runs = len(marks)
            chosen = rng.integers(0, runs, (part, max(1, runs - 1)))
            total += sign * np.take_along_axis(marks[chosen].mean(axis=1), drawn, axis=1).mean(axis=1)
        found.append(total)
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return float(low), float(high)


def _parts(draws: int, n: int) -> list[int]:
    """``draws`` in parts whose samples fit in a few MB."""
    size = max(1, 1_000_000 // n)
    return [min(size, draws - start) for start in range(0, draws, size)]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, over seeds say; the error of one value is NaN.

    Raises:
        WcseError: no values.
    """
    if not values:
        raise WcseError("values=[]; give at least one")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _ways_below(votes: Sequence[int], invalid: int, top: int, rest: int) -> list[int]:
    """Ways to draw ``rest`` samples outside the gold class, none of whose classes exceeds ``top``.

    Entry t of the result counts those in which t classes reach ``top``.
    """
    ways = {(0, drawn): math.comb(invalid, drawn) for drawn in range(min(invalid, rest) + 1)}  # (ties, drawn)
    for count in votes:
        grown: dict[tuple[int, int], int] = {}
        for (ties, drawn), old in ways.items():
            for take in range(min(count, top, rest - drawn) + 1):
                key = (ties + (take == top), drawn + take)
                grown[key] = grown.get(key, 0) + old * math.comb(count, take)
        ways = grown
    return [ways.get((ties, rest), 0) for ties in range(len(votes) + 1)]
