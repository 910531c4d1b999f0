"""How good a folder is: greedy accuracy, pass@k and maj@k on problems, with the product's own engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wcse.data.curves import SampleSet, accuracy_curves
from wcse.data.record import SolveRecord
from wcse.metrics import wilson
from wcse.recipe import Recipe
from wcse.solve import solve_all
from wcse.types import Problem


@dataclass(frozen=True, slots=True)
class Score:
    """Shares of the problems. ``low``, ``high``: 95 % Wilson interval of ``greedy``.

    Attributes:
        right: by problem, in order, whether the greedy answer is right.
        pass_at, maj_at: sample count -> share; empty without samples.
    """

    greedy: float
    low: float
    high: float
    right: tuple[bool, ...]
    pass_at: dict[int, float]
    maj_at: dict[int, float]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Score:
        """What ``dataclasses.asdict`` wrote."""
        curves = {name: {int(k): v for k, v in data[name].items()} for name in ("pass_at", "maj_at")}
        return cls(**{**data, **curves, "right": tuple(data["right"])})


def evaluate(
    model: str | Path,
    problems: Sequence[Problem],
    *,
    samples: int = 0,
    max_tokens: int = 256,
    temperature: float = 0.7,
    seed: int = 0,
    prefix: str = "",
    threads: int | None = None,
) -> Score:
    """Measure a causal model. Greedy answers, and maj@k as in Bansal et al. (temperature 0.7).

    Args:
        samples: drawn per problem for pass@k and maj@k; 0 draws none.
        prefix: put before every question (Distilling Step-by-Step asks ``predict: ``).

    Raises:
        WcseError: the model cannot be loaded, or a prompt does not fit.
    """
    asked = [Problem(p.id, prefix + p.prompt, p.answer) for p in problems]
    given = {
        "policy": str(model),
        "problems": "given",
        "max_tokens": max_tokens,
        "seed": seed,
        "threads": threads,
    }
    greedy = solve_all(Recipe.parse(given | {"strategies": ("greedy",), "n": 1}), asked)
    right = tuple(record.correct is True for record in greedy)
    low, high = wilson(sum(right), len(right))
    pass_at: dict[int, float] = {}
    maj_at: dict[int, float] = {}
    if samples:
        recipe = given | {"strategies": ("majority",), "n": samples, "temperature": temperature}
        pass_at, maj_at = _curves(solve_all(Recipe.parse(recipe), asked), samples, seed)
    return Score(math.fsum(right) / len(right), low, high, right, pass_at, maj_at)


def _curves(
    records: Sequence[SolveRecord], samples: int, seed: int
) -> tuple[dict[int, float], dict[int, float]]:
    sizes = [k for k in (1, 4, 8, 16, 32, 64) if k <= samples]
    curves = accuracy_curves([SampleSet.of(record) for record in records], sizes, seed=seed)
    return dict(zip(sizes, curves["pass"], strict=True)), dict(zip(sizes, curves["majority"], strict=True))
