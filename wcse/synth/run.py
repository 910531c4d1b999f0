"""The loop of a data run: plan a round, do what the journal lacks, store each unit, plan the next round.

Knows no model: an executor makes records of units, in this process or in others. Everything that decides what
is done next comes from the journal, so a run that was killed goes on to the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from wcse.data.journal import Journal, read_bodies
from wcse.synth.cost import Charge, Size
from wcse.synth.match import Balance, Planner
from wcse.synth.recipe import SynthRecipe
from wcse.synth.record import SynthRecord, Unit, block_of
from wcse.types import Problem

Task = tuple[Unit, Problem]
OnRecord = Callable[[SynthRecord], None]


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
                executor.run(todo, store)
            block += 1
    others = recipe.order[1:]
    return totals, [planner.balance(name, totals.charges) for name in others]


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
