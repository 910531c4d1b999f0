"""What every strategy reached on every problem, at every budget: the table that a choice is made from.

Read from one finished run. A sample set also shows its smaller budgets (the mean over subsets); a tree search
shows its own budget only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wcse.data.costs import tree_costs
from wcse.data.curves import SampleSet, chances_by_problem
from wcse.data.journal import read_header, read_records
from wcse.data.record import SAMPLERS, SolveRecord
from wcse.optimal.difficulty import Difficulty
from wcse.replay import base_config
from wcse.search import STRATEGIES, Spec, parse_strategy
from wcse.types import WcseError


@dataclass(frozen=True)
class Cell:
    """One strategy at one budget: by problem id, the chance that its answer is right and what it costs.

    ``tokens`` are those of the policy and of a verifier of its own, each token of the tree once; ``flops`` the
    operations of both.
    """

    strategy: str
    n: int
    sampler: bool
    accuracy: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, float] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)

    def mean(self, names: Sequence[str]) -> float:
        """Mean accuracy over these problems."""
        return math.fsum(self.accuracy[name] for name in names) / len(names)

    def cost(self, names: Sequence[str]) -> float:
        """Mean tokens over these problems."""
        return math.fsum(self.tokens[name] for name in names) / len(names)


@dataclass(frozen=True)
class Grid:
    """All cells, each problem's difficulty, and the tokens that measuring it takes."""

    cells: tuple[Cell, ...]
    difficulty: Difficulty
    values: dict[str, float]
    probe_tokens: dict[str, float]

    @property
    def problems(self) -> list[str]:
        return list(self.values)

    def fixed(self, n: int) -> list[Cell]:
        """Every strategy that uses the whole budget."""
        return [cell for cell in self.cells if cell.n == n]

    def after_probes(self, n: int) -> list[Cell]:
        """What can be chosen after the probes: sample sets go on from them, tree searches get what is left."""
        if self.difficulty.kind == "oracle":
            return self.fixed(n)
        left = n - self.difficulty.samples
        trees: dict[str, Cell] = {}
        for cell in sorted(self.cells, key=lambda cell: cell.n):
            if not cell.sampler and cell.n <= left:
                trees[without_n(cell.strategy)] = cell  # the largest that fits
        samplers = [cell for cell in self.fixed(n) if cell.sampler]
        return samplers + [cell for cell in trees.values() if cell.n > left / 2]


def without_n(strategy: str) -> str:
    """A strategy's spelling without its budget, the same at every one."""
    spec = parse_strategy(strategy)
    return str(replace(spec, options={k: v for k, v in spec.options.items() if k != "n"}))


@dataclass
class _Samples:
    """The sample sets of one strategy, problem by problem, with the cost of the prompt and of one sample."""

    names: list[str] = field(default_factory=list)
    sets: list[SampleSet] = field(default_factory=list)
    tokens: list[tuple[float, float]] = field(default_factory=list)
    flops: list[tuple[float, float]] = field(default_factory=list)

    def add(self, record: SolveRecord) -> None:
        written, count = sum(len(node.token_ids) for node in record.nodes), len(record.solutions)
        spent, read = _flops(record), record.prompt_tokens / ((record.prompt_tokens + written) or 1)
        self.names.append(record.problem.id)
        self.sets.append(SampleSet.of(record))
        self.tokens.append((record.prompt_tokens * _reads(record), written * _reads(record) / count))
        self.flops.append((spent * read, spent * (1 - read) / count))

    def cell(self, spec: Spec, n: int, chances: Sequence[float]) -> Cell:
        def at_n(costs: Sequence[tuple[float, float]]) -> dict[str, float]:
            return {name: fixed + n * each for name, (fixed, each) in zip(self.names, costs, strict=True)}

        text = str(replace(spec, options={**spec.options, "n": n}))
        accuracy = dict(zip(self.names, chances, strict=True))
        return Cell(text, n, True, accuracy, at_n(self.tokens), at_n(self.flops))


