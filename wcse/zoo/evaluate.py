"""Measure an embedded policy on fresh problems: ``python -m wcse.zoo.evaluate DIR``.

Prints a Markdown table: greedy, pass@1 and pass@k with 95 % Wilson intervals, by task and for the held-out
gsm_symbolic templates. pass@1 averages ``samples`` draws a problem; its interval counts problems only.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from .corpus import (
    HELD_OUT_TEMPLATES,
    TASK_CONFIGS,
    evaluation_problems,
    template_problems,
    training_templates,
)
from .sample import is_correct, pass_at_k, solve, wilson
from .tiny_llama import load_weights
from .tokenizer import load_tokenizer

HEADER = "| problems | n | greedy | pass@1 | pass@{k} |\n| --- | --- | --- | --- | --- |"


def problem_sets(count: int) -> dict[str, list[tuple[str, str]]]:
    """All that is measured: each task as reasoning-gym gives it, then templates seen and unseen."""
    sets = {task: evaluation_problems(task, count) for task in TASK_CONFIGS}
    sets["gsm_symbolic, trained templates"] = template_problems(training_templates(), count)
    sets["gsm_symbolic, held-out templates"] = template_problems(HELD_OUT_TEMPLATES, count)
    return sets


def measure(
    folder: Path, problems: Sequence[tuple[str, str]], samples: int, temperature: float
) -> dict[str, float]:
    """Greedy accuracy, pass@1 and pass@samples."""
    model, tokenizer = load_weights(folder), load_tokenizer(folder)
    questions, answers = [q for q, _ in problems], [a for _, a in problems]
    greedy = solve(model, tokenizer, questions)
    repeated = [q for q in questions for _ in range(samples)]
    texts = solve(model, tokenizer, repeated, temperature=temperature, batch=192)
    right = [
        sum(is_correct(text, answer) for text in texts[i * samples : (i + 1) * samples])
        for i, answer in enumerate(answers)
    ]
    n = len(problems)
    return {
        "greedy": sum(is_correct(t, a) for t, a in zip(greedy, answers, strict=True)) / n,
        "pass@1": sum(right) / (n * samples),
        "pass@k": sum(pass_at_k(r, samples, samples) for r in right) / n,
    }


def _cell(share: float, n: int) -> str:
    low, high = wilson(share * n, n)
    return f"{100 * share:.1f} % ({100 * low:.0f}-{100 * high:.0f})"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(HEADER.format(k=args.samples), flush=True)
    for name, problems in problem_sets(args.problems).items():
        scores = measure(args.folder, problems, args.samples, args.temperature)
        cells = " | ".join(_cell(share, len(problems)) for share in scores.values())
        print(f"| {name} | {len(problems)} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
