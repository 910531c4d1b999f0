"""Numbers about runs, from counts alone: intervals, and what k of n samples would have reached.

Each ``*_at_k`` is the exact mean over all k-subsets of one problem's n samples, so it does not depend on the
order of the samples and never uses "the first k". Averages over problems are the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import groupby

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
