"""Label the steps of a policy's solutions by Monte-Carlo rollouts, with the engine itself.

``python -m wcse.zoo.label_steps --policy DIR --out labels.jsonl --problems 2000``

A step's label is the share of rollouts from it that reach the right answer (Math-Shepherd, arXiv 2312.08935,
soft estimation); the last step's is whether its own solution is right. All rollouts of a problem are branches
of one tree, so no prefix is ever read twice. Rows are in TRL's stepwise-supervision layout, with ``hits`` and
``k`` beside the label; ``train_prm`` reads them. Unfinished rollouts count as wrong.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from wcse.answers import Verdict, extract_answer, is_correct
from wcse.engine.driver import Driver, Job, Outcome
from wcse.engine.engine import Engine
from wcse.engine.params import SamplingParams, StepRule
from wcse.models.load import load_model
from wcse.prompts import render_problem
from wcse.types import Expand, Node, Parallel, Search
from wcse.zoo.arithmetic import Unwritable
from wcse.zoo.corpus import EVAL_SEED, SEPARATOR, arithmetic_example, gsm_example, training_templates

TASKS = {"gsm_symbolic": 0.9, "chain_sum": 0.05, "basic_arithmetic": 0.05}
MAX_TOKENS = 400


def label_search(trajectories: int, rollouts: int) -> Any:
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


def rows(outcome: Outcome, gold: str, trajectories: int) -> Iterator[dict[str, Any]]:
    """The labelled trajectories of one problem; those that were cut off are left out."""
    right = {leaf.path: _right(leaf, gold) for leaf in outcome.solutions}
    for leaf in outcome.solutions[:trajectories]:
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
        yield {
            "prompt": outcome.job.problem,
            "completions": [step.text.removesuffix(SEPARATOR) for step in leaf.steps()],
            "labels": [h / k for h, k in zip(hits, tries, strict=True)],
            "hits": hits,
            "k": tries,
            "problem_id": outcome.job.name,
        }


def _branches(path: tuple[int, ...], step: tuple[int, ...]) -> bool:
    return path[: len(step)] == step and path[len(step)] > 0


def _right(leaf: Node, gold: str) -> bool:
    return leaf.complete and is_correct(extract_answer(leaf.completion), gold) is Verdict.EQUAL


def training_problems(count: int, seed: int) -> list[tuple[str, str, str]]:
    """(id, question, answer) of problems below ``EVAL_SEED``, from templates that are not held out."""
    rng = Random(seed)
    found: list[tuple[str, str, str]] = []
    while len(found) < count:
        task = rng.choices(list(TASKS), list(TASKS.values()))[0]
        number = rng.randrange(EVAL_SEED)
        try:
            if task == "gsm_symbolic":
                example = gsm_example(rng.choice(training_templates()), number)
            else:
                example = arithmetic_example(task, number)
        except Unwritable:
            continue
        found.append((f"{task}-{number}-{len(found)}", example.question, example.answer))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=2000)
    parser.add_argument("--trajectories", type=int, default=4)
    parser.add_argument(
        "--rollouts", type=int, default=8, help="per step, the solution's own continuation included"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="stop starting problems after so long")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = load_model(args.policy)
    driver = Driver(
        Engine(model, max_rows=512, num_pages=32768),
        None,
        params=SamplingParams(temperature=1.0, max_tokens=MAX_TOKENS),
        rule=StepRule(SEPARATOR),
    )
    problems = training_problems(args.problems, args.seed)
    golds = {name: answer for name, _, answer in problems}
    start, done = time.monotonic(), 0
    search = label_search(args.trajectories, args.rollouts)

    def jobs() -> Iterator[Job]:
        for name, question, _ in problems:
            if time.monotonic() - start > 60 * args.minutes:
                return
            yield Job(name, render_problem(model.tokenizer, question), question, search, args.seed)

    with args.out.open("w", encoding="utf-8") as file:
        for outcome in driver.run(jobs()):
            for row in rows(outcome, golds[outcome.job.name], args.trajectories):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            done += 1
            if done % 50 == 0:
                computed = driver.engine.runner.computed
                seconds = time.monotonic() - start
                print(f"{done} problems, {computed / seconds:,.0f} tokens/s, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
