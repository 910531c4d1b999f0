"""Small made-up runs for the tests of journal, outputs and report: no model, fixed by their seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from wcse.data.journal import Header
from wcse.data.record import NodeRecord, Selection, SolutionRecord, SolveRecord
from wcse.ledger import Ledger
from wcse.recipe import Recipe
from wcse.types import Problem
from wcse.votes import SELECTORS, Ballot, aggregate

ALL = ("greedy", "majority", "best_of_n", "weighted_best_of_n", "beam_search", "dvts")
_SELECTOR = {"greedy": "majority", "majority": "majority", "best_of_n": "argmax"}


def recipe(**options: object) -> Recipe:
    fields = {
        "policy": "tiny-wc",
        "prm": "shared",
        "problems": "made_up:size=3",
        "strategies": ALL,
        "n": 8,
        "seed": 1,
    }
    return Recipe.parse(fields | options)


def header(**options: object) -> Header:
    names = tuple(problem(index).id for index in range(5))
    return Header(recipe(**options).results(), {"problems": "ab" * 32}, names, {"wcse": "0"})


def problem(index: int) -> Problem:
    return Problem(
        id=f"made-up-{index}",
        prompt=f"Ann has {index + 2} bags with {index + 3} apples. How many apples has she?",
        answer=str((index + 2) * (index + 3)),
        meta={"level": 1},
    )


def record(
    index: int = 0, strategy: str = "best_of_n", *, n: int = 8, steps: int = 3, seed: int = 0
) -> SolveRecord:
    """Solutions of ``steps`` steps; about half are right, and right steps score higher."""
    rng = random.Random(f"{seed}|{index}|{'tree' if strategy in ('beam_search', 'dvts') else 'samples'}")
    gold = problem(index).answer or ""
    scored = strategy not in ("greedy", "majority")
    leaves = _leaves(strategy, 1 if strategy == "greedy" else n, steps)
    right = {leaf: rng.random() < 0.5 for leaf in leaves}
    nodes: dict[tuple[int, ...], NodeRecord] = {}
    for leaf in leaves:
        answer = gold if right[leaf] else str(int(gold) + 1 + leaf[0] % 2)
        for depth in range(1, steps + 1):
            nodes.setdefault(leaf[:depth], _node(rng, leaf[:depth], steps, answer, right[leaf], scored))
    if strategy in ("beam_search", "dvts"):
        nodes[(0, 3)] = _node(rng, (0, 3), steps, gold, False, scored)  # a pruned step
    solutions = _solutions(leaves, nodes, right, gold, scored)
    return _record(index, strategy, solutions, nodes)


def run(problems: int = 3, strategies: Sequence[str] = ALL, **options: int) -> list[SolveRecord]:
    return [record(index, strategy, **options) for index in range(problems) for strategy in strategies]


def _leaves(strategy: str, n: int, steps: int) -> list[tuple[int, ...]]:
    if strategy in ("beam_search", "dvts"):  # pairs share everything but their last step
        return [(i // 2,) + (0,) * (steps - 2) + (i % 2,) for i in range(n)]
    return [(i,) + (0,) * (steps - 1) for i in range(n)]


def _node(
    rng: random.Random, path: tuple[int, ...], steps: int, answer: str, right: bool, scored: bool
) -> NodeRecord:
    last = len(path) == steps
    return NodeRecord(
        path=path,
        parent=path[:-1] or None,
        token_ids=tuple(rng.randrange(1000) for _ in range(rng.randrange(3, 9))),
        text=f"So the answer is {answer}." if last else f"Step {len(path)}: count the bags.\n\n",
        finish="eos" if last else "delim",
        logprob=-rng.random() * 5,
        score=round(min(0.99, max(0.01, rng.gauss(0.75 if right else 0.4, 0.15))), 4) if scored else None,
    )


def _solutions(
    leaves: Sequence[tuple[int, ...]],
    nodes: dict[tuple[int, ...], NodeRecord],
    right: dict[tuple[int, ...], bool],
    gold: str,
    scored: bool,
) -> tuple[SolutionRecord, ...]:
    classes: dict[str, int] = {}
    solutions = []
    for leaf in leaves:
        answer = gold if right[leaf] else str(int(gold) + 1 + leaf[0] % 2)
        scores = [nodes[leaf[:depth]].score or 0.0 for depth in range(1, len(leaf) + 1)]
        agg = aggregate(scores, "last") if scored else None
        solutions.append(
            SolutionRecord(leaf, answer, classes.setdefault(answer, len(classes)), agg, right[leaf])
        )
    return tuple(solutions)


def _record(
    index: int, strategy: str, solutions: tuple[SolutionRecord, ...], nodes: dict[tuple[int, ...], NodeRecord]
) -> SolveRecord:
    votes = [Ballot(s.path, True, s.answer_class, s.agg) for s in solutions]
    names = ["majority"] if strategy in ("greedy", "majority") else list(SELECTORS)
    selectors = {}
    for name in names:
        best = SELECTORS[name](votes)
        chosen = None if best is None else solutions[best]
        selectors[name] = Selection(best, chosen and chosen.answer, chosen and chosen.correct)
    selector = _SELECTOR.get(strategy, "weighted")
    final = selectors[selector]
    tokens = sum(len(node.token_ids) for node in nodes.values())
    return SolveRecord(
        problem=problem(index),
        strategy=strategy,
        answer=final.answer,
        correct=final.correct,
        verdict="correct" if final.correct else "wrong",
        selector=selector,
        selectors=selectors,
        solutions=solutions,
        nodes=tuple(sorted(nodes.values(), key=lambda node: (len(node.path), node.path))),
        ledger=Ledger(30 + tokens, 40, tokens, tokens, 100, kv_pages=5, kv_pages_unshared=20, seconds=0.5),
        seconds=0.5,
        prompt_tokens=30,
        agg_strategy=None if strategy in ("greedy", "majority") else "last",
    )
