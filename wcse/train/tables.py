"""The experiment's tables: means over seeds, and differences over the same test problems. Pure numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wcse.metrics import crossed_bootstrap, mean_and_error
from wcse.train.evaluate import Score
from wcse.train.paper import SHARES, PaperConfig


@dataclass(frozen=True)
class Outcome:
    """What a cell came to: its score on the test problems, and every look at the validation problems.

    ``looks``, ``best``: as ``Trained.checkpoints`` and ``Trained.best``.
    """

    score: Score
    looks: list[dict[str, Any]]
    best: int

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        """What ``dataclasses.asdict`` wrote."""
        return cls(Score.from_json(data["score"]), data["looks"], data["best"])

    @property
    def rate(self) -> float:
        """The learning rate that validation chose."""
        return float(self.looks[self.best]["learning_rate"])


def matrix_table(
    config: PaperConfig, bases: Mapping[str, Score], found: Mapping[tuple[str, ...], Sequence[Outcome]]
) -> list[dict[str, Any]]:
    """A row per set-up and budget: both data sources, and their difference.

    Args:
        bases: set-up -> its student's score before training.
        found: the outcomes of a cell's seeds, by the cell's key.
    """
    rows = []
    for setup in config.students():
        for n in config.budgets:
            sides = {source: found["matrix", setup, source, str(n)] for source in ("wc", "se")}
            row: dict[str, Any] = {"setup": setup, "budget": n, "base": bases[setup].greedy}
            for name, side in sides.items():
                row |= _side(name, side)
                majority = [outcome.score.maj_at for outcome in side]
                row[f"{name}_maj"] = {k: _mean([curve[k] for curve in majority]) for k in majority[0]}
            rows.append(row | _difference(sides["wc"], sides["se"]))
    return rows


def curve_table(found: Mapping[tuple[str, ...], Sequence[Outcome]]) -> list[dict[str, Any]]:
    """A row per share of the data: label-only against label and rationale."""
    rows = []
    for share in SHARES:
        plain, both = (found["curve", name, f"{share:g}"] for name in ("label", "step_by_step"))
        row = {"share": share} | _side("label", plain) | _side("step_by_step", both)
        rows.append(row | _difference(both, plain))
    return rows


def _side(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Mean accuracy over seeds, its standard error, and the learning rates (one, unless seeds chose for themselves)."""
    mean, error = mean_and_error([outcome.score.greedy for outcome in outcomes])
    rates = sorted({outcome.rate for outcome in outcomes})
    return {name: mean, f"{name}_error": None if math.isnan(error) else error, f"{name}_rates": rates}


def _difference(a: Sequence[Outcome], b: Sequence[Outcome]) -> dict[str, Any]:
    """a minus b, its interval over test problems and seeds."""
    marks = [[[float(mark) for mark in outcome.score.right] for outcome in side] for side in (a, b)]
    means = [_mean([outcome.score.greedy for outcome in side]) for side in (a, b)]
    return {"difference": means[0] - means[1], "interval": list(crossed_bootstrap(*marks))}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
