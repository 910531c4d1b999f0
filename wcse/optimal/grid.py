"""What every strategy reached on every problem, at every budget: the table that a choice is made from.

Read from one finished run. A sample set also shows its smaller budgets (the mean over subsets); a tree search
shows its own budget only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from wcse.data.costs import tree_costs
from wcse.data.curves import SampleSet, chances_by_problem
from wcse.data.journal import read_header, read_records
from wcse.data.record import SAMPLERS, SolveRecord
from wcse.optimal.difficulty import Difficulty
from wcse.replay import base_config
from wcse.search import STRATEGIES, parse_strategy
from wcse.types import WcseError


@dataclass(frozen=True)
class Cell:
    """One strategy at one budget: by problem id, the chance that its answer is right and what it costs.

    ``tokens`` are those of the policy and of a verifier of its own, each token of the tree once.
    """

    strategy: str
    n: int
    sampler: bool
    accuracy: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, float] = field(default_factory=dict)

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
                trees[_kind(cell.strategy)] = cell  # the largest that fits
        samplers = [cell for cell in self.fixed(n) if cell.sampler]
        return samplers + [cell for cell in trees.values() if cell.n > left / 2]


def _kind(strategy: str) -> str:
    spec = parse_strategy(strategy)
    return str(replace(spec, options={k: v for k, v in spec.options.items() if k != "n"}))


@dataclass
class _Samples:
    """The sample sets of one strategy, problem by problem, with the tokens of the prompt and of one sample."""

    names: list[str] = field(default_factory=list)
    sets: list[SampleSet] = field(default_factory=list)
    prompts: list[float] = field(default_factory=list)
    each: list[float] = field(default_factory=list)

    def add(self, record: SolveRecord, reads: int) -> None:
        written = sum(len(node.token_ids) for node in record.nodes)
        self.names.append(record.problem.id)
        self.sets.append(SampleSet.of(record))
        self.prompts.append(float(record.prompt_tokens * reads))
        self.each.append(written * reads / len(record.solutions))


def read_grid(directory: str | Path, budgets: Sequence[int], difficulty: Difficulty) -> Grid:
    """The grid of a finished run at these budgets.

    Raises:
        WcseError: the run has no sample set to measure difficulty on, or no strategy at one of the budgets.
    """
    header = read_header(directory)
    base = base_config(header.recipe)
    cells: dict[tuple[str, int], Cell] = {}
    sets: dict[str, _Samples] = {}
    values: dict[str, float] = {}
    probe_tokens: dict[str, float] = {}
    for record in read_records(directory):
        if record.problem.answer is None:
            continue
        name, spec = record.problem.id, parse_strategy(record.strategy)
        reads = 2 if record.ledger.prm_computed > 0 else 1
        if spec.name in SAMPLERS and spec.name != "greedy" and record.solutions and record.independent:
            sets.setdefault(record.strategy, _Samples()).add(record, reads)
            if STRATEGIES[spec.name].needs_prm or difficulty.kind != "verifier":
                values[name] = difficulty.value(record)
                probe_tokens[name] = _probe_tokens(record, difficulty, reads)
        else:
            n = 1 if spec.name == "greedy" else spec.config(base).n
            cell = cells.setdefault((record.strategy, n), Cell(record.strategy, n, sampler=False))
            cell.accuracy[name] = float(record.correct is True)
            cell.tokens[name] = float(tree_costs(record).unique * reads)
    for strategy, samples in sets.items():
        for cell in _sampler_cells(strategy, samples, budgets, header.recipe.get("seed", 0)):
            cells[cell.strategy, cell.n] = cell
    return _checked(Grid(tuple(cells.values()), difficulty, values, probe_tokens), budgets, str(directory))


def _probe_tokens(record: SolveRecord, difficulty: Difficulty, reads: int) -> float:
    if difficulty.kind == "oracle":
        return 0.0
    written = sum(len(n.token_ids) for n in record.nodes) / len(record.solutions)
    return written * difficulty.samples * (reads if difficulty.kind == "verifier" else 1)


def _sampler_cells(strategy: str, samples: _Samples, budgets: Sequence[int], seed: int) -> list[Cell]:
    spec = parse_strategy(strategy)
    most = min(s.n for s in samples.sets)
    sizes = [n for n in budgets if n <= most]
    if not sizes:
        return []
    chances = chances_by_problem(samples.sets, sizes, seed=seed)[STRATEGIES[spec.name].selector]
    cells = []
    for n, column in zip(sizes, chances.T.tolist(), strict=True):
        text = str(replace(spec, options={**spec.options, "n": n}))
        tokens = [prompt + n * each for prompt, each in zip(samples.prompts, samples.each, strict=True)]
        by_name = dict(zip(samples.names, tokens, strict=True))
        cells.append(Cell(text, n, True, dict(zip(samples.names, column, strict=True)), by_name))
    return cells


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
