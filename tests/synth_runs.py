"""Data runs without a model: an executor whose samples depend only on the unit, and small problems."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from wcse.data.disk import Disk
from wcse.data.journal import Header, Journal
from wcse.data.record import NodeRecord, SolutionRecord, SolveRecord
from wcse.ledger import Ledger
from wcse.synth.cost import Size
from wcse.synth.recipe import SynthRecipe
from wcse.synth.record import SynthRecord, Unit
from wcse.synth.run import OnRecord, Task
from wcse.types import Problem

SIZES = {"wc": Size(100), "se": Size(300)}


def recipe(**options: Any) -> SynthRecipe:
    given: dict[str, Any] = {
        "problems": "made_up",
        "samplers": {"wc": {"model": "weak"}, "se": {"model": "strong"}},
        "n": 3,
    }
    return SynthRecipe.parse(given | options)


def problems(count: int) -> list[Problem]:
    return [problem(index) for index in range(count)]


def problem(index: int) -> Problem:
    a, b = index + 2, index % 7 + 3
    worked = f"{a} * {b} = {a * b}\n#### {a * b}"
    prompt = f"Ann has {a} bags with {b} apples. How many apples has she?"
    return Problem(f"p{index}", prompt, str(a * b), {"solution": worked, "a": a, "b": b})


def open_journal(folder: Any, recipe: SynthRecipe, todo: Sequence[Problem], **options: Any) -> Journal:
    return Journal.open(folder, header(recipe, todo), **{"disk": NoSync()} | options)


class NoSync(Disk):
    """Fast: SIGKILL loses no write, and the journal's own tests fail every sync."""

    def fsync(self, fd: int) -> None:
        pass


def header(recipe: SynthRecipe, todo: Sequence[Problem]) -> Header:
    return Header(recipe.generation(), {}, tuple(p.id for p in todo))


class FakeExecutor:
    """Samples from a seed per unit. ``order`` shuffles the work; ``after`` hears each stored record."""

    def __init__(self, recipe: SynthRecipe, order: int | None = None) -> None:
        self._recipe = recipe
        self._order = order
        self.units: list[Unit] = []

    def run(self, tasks: Sequence[Task], on_record: OnRecord) -> None:
        tasks = list(tasks)
        if self._order is not None:
            random.Random(self._order).shuffle(tasks)
        for unit, problem in tasks:
            self.units.append(unit)
            on_record(fake_record(self._recipe, unit, problem))


def fake_record(recipe: SynthRecipe, unit: Unit, problem: Problem) -> SynthRecord:
    """The record of a unit: strong samplers are right more often, weak ones write more."""
    seed = recipe.unit_recipe(unit.sampler, unit.block, unit.n).seed
    rng = random.Random(f"{seed}|{problem.id}")
    solutions, nodes = [], []
    for index in range(unit.n):
        gold = int(problem.answer or 0)
        right = rng.random() < (0.8 if unit.sampler == "se" else 0.5)
        answer = str(gold if right else gold + rng.randrange(1, 4))
        a, b = problem.meta.get("a", 1), problem.meta.get("b", gold)
        sum_ = f"{b} * {a} = {answer}" if rng.random() < 0.3 else f"{a} * {b} = {answer}"
        texts = [f"She has {sum_} apples.\n\n", f"The answer is \\boxed{{{answer}}}."]
        for depth, text in enumerate(texts):
            path = (index, *[0] * depth)
            tokens = tuple(rng.randrange(100) for _ in range(rng.randrange(10, 30)))
            finish = "eos" if depth else "delim"
            nodes.append(NodeRecord(path, path[:-1] or None, tokens, text, finish, -1.0, None))
        solutions.append(SolutionRecord((index, 0), answer, int(answer), None, right))
    written = sum(len(node.token_ids) for node in nodes)
    ledger = Ledger(policy_computed=written + 20, policy_sampled=written, seconds=0.01 * written)
    nodes.sort(key=lambda node: node.path)
    solved = SolveRecord(
        problem, "majority", None, None, "wrong", {}, tuple(solutions), tuple(nodes), ledger, 0.0, "", 20
    )
    return SynthRecord(unit, problem, solved=solved)


def save_problems(path: Any, todo: Sequence[Problem]) -> None:
    rows = [{"id": p.id, "problem": p.prompt, "answer": p.answer} for p in todo]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
