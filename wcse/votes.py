"""From the scores of the steps to one answer: aggregation along a path, and the selectors over solutions.

Knows neither models nor mathematics: whether two answers are equal arrives as a class number. Everything here
is independent of the order of its input, so a vote over a journal equals the vote of the live run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from wcse.types import Node, PathScores, WcseError

AGGREGATIONS: dict[str, Callable[[PathScores], float]] = {
    "last": lambda path: path.last,
    "min": lambda path: path.least,
    "prod": lambda path: _exp(path.logs),
    "mean": lambda path: path.total / path.steps,
}


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def aggregate(scores: PathScores | Sequence[float], how: str) -> float:
    """One number for a partial solution.

    Args:
        scores: a node's ``path_scores``, or the steps' scores, first step first. A NaN among those that count
            makes the result NaN, and so do no scores at all (a solution without visible text): it ranks last.
        how: ``last``, ``min``, ``prod`` (of scores that are not negative) or ``mean``.

    Raises:
        WcseError: unknown ``how``.
    """
    if how not in AGGREGATIONS:
        raise WcseError(f"agg_strategy={how!r} is unknown; use one of {', '.join(AGGREGATIONS)}")
    path = scores if isinstance(scores, PathScores) else reduce(PathScores.then, scores, PathScores())
    return AGGREGATIONS[how](path) if path.steps else math.nan


def rank_key(score: float, path: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
    """Sort key, best first: the larger score, then the smaller path. NaN counts as minus infinity."""
    return (math.inf if math.isnan(score) else -score, path)


@dataclass(frozen=True, slots=True)
class Ballot:
    """What a selector sees of one solution."""

    path: tuple[int, ...]
    complete: bool
    """Ended by itself. Unfinished text never votes."""
    answer_class: int | None
    """Equal answers share a number; None (no answer) never votes."""
    score: float | None
    """The verifier's aggregated score, None without a verifier."""


def ballots(
    solutions: Sequence[Node], answer_classes: Sequence[int | None], agg_strategy: str | None
) -> list[Ballot]:
    """The ballots of a strategy's solutions, in order; ``agg_strategy`` None: no verifier scored them.

    Raises:
        WcseError: the two sequences differ in length, or a complete solution has a step without a score.
    """
    if len(solutions) != len(answer_classes):
        raise WcseError(
            f"{len(solutions)} solutions but {len(answer_classes)} answer classes; give one for each"
        )

    def ballot(node: Node, answer_class: int | None) -> Ballot:
        # An unfinished solution may lack a score and needs none.
        score = (
            None if agg_strategy is None or not node.complete else aggregate(node.path_scores, agg_strategy)
        )
        return Ballot(node.path, node.complete, answer_class, score)

    return [ballot(node, cls) for node, cls in zip(solutions, answer_classes, strict=True)]


def by_rank(votes: Sequence[Ballot]) -> list[Ballot]:
    """The ballots with each score replaced by the share of scores that it beats or equals, ties sharing the mean.

    For a verifier with unbounded scores: the order stays, and sums over classes mean something. A missing or NaN
    score stays as it is.
    """
    scores = [b.score for b in votes if b.score is not None and not math.isnan(b.score)]

    def share(score: float | None) -> float | None:
        if score is None or math.isnan(score):
            return score
        below, equal = sum(s < score for s in scores), sum(s == score for s in scores)
        return (below + (equal + 1) / 2) / len(scores)

    return [replace(ballot, score=share(ballot.score)) for ballot in votes]


def argmax(votes: Sequence[Ballot]) -> int | None:
    """Index of the complete solution with the largest score; None if none is complete."""
    complete = [index for index, ballot in enumerate(votes) if ballot.complete]
    return min(complete, key=lambda index: rank_key(_score(votes[index]), votes[index].path), default=None)


def majority(votes: Sequence[Ballot]) -> int | None:
    """Index of the best solution in the most frequent answer class; None if nobody votes. Needs no scores."""
    return _elect(votes, len)


def weighted(votes: Sequence[Ballot]) -> int | None:
    """Index of the best solution in the answer class with the largest sum of scores; None if nobody votes.

    Raises:
        WcseError: a vote's score is missing or outside [0, 1]: sums of unbounded rewards mean nothing.
    """
    for ballot in _voters(votes):
        score = _score(ballot)
        if not (0.0 <= score <= 1.0 or math.isnan(score)):
            raise WcseError(
                f"score={score:g} of solution {ballot.path}: the weighted vote needs scores in [0, 1]; "
                "use the selector argmax or majority, or a verifier that returns probabilities"
            )
    return _elect(votes, _sum)


Selector = Callable[[Sequence[Ballot]], int | None]

SELECTORS: dict[str, Selector] = {"argmax": argmax, "majority": majority, "weighted": weighted}
"""From ballots to the index of the chosen solution. ``argmax`` and ``weighted`` need a verifier's scores."""


def get_selector(name: str) -> Selector:
    """The selector of that name.

    Raises:
        WcseError: no such selector; the message lists them.
    """
    if name not in SELECTORS:
        raise WcseError(f"selector={name!r} is unknown; use one of {', '.join(SELECTORS)}")
    return SELECTORS[name]


def _elect(votes: Sequence[Ballot], weight: Callable[[list[Ballot]], float]) -> int | None:
    """The best member of the heaviest class. Ties: larger sum of scores, larger score, smaller path."""
    classes: dict[int | None, list[Ballot]] = {}
    for ballot in _voters(votes):
        classes.setdefault(ballot.answer_class, []).append(ballot)
    if not classes:
        return None

    def order(members: list[Ballot]) -> tuple[float, float, float, tuple[int, ...]]:
        best = max(_or_zero(ballot) for ballot in members)
        return -weight(members), -_sum(members), -best, min(ballot.path for ballot in members)

    winners = min(classes.values(), key=order)
    best = min(winners, key=lambda ballot: rank_key(_or_zero(ballot), ballot.path))
    return next(index for index, ballot in enumerate(votes) if ballot is best)


def _voters(votes: Sequence[Ballot]) -> list[Ballot]:
    return [ballot for ballot in votes if ballot.complete and ballot.answer_class is not None]


def _sum(members: Sequence[Ballot]) -> float:
    """The sum of the scores; exact, so that it does not depend on the order of the votes."""
    return math.fsum(_or_zero(ballot) for ballot in members)


def _score(ballot: Ballot) -> float:
    if ballot.score is None:
        raise WcseError(
            f"solution {ballot.path} has no score; set a verifier (prm) or use the selector majority"
        )
    return ballot.score


def _or_zero(ballot: Ballot) -> float:
    """A missing or broken (NaN) score weighs nothing."""
    return ballot.score if ballot.score is not None and math.isfinite(ballot.score) else 0.0
