"""Runs on the fake policy, as records and as directories with a journal: real strategies, made-up steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fakes import FakePolicy, make_root, run

from wcse.data.grading import Graded
from wcse.data.journal import Header, Journal
from wcse.data.record import NodeRecord, SolveRecord
from wcse.ledger import Ledger
from wcse.recipe import Recipe
from wcse.search import STRATEGIES, parse_strategy
from wcse.types import Problem


def recipe(**options: object) -> Recipe:
    fields = {
        "policy": "fake",
        "prm": "toy",
        "problems": "made_up",
        "n": 8,
        "seed": 7,
        "agg_strategy": "last",
    }
    return Recipe.parse(fields | options)


def problem(index: int) -> Problem:
    return Problem(f"q{index}", f"What is question {index}?", "3")


def record(index: int, strategy: str, recipe: Recipe, *, flops: bool = False, **policy: Any) -> SolveRecord:
    """One problem under one strategy; the gold answer is one of ``words`` equally likely ones."""
    spec = parse_strategy(strategy)
    entry, config = STRATEGIES[spec.name], spec.config(recipe.search_config)
    fake = FakePolicy(recipe.seed, problem(index).id, **{"words": 4, "eos": 0.3, "cut": 0.03} | policy)
    root = make_root(problem(index).prompt)
    solutions = run(entry.run(root, config), fake)
    nodes = tuple(
        NodeRecord(path, path[:-1] or None, tuple(text.encode()), text, finish, 0.0, score)
        for path, (finish, text, score) in sorted(fake.tree.items())
    )
    written = sum(len(node.token_ids) for node in nodes)
    prompt = len(root.token_ids)
    read = prompt + written if entry.needs_prm else 0
    ledger = Ledger(prompt + written, 0, written, read)
    if flops:
        ledger += Ledger(policy_flops=2.0 * (prompt + written), prm_flops=2.0 * read)
    graded = Graded.of(problem(index), solutions, config.aggregation if entry.needs_prm else None, None)
    return graded.record(str(spec), selector=None, nodes=nodes, ledger=ledger, prompt_tokens=prompt)


def write(
    folder: Path,
    strategies: Sequence[str],
    problems: int = 12,
    *,
    keep: int | None = None,
    flops: bool = False,
    **options: Any,
) -> Path:
    """A run directory with the first ``keep`` records (all by default); ``flops``: 2 for each token read."""
    made = recipe(strategies=tuple(strategies), **options)
    names = tuple(problem(i).id for i in range(problems))
    records = [record(i, name, made, flops=flops) for i in range(problems) for name in made.strategies]
    with Journal.open(folder, Header(made.results(), {"problems": f"{problems:064x}"}, names)) as journal:
        for item in records[:keep]:
            journal.append(item)
    return folder
