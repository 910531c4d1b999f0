"""The choice itself: the best strategy of each difficulty bin at each budget, cross-validated in two folds.

A bin's strategy is taken from the other fold, so no problem chooses for itself; it has to beat the best single
strategy of that fold by one standard error, or that one is kept. Looking has to pay as well: the choice after the
probes must beat the best strategy that has the whole budget by one standard error, or there are no probes and that one
runs. Single strategies are chosen and judged in the same way.
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
class Column:
    """What to do at one budget: after the probes, a cell for each bin, easiest first; without them, the only cell."""

    probed: bool
    cells: tuple[Cell, ...]

    def cell(self, number: int) -> Cell:
        """The cell of a bin."""
        return self.cells[number if self.probed else 0]


@dataclass(frozen=True)
class Table:
    """What to do at each budget, and the edges of the bins."""

    edges: tuple[float, ...]
    choices: dict[int, Column]


def best_cell(cells: Sequence[Cell], names: Sequence[str]) -> Cell:
    """The most accurate on these problems; ties go to the cheaper, then to the first by name."""
    return min(cells, key=lambda cell: (-round(cell.mean(names), 12), cell.cost(names), cell.strategy))


def choose(cells: Sequence[Cell], names: Sequence[str], default: Cell) -> Cell:
    """The best cell on these problems if it beats ``default`` there by one standard error, else ``default``."""
    if not names:
        return default
    best = best_cell(cells, names)
    return best if _pays([best.accuracy[name] - default.accuracy[name] for name in names]) else default


def _pays(gains: Sequence[float]) -> bool:
    """The mean gain exceeds its standard error."""
    mean = math.fsum(gains) / len(gains)
    variance = math.fsum((gain - mean) ** 2 for gain in gains) / max(1, len(gains) - 1)
    return mean > math.sqrt(variance / len(gains))


def fit(grid: Grid, budgets: Sequence[int], names: Sequence[str] | None = None) -> Table:
    """The table from these problems, or from all."""
    names = list(names if names is not None else grid.problems)
    edges = grid.difficulty.edges([grid.values[name] for name in names])
    bins = {name: bin_of(grid.values[name], edges) for name in names}
    return Table(edges, {n: _column(grid, n, names, bins, len(edges) + 1) for n in budgets})


def _column(grid: Grid, n: int, names: Sequence[str], bins: Mapping[str, int], count: int) -> Column:
    whole, after = best_cell(grid.fixed(n), names), grid.after_probes(n)
    if not after:
        return Column(False, (whole,))
    default = best_cell(after, names)
    cells = tuple(choose(after, [x for x in names if bins[x] == b], default) for b in range(count))
    free = grid.difficulty.kind == "oracle"  # it draws nothing
    gains = [cells[bins[name]].accuracy[name] - whole.accuracy[name] for name in names]
    return Column(True, cells) if free or _pays(gains) else Column(False, (whole,))


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
                cell, probed = picks[name]
                probes = grid.probe_tokens[name] if probed and not cell.sampler else 0.0
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
) -> dict[str, tuple[Cell, bool]]:
    """The cell of each test problem, and whether probes come before it.

    Oracle bins are ranks among all; predicted ones have the edges of ``train``.
    """
    if grid.difficulty.kind == "oracle":
        column = _column(grid, n, train, ranks, max(ranks.values()) + 1)
        return {name: (column.cell(ranks[name]), column.probed) for name in test}
    table = fit(grid, (n,), train)
    column = table.choices[n]
    return {name: (column.cell(bin_of(grid.values[name], table.edges)), column.probed) for name in test}


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
