"""Asks base, students and teacher the same problems with the product's own engine, greedily, and audits them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wcse.audit.broad import task_answers
from wcse.audit.verdict import IN_DOMAIN, Answers, audit_student, scaling
from wcse.problems import load_problems
from wcse.recipe import Recipe
from wcse.solve import solve_all
from wcse.types import Problem, WcseError


def answers(
    model: str, problems: Sequence[Problem], *, max_tokens: int, threads: int | None = None
) -> Answers:
    """A model's greedy answers.

    Raises:
        WcseError: the model cannot be loaded, or a prompt does not fit.
    """
    recipe = Recipe.parse(
        {"policy": model, "problems": "given", "strategies": ("greedy",), "n": 1}
        | {"max_tokens": max_tokens, "threads": threads}
    )
    records = solve_all(recipe, problems)
    texts = tuple("".join(node.text for node in record.nodes) for record in records)
    return Answers(tuple(record.correct is True for record in records), texts)


def run_audit(
    base: str,
    students: Mapping[str, str],
    teacher: str,
    in_domain: str,
    held_out: Mapping[str, str],
    *,
    tasks: Sequence[str] = (),
    include_path: str | None = None,
    limit: int | None = None,
    max_tokens: int = 512,
    threads: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Audit every student against the base under the same prompts.

    Args:
        students: name -> model, in the order of their data or size.
        in_domain: problems like the training data. ``held_out``: name -> problems that are not.
        tasks: of lm-eval, as held-out sets of their names. ``include_path``: folder with tasks of one's own.
        limit: first problems of each set, or documents of each task.
        max_tokens: most tokens of an answer; a task that sets ``max_gen_toks`` keeps to its own.

    Raises:
        WcseError: a model or problems cannot be read, a name is taken, or a problem has no gold answer.
    """
    if IN_DOMAIN in held_out:
        raise WcseError(f"held_out={IN_DOMAIN!r}: this name is taken; give the set another one")
    if shared := {IN_DOMAIN, *held_out} & set(tasks):
        raise WcseError(f"tasks={','.join(sorted(shared))}: this name is taken; rename the held-out set")
    specs = {IN_DOMAIN: in_domain, **held_out}
    sets = {name: load_problems(spec, limit=limit) for name, spec in specs.items()}
    asked: dict[str, dict[str, Answers]] = {}
    for model in dict.fromkeys((base, teacher, *students.values())):
        say(f"asking {model}")
        asked[model] = {
            name: answers(model, problems, max_tokens=max_tokens, threads=threads)
            for name, problems in sets.items()
        }
        if tasks:
            asked[model] |= task_answers(
                model, tasks, limit=limit, include_path=include_path, max_tokens=max_tokens, threads=threads
            )
    reports = {
        name: audit_student(asked[base], asked[model], asked[teacher]) for name, model in students.items()
    }
    return {"students": reports, "scaling": scaling(list(reports.items()))}
