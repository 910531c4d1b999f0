"""Labels of steps by Monte-Carlo rollouts, made by the engine itself.

A step's soft label is the share of rollouts from it that reach the right answer (Math-Shepherd, arXiv 2312.08935);
its hard label says whether any did. The last step's is whether its own solution is right. All rollouts of a problem
are branches of one tree, so no prefix is ever read twice. Rows carry TRL's columns for stepwise supervision.
Unfinished rollouts count as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from wcse.answers import Judge, MathPool, Verdict, extract_answer, is_correct
from wcse.engine.driver import Driver, Job, Outcome
from wcse.engine.engine import Engine
from wcse.engine.params import SamplingParams, StepRule
from wcse.metrics import wilson
from wcse.prompts import render_problem
from wcse.types import Expand, Node, Parallel, Problem, Search, WcseError


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """How to label.

    Args:
        trajectories: solutions to label per problem.
        rollouts: per step, the solution's own continuation included.
        kind: "soft" labels are shares; "hard" ones booleans, and the solution ends at its first wrong step, because
            what follows an error has no label.
        temperature, max_tokens: of the sampling.
        delimiter: what ends a step.
        seed: the same seed gives the same labels, whatever the batch.

    Raises:
        WcseError: a number is out of range.
    """

    trajectories: int = 4
    rollouts: int = 8
    kind: Literal["soft", "hard"] = "soft"
    temperature: float = 1.0
    max_tokens: int = 1024
    delimiter: str = "\n\n"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("trajectories", "rollouts"):
            if getattr(self, name) < 1:
                raise WcseError(f"{name}={getattr(self, name)}: give at least 1")
        if self.kind not in ("soft", "hard"):
            raise WcseError(f"kind={self.kind!r}: give 'soft' or 'hard'")


def label_problems(
    engine: Engine,
    problems: Iterable[Problem],
    labelling: Labelling,
    *,
    source: str = "",
    on_problem: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, Any]]:
    """Rows of labelled solutions, problem by problem as they end.

    Args:
        engine: runs the policy.
        problems: with their answers; only as many are taken as fill the batch.
        labelling: how.
        source: the policy's name, for the rows.
        on_problem: hears of every finished problem, before its rows come.

    Yields:
        ``prompt``, ``completions`` (steps without delimiters), ``labels``; and ``soft``, ``hits``, ``k`` (rollouts),
        ``interval`` (95 % Wilson bounds of the share) for each step; ``problem_id``, ``policy``, ``complete``
        (False: steps after an error were dropped), ``truncated`` (rollouts that a limit cut).

    Raises:
        WcseError: a problem has no answer.
    """
    golds: dict[str, str] = {}

    def jobs() -> Iterator[Job]:
        search = _search(labelling.trajectories, labelling.rollouts)
        for problem in problems:
            if problem.answer is None:
                raise WcseError(f"problem {problem.id!r} has no answer, so its steps cannot be labelled")
            golds[problem.id] = problem.answer
            ids = render_problem(engine.model.tokenizer, problem.prompt)
            yield Job(problem.id, ids, problem.prompt, search, labelling.seed)

    params = SamplingParams(temperature=labelling.temperature, max_tokens=labelling.max_tokens)
    driver = Driver(engine, None, params=params, rule=StepRule(labelling.delimiter))
    with MathPool() as judge:
        for outcome in driver.run(jobs()):
            on_problem()
            for row in _rows(outcome, golds.pop(outcome.job.name), labelling, judge):
                yield row | {"policy": source}


def _search(trajectories: int, rollouts: int) -> Callable[[Node], Search]:
    """A strategy: whole solutions, then ``rollouts`` more from every step that another could follow."""

    def search(root: Node) -> Search:
        leaves: list[Node] = yield Expand(root, trajectories, to_end=True, score=False)
        inner = [step for leaf in leaves for step in leaf.steps()[:-1]]
        # The chain itself is child 0 and one more rollout for free.
        ends: list[list[Node]] = yield Parallel(
            tuple(Expand(step, rollouts - 1, first=1, to_end=True, score=False) for step in inner)
        )
        return leaves + [end for group in ends for end in group]

    return search


def _rows(outcome: Outcome, gold: str, labelling: Labelling, judge: Judge) -> Iterator[dict[str, Any]]:
    """The labelled solutions of one problem; those that a limit cut are left out."""
    right = {leaf.path: _right(leaf, gold, judge) for leaf in outcome.solutions}
    truncated = sum(not leaf.complete for leaf in outcome.solutions)
    for leaf in outcome.solutions[: labelling.trajectories]:
        if not leaf.complete or not leaf.text.strip():
            continue
        hits, tries = [], []
        for step in leaf.steps()[:-1]:
            # Rollouts from this very step: its own continuation and those that branch off right below it.
            below = [leaf.path] + [p for p in right if len(p) > len(step.path) and _branches(p, step.path)]
            hits.append(sum(right[path] for path in below))
            tries.append(len(below))
        hits.append(int(right[leaf.path]))
        tries.append(1)
        end = len(hits)
        if labelling.kind == "hard":
            end = next((i + 1 for i, hit in enumerate(hits) if not hit), end)
        hits, tries = hits[:end], tries[:end]
        soft = [h / k for h, k in zip(hits, tries, strict=True)]
        yield {
            "prompt": outcome.job.problem,
            "completions": [s.text.removesuffix(labelling.delimiter) for s in leaf.steps()[:end]],
            "labels": soft if labelling.kind == "soft" else [hit > 0 for hit in hits],
            "soft": soft,
            "hits": hits,
            "k": tries,
            "interval": [wilson(h, k) for h, k in zip(hits, tries, strict=True)],
            "problem_id": outcome.job.name,
            "complete": end == len(leaf.steps()),
            "truncated": truncated,
        }


def _branches(path: tuple[int, ...], step: tuple[int, ...]) -> bool:
    return path[: len(step)] == step and path[len(step)] > 0


def _right(leaf: Node, gold: str, judge: Judge) -> bool:
    return leaf.complete and is_correct(extract_answer(leaf.completion), gold, judge) is Verdict.EQUAL
