"""The loop of a data run: plan a round, do what the journal lacks, store each unit, plan the next round.

Knows no model: an executor makes records of units, in this process or in others, and does not wait for the disk.
Everything that decides what is done next comes from the journal, so a run that was killed goes on to the same samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from wcse.data.journal import Journal, read_bodies
from wcse.synth.cost import Charge, Size
from wcse.synth.match import Balance, Planner
from wcse.synth.recipe import SynthRecipe
from wcse.synth.record import SynthRecord, Unit, block_of
from wcse.types import Problem

Task = tuple[Unit, Problem]
OnRecord = Callable[[SynthRecord], None]

_MOST_WAITING = 64
"""Records in memory that the disk has not taken yet."""


class Executor(Protocol):
    """Makes the record of every task, in any order: samples, or a failure of this task alone."""

    def run(self, tasks: Sequence[Task], on_record: OnRecord) -> None:
        """Hand over one record a task. An error that ``on_record`` raises must reach the caller."""


@dataclass
class Totals:
    """What a run has cost so far, by round and problem, and how many units failed."""

    charges: dict[tuple[str, int], dict[str, Charge]] = field(default_factory=dict)
    failures: int = 0

    def add(self, record: SynthRecord, recipe: SynthRecipe) -> None:
        """Count one record."""
        unit = record.unit
        costs = self.charges.setdefault((unit.sampler, unit.block), {})
        costs[unit.problem] = Charge.of(record, recipe.samplers[unit.sampler])
        self.failures += record.failure is not None

    def of(self, sampler: str) -> Charge:
        """All that a sampler was charged."""
        total = Charge()
        for (name, _), costs in sorted(self.charges.items()):
            if name == sampler:
                for problem in sorted(costs):
                    total += costs[problem]
        return total


@dataclass(frozen=True)
class Progress:
    """Where a run stands: units of the current round, and samples so far."""

    sampler: str
    block: int
    done: int
    total: int
    samples: int


def stored_totals(directory: str | Path, recipe: SynthRecipe) -> Totals:
    """What the journal in ``directory`` has been charged.

    Raises:
        WcseError: there is no journal, or its header cannot be read.
    """
    totals = Totals()
    for key, body in read_bodies(directory):
        totals.add(SynthRecord.from_json(key, body), recipe)
    return totals


def synthesize(
    recipe: SynthRecipe,
    problems: Sequence[Problem],
    journal: Journal,
    executor: Executor,
    sizes: Mapping[str, Size],
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[Totals, list[Balance]]:
    """Run what the journal lacks; returns the costs and, for each sampler but the reference, the match.

    Raises:
        WcseError: the journal cannot be written, or a model cannot be loaded.
    """
    by_id = {problem.id: problem for problem in problems}
    planner = Planner(recipe, tuple(by_id), sizes)
    totals = stored_totals(journal.path.parent, recipe)
    for sampler in recipe.order:
        block = 0
        while units := planner.units(sampler, block, totals.charges):
            todo = [(unit, by_id[unit.problem]) for unit in units if unit.key not in journal.done]
            count = len(units) - len(todo)
            samples = totals.of(sampler).samples

            def store(record: SynthRecord, total: int = len(units)) -> None:
                nonlocal count, samples
                journal.append(record)
                totals.add(record, recipe)
                count += 1
                samples += record.unit.n
                on_progress(Progress(record.unit.sampler, record.unit.block, count, total, samples))

            if todo:
                with _Behind(store) as behind:
                    executor.run(todo, behind)
            block += 1
    others = recipe.order[1:]
    return totals, [planner.balance(name, totals.charges) for name in others]


class _Behind:
    """Stores records on a thread of its own, in order, while the next ones are made. Leaving it waits for the last one.

    An error is raised by the next call, or on leaving; what was handed over after the record that caused it is not
    stored. Where the body raises (Ctrl-C, say), what was handed over is stored before that gets through.
    """

    def __init__(self, store: OnRecord) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()
        self._error: BaseException | None = None

    def __call__(self, record: SynthRecord) -> None:
        while self._waiting and (self._waiting[0].done() or len(self._waiting) >= _MOST_WAITING):
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._one, record))

    def _one(self, record: SynthRecord) -> None:
        if self._error is not None:
            raise self._error
        try:
            self._store(record)
        except BaseException as error:
            self._error = error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if kind is None and self._error is not None:
            raise self._error


def finished(recipe: SynthRecipe, problems: Sequence[str], totals: Totals, sizes: Mapping[str, Size]) -> bool:
    """Whether no round lacks a unit."""
    planner = Planner(recipe, problems, sizes)
    done = {(unit, key) for key, costs in totals.charges.items() for unit in costs}
    for sampler in recipe.order:
        block = 0
        while units := planner.units(sampler, block, totals.charges):
            if any((unit.problem, block_of(unit.key)) not in done for unit in units):
                return False
            block += 1
    return True