class CellReader:
    """Collects the records of one run; ``cells`` gives what every strategy reached and spent."""

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        self._base = base_config(recipe)
        self._seed = recipe.get("seed", 0)
        self._trees: dict[str, Cell] = {}
        self._samples: dict[str, _Samples] = {}

    def add(self, record: SolveRecord) -> None:
        spec = parse_strategy(record.strategy)
        if sampled(record):
            self._samples.setdefault(record.strategy, _Samples()).add(record)
            return
        n = 1 if spec.name == "greedy" else spec.config(self._base).n
        cell = self._trees.setdefault(record.strategy, Cell(record.strategy, n, sampler=False))
        cell.accuracy[record.problem.id] = float(record.correct is True)
        cell.tokens[record.problem.id] = float(tree_costs(record).unique * _reads(record))
        cell.flops[record.problem.id] = _flops(record)

    def cells(self, sizes: Sequence[int]) -> list[Cell]:
        """Sample sets at those of ``sizes`` that they reach, everything else as it ran."""
        cells = {(cell.strategy, cell.n): cell for cell in self._trees.values()}
        for strategy, samples in self._samples.items():
            spec, most = parse_strategy(strategy), min(s.n for s in samples.sets)
            fitting = [n for n in sizes if n <= most]
            if not fitting:
                continue
            selector = STRATEGIES[spec.name].selector
            chances = chances_by_problem(samples.sets, fitting, seed=self._seed)[selector]
            for n, column in zip(fitting, chances.T.tolist(), strict=True):
                cell = samples.cell(spec, n, column)
                cells[cell.strategy, n] = cell
        return list(cells.values())


def sampled(record: SolveRecord) -> bool:
    """Whether a record is a set of independent samples, which shows smaller budgets, too."""
    name = parse_strategy(record.strategy).name
    return name in SAMPLERS and name != "greedy" and bool(record.solutions) and record.independent


def _reads(record: SolveRecord) -> int:
    return 2 if record.ledger.prm_computed > 0 else 1


def _flops(record: SolveRecord) -> float:
    return record.ledger.policy_flops + record.ledger.prm_flops


def read_grid(directory: str | Path, budgets: Sequence[int], difficulty: Difficulty) -> Grid:
    """The grid of a finished run at these budgets.

    Raises:
        WcseError: the run has no sample set to measure difficulty on, or no strategy at one of the budgets.
    """
    reader = CellReader(read_header(directory).recipe)
    values: dict[str, float] = {}
    probe_tokens: dict[str, float] = {}
    for record in read_records(directory):
        if record.problem.answer is None:
            continue
        reader.add(record)
        scored = STRATEGIES[parse_strategy(record.strategy).name].needs_prm
        if sampled(record) and (scored or difficulty.kind != "verifier"):
            values[record.problem.id] = difficulty.value(record)
            probe_tokens[record.problem.id] = _probe_tokens(record, difficulty)
    grid = Grid(tuple(reader.cells(budgets)), difficulty, values, probe_tokens)
    return _checked(grid, budgets, str(directory))


def _probe_tokens(record: SolveRecord, difficulty: Difficulty) -> float:
    if difficulty.kind == "oracle":
        return 0.0
    written = sum(len(n.token_ids) for n in record.nodes) / len(record.solutions)
    return written * difficulty.samples * (_reads(record) if difficulty.kind == "verifier" else 1)


def _checked(grid: Grid, budgets: Sequence[int], where: str) -> Grid:
    if not grid.values:
        raise WcseError(
            f"{where}: no sample set with what difficulty={grid.difficulty.kind} needs; run majority or best_of_n, too"
        )
    for n in budgets:
        if not grid.fixed(n):
            raise WcseError(f"{where}: nothing was recorded at n={n}; give budgets that the run has")
    for cell in grid.cells:
        if set(cell.accuracy) != set(grid.values):
            raise WcseError(f"{where}: {cell.strategy} lacks some of the problems; finish the run first")
    return grid
