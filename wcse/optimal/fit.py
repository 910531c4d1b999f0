"""The choice itself: the best strategy of each difficulty bin at each budget, cross-validated in two folds.

A bin's strategy is taken from the other fold, so no problem chooses for itself; it has to beat the best single
strategy of that fold by one standard error, or that one is kept. Single strategies are chosen and judged in the
same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wcse.metrics import bootstrap
from wcse.optimal.difficulty import fold_bins
from wcse.optimal.grid import Cell, Grid
from wcse.search.auto import bin_of
from wcse.types import WcseError

SEEDS = 20
"""Partitions into folds that a cross-validated number is averaged over."""


@dataclass(frozen=True)
class Table:
    """The strategy of each bin at each budget, easiest bin first, and the edges of the bins."""

    edges: tuple[float, ...]
    choices: dict[int, tuple[Cell, ...]]


def best_cell(cells: Sequence[Cell], names: Sequence[str]) -> Cell:
    """The most accurate on these problems; ties go to the cheaper, then to the first by name."""
    return min(cells, key=lambda cell: (-round(cell.mean(names), 12), cell.cost(names), cell.strategy))


def choose(cells: Sequence[Cell], names: Sequence[str], default: Cell) -> Cell:
    """The best cell on these problems if it beats ``default`` there by one standard error, else ``default``."""
    if not names:
        return default
    best = best_cell(cells, names)
    gains = [best.accuracy[name] - default.accuracy[name] for name in names]
    mean = math.fsum(gains) / len(gains)
    variance = math.fsum((gain - mean) ** 2 for gain in gains) / max(1, len(gains) - 1)
    return best if mean > math.sqrt(variance / len(gains)) else default


def fit(grid: Grid, budgets: Sequence[int], names: Sequence[str] | None = None) -> Table:
    """The table from these problems, or from all.

    Raises:
        WcseError: a budget has nothing to choose from after the probes.
    """
    names = list(names if names is not None else grid.problems)
    edges = grid.difficulty.edges([grid.values[name] for name in names])
    bins = {name: bin_of(grid.values[name], edges) for name in names}
    return Table(edges, {n: _column(grid, n, names, bins, len(edges) + 1) for n in budgets})


def _column(
    grid: Grid, n: int, names: Sequence[str], bins: Mapping[str, int], count: int
) -> tuple[Cell, ...]:
    cells = grid.after_probes(n)
    if not cells:
        raise WcseError(
            f"budget n={n} leaves nothing to choose from after {grid.difficulty.samples} probes; "
            "use fewer probes or a larger budget"
        )
    default = best_cell(cells, names)
    return tuple(choose(cells, [x for x in names if bins[x] == b], default) for b in range(count))


def cross_validate(grid: Grid, n: int) -> dict[str, Any]:
    """Accuracy and cost at budget ``n`` of the choice by bins and of the best single strategy.

    Both are chosen on one half of the problems and judged on the other, averaged over ``SEEDS`` partitions. The
    cost of ``auto`` holds the probes, less those that a sample set goes on from; ``tokens_without`` leaves them
    out. Intervals draw the problems anew.
    """
    ranks = grid.difficulty.assign(grid.values)
    total = {name: [0.0, 0.0, 0.0, 0.0, 0.0] for name in grid.problems}
    for seed in range(SEEDS):
        folds = fold_bins(ranks, seed)
        for held in (0, 1):
            train = [name for name in grid.problems if folds[name] != held]
            test = [name for name in grid.problems if folds[name] == held]
            if not train or not test:
                raise WcseError(f"{len(grid.problems)} problems are too few for two folds; use more problems")
            single = best_cell(grid.fixed(n), train)
            picks = _picks(grid, n, train, test, ranks)
            for name in test:
                cell = picks[name]
                probes = 0.0 if cell.sampler else grid.probe_tokens[name]
                got = (
                    cell.accuracy[name],
                    cell.tokens[name],
                    cell.tokens[name] - probes,
                    single.accuracy[name],
                    single.tokens[name],
                )
                total[name] = [old + new / SEEDS for old, new in zip(total[name], got, strict=True)]
    columns = list(zip(*total.values(), strict=True))
    means = [math.fsum(column) / len(column) for column in columns]
    gains = [row[0] - row[3] for row in total.values()]
    return {
        "n": n,
        "auto": _point(columns[0], means[1]) | {"tokens_without_probes": means[2]},
        "best_fixed": _point(columns[3], means[4]),
        "gain": means[0] - means[3],
        "gain_low": bootstrap(gains)[0],
        "gain_high": bootstrap(gains)[1],
    }


def _picks(
    grid: Grid, n: int, train: Sequence[str], test: Sequence[str], ranks: Mapping[str, int]
) -> dict[str, Cell]:
    """The cell of each test problem. Oracle bins are ranks among all; predicted ones have the edges of ``train``."""
    if grid.difficulty.kind == "oracle":
        column = _column(grid, n, train, ranks, max(ranks.values()) + 1)
        return {name: column[ranks[name]] for name in test}
    table = fit(grid, (n,), train)
    return {name: table.choices[n][bin_of(grid.values[name], table.edges)] for name in test}


def _point(values: Sequence[float], tokens: float) -> dict[str, float]:
    low, high = bootstrap(values)
    return {"accuracy": math.fsum(values) / len(values), "low": low, "high": high, "tokens": tokens}


def fixed_points(grid: Grid, n: int) -> list[dict[str, Any]]:
    """Every single strategy at a budget: accuracy with its interval, and mean tokens."""
    names = grid.problems
    return [
        {"strategy": cell.strategy, "n": n, **_point([cell.accuracy[x] for x in names], cell.cost(names))}
        for cell in grid.fixed(n)
    ]


def by_bin(grid: Grid, n: int) -> list[dict[str, Any]]:
    """Accuracy of every single strategy in every difficulty bin at a budget; bins by rank or absolute."""
    bins = grid.difficulty.assign(grid.values)
    rows = []
    for number in sorted(set(bins.values())):
        members = [name for name in grid.problems if bins[name] == number]
        for cell in grid.fixed(n):
            point = _point([cell.accuracy[x] for x in members], cell.cost(members))
            rows.append({"bin": number, "problems": len(members), "n": n, "strategy": cell.strategy, **point})
    return rows
