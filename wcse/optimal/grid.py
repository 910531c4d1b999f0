"""What every strategy reached on every problem, at every budget: the table that a choice is made from.

Read from one finished run. A sample set also shows its smaller budgets (the mean over subsets); a tree search
shows its own budget only, alone and with the probes that ``auto`` draws before it, which vote, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wcse.answers import Judge, MathPool, answer_classes
from wcse.data.costs import tree_costs
from wcse.data.curves import SampleSet, chances_by_problem
from wcse.data.journal import read_header, read_records
from wcse.data.record import SAMPLERS, NodeRecord, SolutionRecord, SolveRecord
from wcse.optimal.difficulty import Difficulty
from wcse.replay import base_config, reselect
from wcse.search import STRATEGIES, SearchConfig, Spec, parse_strategy
from wcse.types import PROBE, WcseError


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
    """All cells, each problem's difficulty, and the tokens that measuring it takes.

    ``probed`` are the tree searches again, after the probes: these vote and are paid for, ``n`` leaves them out.
    """

    cells: tuple[Cell, ...]
    difficulty: Difficulty
    values: dict[str, float]
    probe_tokens: dict[str, float]
    probed: tuple[Cell, ...] = ()

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
        if left < 0:
            return []
        trees: dict[str, Cell] = {}
        for cell in sorted(self.probed, key=lambda cell: cell.n):
            if cell.n <= left:
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
        self.names.append(record.problem.id)
        self.sets.append(SampleSet.of(record))
        self.tokens.append(_apart(record, _tokens(record)))
        self.flops.append(_apart(record, _flops(record)))

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
        cell.tokens[record.problem.id] = _tokens(record)
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


def _tokens(record: SolveRecord) -> float:
    """What the policy's tree holds, and what the verifier read of it: each token once for each of its models."""
    return float(tree_costs(record).unique + record.ledger.prm_computed)


def _apart(record: SolveRecord, cost: float) -> tuple[float, float]:
    """The parts of a sample set's cost: for the prompt, and for each sample."""
    written = sum(len(node.token_ids) for node in record.nodes)
    read = record.prompt_tokens / ((record.prompt_tokens + written) or 1)
    return cost * read, cost * (1 - read) / len(record.solutions)


def _flops(record: SolveRecord) -> float:
    return record.ledger.policy_flops + record.ledger.prm_flops


def read_grid(directory: str | Path, budgets: Sequence[int], difficulty: Difficulty) -> Grid:
    """The grid of a finished run at these budgets.

    Raises:
        WcseError: the run has no sample set to measure difficulty on, or no strategy at one of the budgets.
    """
    recipe = read_header(directory).recipe
    reader, values, probes = CellReader(recipe), dict[str, float](), dict[str, _Probes]()
    for record in _graded(directory):
        reader.add(record)
        if not sampled(record):
            continue
        name, scored = record.problem.id, record.agg_strategy is not None
        if difficulty.kind == "oracle":
            values[name] = difficulty.value(record)
        elif scored or (difficulty.kind == "agreement" and name not in probes):
            values[name] = difficulty.value(record)
            probes[name] = _Probes.of(record, difficulty)
    grid = Grid(
        tuple(reader.cells(budgets)),
        difficulty,
        values,
        {name: probes[name].tokens if name in probes else 0.0 for name in values},
        _probed(directory, base_config(recipe), probes),
    )
    return _checked(grid, budgets, str(directory))


def _graded(directory: str | Path) -> Iterator[SolveRecord]:
    return (record for record in read_records(directory) if record.problem.answer is not None)


@dataclass(frozen=True)
class _Probes:
    """The samples of one problem that stand for the probes of ``auto``, where its own would be in the tree."""

    solutions: tuple[SolutionRecord, ...]
    nodes: tuple[NodeRecord, ...]
    tokens: float

    @classmethod
    def of(cls, record: SolveRecord, difficulty: Difficulty) -> _Probes:
        chosen = difficulty.probes(record)
        place = {solution.path[0]: PROBE + index for index, solution in enumerate(chosen)}

        def moved(path: tuple[int, ...]) -> tuple[int, ...]:
            return (place[path[0]], *path[1:])

        solutions = tuple(replace(solution, path=moved(solution.path)) for solution in chosen)
        nodes = tuple(
            replace(node, path=moved(node.path), parent=moved(node.path)[:-1] or None)
            for node in record.nodes
            if node.path[0] in place
        )
        return cls(solutions, nodes, len(chosen) * _apart(record, _tokens(record))[1])

    def join(self, record: SolveRecord, judge: Judge) -> SolveRecord:
        """The record of a scored search among whose solutions the probes are."""
        found = (*record.solutions, *self.solutions)
        classes = answer_classes([solution.answer for solution in found], judge)
        named = tuple(replace(s, answer_class=number) for s, number in zip(found, classes, strict=True))
        both = replace(record, solutions=named, nodes=(*record.nodes, *self.nodes))
        return reselect(both, str(record.agg_strategy))


def _probed(directory: str | Path, base: SearchConfig, probes: Mapping[str, _Probes]) -> tuple[Cell, ...]:
    """Every scored tree search as it is after the probes."""
    cells: dict[str, Cell] = {}
    if not probes:
        return ()
    with MathPool() as judge:
        for record in _graded(directory):
            name, spec = record.problem.id, parse_strategy(record.strategy)
            if sampled(record) or record.agg_strategy is None or name not in probes:
                continue
            empty = Cell(record.strategy, spec.config(base).n, sampler=False)
            cell = cells.setdefault(record.strategy, empty)
            cell.accuracy[name] = float(probes[name].join(record, judge).correct is True)
            cell.tokens[name] = _tokens(record) + probes[name].tokens
    return tuple(cells.values())


def _checked(grid: Grid, budgets: Sequence[int], where: str) -> Grid:
    if not grid.values:
        raise WcseError(
            f"{where}: no sample set with what difficulty={grid.difficulty.kind} needs; run majority or best_of_n, too"
        )
    for n in budgets:
        if not grid.fixed(n):
            raise WcseError(f"{where}: nothing was recorded at n={n}; give budgets that the run has")
    for cell in (*grid.cells, *grid.probed):
        if set(cell.accuracy) != set(grid.values):
            raise WcseError(f"{where}: {cell.strategy} lacks some of the problems; finish the run first")
    return grid
