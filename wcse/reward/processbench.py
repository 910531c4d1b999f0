"""ProcessBench (arXiv 2412.06559): where does a solution go wrong first, if it does?

The prediction is the first step whose score lies below a threshold, or "all correct". A subset's F1 is the harmonic
mean of two accuracies: of wrong solutions the exact step must be named, of right ones none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from wcse.types import WcseError

ALL_CORRECT = -1

UNKNOWN = -2
"""The prediction where a verifier gave no verdict: never right."""


@dataclass(frozen=True)
class Case:
    """A solution and the index of its first wrong step, or ``ALL_CORRECT``."""

    id: str
    problem: str
    steps: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Result:
    """One subset: accuracies on solutions with and without an error, in [0, 1]."""

    wrong: int
    right: int
    acc_error: float
    acc_correct: float

    @property
    def f1(self) -> float:
        """Harmonic mean of the two accuracies; 0 where both are 0."""
        total = self.acc_error + self.acc_correct
        return 2 * self.acc_error * self.acc_correct / total if total else 0.0


def read_cases(path: Path) -> list[Case]:
    """The rows of a .jsonl, .json or .parquet file with ``problem``, ``steps`` and ``label``.

    Raises:
        WcseError: no such file, not of this format, or a label that is no step of its row.
    """
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_table(path).to_pylist()
        else:
            text = path.read_text(encoding="utf-8")
            rows = (
                json.loads(text)
                if path.suffix == ".json"
                else [json.loads(x) for x in text.splitlines() if x.strip()]
            )
    except (OSError, ValueError) as error:
        raise WcseError(
            f"{path}: cannot be read ({error}); give ProcessBench rows as .jsonl, .json or .parquet"
        ) from None
    return [_case(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]


def _case(row: Mapping[str, Any], where: str) -> Case:
    if not isinstance(row, Mapping) or not {"problem", "steps", "label"} <= row.keys():
        raise WcseError(f"{where}: needs the columns problem, steps and label")
    steps, label = row["steps"], row["label"]
    if not isinstance(steps, list) or not steps or not all(isinstance(s, str) and s.strip() for s in steps):
        raise WcseError(f"{where}: steps must be a list of texts, none of them blank")
    if not isinstance(label, int) or not ALL_CORRECT <= label < len(steps):
        raise WcseError(f"{where}: label={label!r} must be -1 or the index of one of the {len(steps)} steps")
    return Case(str(row.get("id", where)), str(row["problem"]), tuple(steps), label)


def first_error(scores: Sequence[float], threshold: float) -> int:
    """Index of the first score below the threshold, or ``ALL_CORRECT``; ``UNKNOWN`` where a NaN comes before it."""
    wrong = next((i for i, score in enumerate(scores) if not score >= threshold), ALL_CORRECT)
    return UNKNOWN if wrong != ALL_CORRECT and math.isnan(scores[wrong]) else wrong


def evaluate(cases: Sequence[Case], scores: Sequence[Sequence[float]], threshold: float) -> Result:
    """The accuracies of one subset.

    Args:
        cases: of the subset.
        scores: one for each step of each case.
        threshold: below it a step counts as wrong.

    Raises:
        WcseError: the subset lacks solutions of one of the two kinds, so that F1 means nothing.
    """
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for case, row in zip(cases, scores, strict=True):
        hits[case.label == ALL_CORRECT].append(first_error(row, threshold) == case.label)
    right, wrong = hits[True], hits[False]
    if not right or not wrong:
        raise WcseError(
            f"{len(wrong)} solutions with an error and {len(right)} without: F1 needs both; give the whole subset"
        )
    return Result(len(wrong), len(right), sum(wrong) / len(wrong), sum(right) / len(right))


def best_threshold(cases: Sequence[Case], scores: Sequence[Sequence[float]]) -> float:
    """The threshold with the best F1 on these cases, half-way between two scores; the lowest among equals.

    Raises:
        WcseError: there is no score to choose by, or F1 means nothing (see ``evaluate``).
    """
    values = sorted({score for row in scores for score in row if not math.isnan(score)})
    if not values:
        raise WcseError("no threshold can be chosen: the verifier gave no score on these cases")
    middles = [(a + b) / 2 for a, b in pairwise(values)]
    candidates = [values[0], *_thinned(middles)]
    return max(candidates, key=lambda t: (evaluate(cases, scores, t).f1, -t))


def _thinned(values: list[float], most: int = 512) -> list[float]:
    """At most so many of the values, evenly over their ranks."""
    step = max(1, -(-len(values) // most))
    return values[::step]
