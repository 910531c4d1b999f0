"""Searches of many problems at once: how full the batch is, and beam search's time beside best-of-N's.

64 problems at N=16 with the embedded models. To reach: 80 % of the rows busy until the last tenth of the tokens, and
beam search in at most 1.3 times the time of best-of-N at equal generated tokens. Both take turns, round by round.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest

from wcse.engine.engine import Engine
from wcse.problems import load_problems
from wcse.recipe import Recipe
from wcse.solve import Models, solve

pytestmark = pytest.mark.long

ROWS = 256
Timed = tuple[float, list[int]]


def _recipe(strategy: str, problems: int) -> Recipe:
    return Recipe.parse(
        {
            "policy": "tiny-wc",
            "prm": "tiny-wc-prm",
            "problems": f"gsm_symbolic:size={problems},seed=20261122",
            "strategies": (strategy,),
            "n": 16,
            "max_tokens": 256,
            "batch_size": ROWS,
        }
    )


def _run(recipe: Recipe, models: Models) -> Timed:
    """Seconds, and the rows of each step of the engine."""
    rows: list[int] = []
    begin = models.engine.begin

    def counted() -> bool:
        begun = begin()
        rows.append(len(models.engine.rows))
        return begun

    models.engine.begin = counted  # type: ignore[method-assign]
    try:
        start = time.perf_counter()
        solve(recipe, load_problems(recipe.problems), lambda _: None, models=models)
        return time.perf_counter() - start, rows
    finally:
        models.engine.begin = begin  # type: ignore[method-assign]


def occupancy(rows: list[int]) -> float:
    """Mean share of busy rows until the last tenth of the tokens."""
    done, busy, total = 0, [], sum(rows)
    for count in rows:
        if done < 0.9 * total:
            busy.append(count)
        done += count
    return statistics.fmean(busy) / ROWS


@pytest.mark.parametrize("strategy", ["beam_search", "dvts", "rebase"])
def test_search_beside_best_of_n(benchmark: Any, strategy: str) -> None:
    problems, rounds = (2, 1) if benchmark.disabled else (64, 3)
    search, samples = _recipe(strategy, problems), _recipe("best_of_n", problems)
    models = Models.load(samples)
    assert isinstance(models.engine, Engine)
    pairs: list[tuple[Timed, Timed]] = []
    benchmark.pedantic(lambda: pairs.append((_run(search, models), _run(samples, models))), rounds=rounds)
    ratios = [(a / sum(own)) / (b / sum(other)) for (a, own), (b, other) in pairs]
    (own_seconds, own), (_, other) = pairs[-1]
    benchmark.extra_info |= {
        "time_per_token_vs_best_of_n": round(statistics.median(ratios), 3),
        "occupancy": round(occupancy(own), 3),
        "occupancy_best_of_n": round(occupancy(other), 3),
        "tokens": sum(own),
        "seconds": round(own_seconds, 2),
    }
