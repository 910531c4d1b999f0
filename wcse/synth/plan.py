"""``wcse synth --plan``: what a recipe would draw, cost, hold in memory and take, from a small pilot.

The pilot draws a few samples of a few problems, stores nothing, and is the only part that needs the models.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wcse.models.load import find_model
from wcse.solve import fit_of
from wcse.synth.card import table
from wcse.synth.cost import Charge, Size, price_of
from wcse.synth.generate import LocalExecutor
from wcse.synth.match import Planner
from wcse.synth.recipe import MATCHES, SynthRecipe
from wcse.synth.record import SynthRecord, Unit
from wcse.types import Problem

PILOT_PROBLEMS = 4
PILOT_SAMPLES = 4
_UNITS = {
    "flops": "FLOPs",
    "params": "parameter-samples",
    "money": "money",
    "seconds": "s",
    "samples": "samples",
}


@dataclass(frozen=True, slots=True)
class Line:
    """The plan of one sampler: samples per problem (mean), totals, cost in the unit of the match, GiB, seconds."""

    sampler: str
    per_problem: float
    samples: int
    written: int
    cost: float
    flops: float
    gib: float
    seconds: float


def pilot(recipe: SynthRecipe, problems: Sequence[Problem]) -> dict[str, Charge]:
    """What a few samples of a few problems cost, by sampler.

    Raises:
        WcseError: a model cannot be loaded, or no pilot problem could be done.
    """
    chosen = random.Random(recipe.seed).sample(list(problems), min(PILOT_PROBLEMS, len(problems)))
    charges: dict[str, Charge] = {}
    with LocalExecutor(recipe) as executor:
        for name, spec in recipe.samplers.items():
            n = 1 if spec.strategy == "greedy" else -(-PILOT_SAMPLES // spec.quantum) * spec.quantum
            records: list[SynthRecord] = []
            executor.run([(Unit(name, 0, problem.id, n), problem) for problem in chosen], records.append)
            charges[name] = sum((Charge.of(record, spec) for record in records), Charge())
    return charges


def plan_lines(
    recipe: SynthRecipe, problems: Sequence[str], sizes: Mapping[str, Size], pilots: Mapping[str, Charge]
) -> list[Line]:
    """The whole run, played through with every sample as long as the pilot's."""
    planner = Planner(recipe, problems, sizes)
    charges: dict[tuple[str, int], dict[str, Charge]] = {}
    for sampler in recipe.order:
        block = 0
        while units := planner.units(sampler, block, charges):
            charges[sampler, block] = {unit.problem: _expected(unit, pilots[sampler]) for unit in units}
            block += 1
    lines = []
    for name in recipe.order:
        total = sum(
            (c for (who, _), costs in charges.items() if who == name for c in costs.values()), Charge()
        )
        spec = recipe.samplers[name]
        lines.append(
            Line(
                sampler=name,
                per_problem=total.samples / len(problems),
                samples=total.samples,
                written=total.written,
                cost=price_of(recipe.match, total, spec, sizes[name]),
                flops=price_of("flops", total, spec, sizes[name]),
                gib=memory_gib(recipe, name),
                seconds=total.seconds,
            )
        )
    return lines


def _expected(unit: Unit, pilot: Charge) -> Charge:
    calls, samples = max(1, pilot.calls), max(1, pilot.samples)
    return Charge(
        samples=unit.n,
        calls=1,
        read=round(pilot.read / calls),
        written=round(pilot.written / samples * unit.n),
        checked=round(pilot.checked / samples * unit.n),
        seconds=pilot.seconds / samples * unit.n,
    )


def memory_gib(recipe: SynthRecipe, sampler: str) -> float:
    """Weights of a sampler's models, all that its verifier needs included, and their keys and values, GiB."""
    spec = recipe.samplers[sampler]
    unit = recipe.unit_recipe(sampler, 0, spec.quantum)
    fit = fit_of(unit, scored=spec.reads_verifier, present=False)
    return (sum(model.weights for model in fit.models) + fit.kv) / 2**30


def plan_text(recipe: SynthRecipe, problems: int, lines: Sequence[Line]) -> str:
    """The plan for a terminal."""
    unit = f"cost ({_UNITS[recipe.match]})"
    head = (
        "sampler",
        "model",
        "samples a problem",
        "samples",
        "tokens written",
        unit,
        "FLOPs",
        "GiB",
        "time",
    )
    rows = [
        (
            line.sampler,
            Path(str(find_model(recipe.samplers[line.sampler].model))).name,
            f"{line.per_problem:.2f}",
            f"{line.samples:,}",
            f"{line.written:,}",
            f"{line.cost:.4g}",
            f"{line.flops:.4g}",
            f"{line.gib:.2f}",
            f"{line.seconds:,.0f} s",
        )
        for line in lines
    ]
    note = f"match by {recipe.match}: {MATCHES[recipe.match]}.\n"
    pilot_note = (
        f"Lengths and speed are those of a pilot of {PILOT_PROBLEMS} problems; the run measures its own.\n"
    )
    return (
        f"{problems} problems, reference {recipe.reference_name}; {note}\n{table(head, rows)}\n{pilot_note}"
    )
