"""Measure an embedded policy on fresh problems: ``python -m wcse.zoo.evaluate DIR``.

Prints a Markdown table: greedy, pass@1 and pass@k with 95 % Wilson intervals, by task and for the held-out
gsm_symbolic templates. pass@1 averages ``samples`` draws a problem; its interval counts problems only.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from wcse import LLM, SamplingParams
from wcse.metrics import pass_at_k, wilson

from .corpus import (
    HELD_OUT_TEMPLATES,
    TASK_CONFIGS,
    evaluation_problems,
    template_problems,
    training_templates,
)
from .sample import is_correct

HEADER = "| problems | n | greedy | pass@1 | pass@{k} |\n| --- | --- | --- | --- | --- |"


def problem_sets(count: int) -> dict[str, list[tuple[str, str]]]:
    """All that is measured: each task as reasoning-gym gives it, then templates seen and unseen."""
    sets = {task: evaluation_problems(task, count) for task in TASK_CONFIGS}
    sets["gsm_symbolic, trained templates"] = template_problems(training_templates(), count)
    sets["gsm_symbolic, held-out templates"] = template_problems(HELD_OUT_TEMPLATES, count)
    return sets


def measure(
    llm: LLM, problems: Sequence[tuple[str, str]], samples: int, temperature: float
) -> dict[str, float]:
    """Greedy accuracy, pass@1 and pass@samples."""
    chats = [[{"role": "user", "content": question}] for question, _ in problems]
    one, many = (
        [
            sum(is_correct(choice.text, answer) for choice in output.outputs)
            for output, (_, answer) in zip(llm.chat(chats, params, use_tqdm=False), problems, strict=True)
        ]
        for params in (
            SamplingParams(temperature=0.0, max_tokens=256),
            SamplingParams(n=samples, temperature=temperature, max_tokens=256),
        )
    )
    return {
        "greedy": sum(one) / len(problems),
        "pass@1": sum(many) / (len(problems) * samples),
        "pass@k": sum(pass_at_k(samples, right, samples) for right in many) / len(problems),
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
    args = parser.parse_args()
    llm = LLM(str(args.folder), seed=0)
    print(HEADER.format(k=args.samples), flush=True)
    for name, problems in problem_sets(args.problems).items():
        scores = measure(llm, problems, args.samples, args.temperature)
        cells = " | ".join(_cell(share, len(problems)) for share in scores.values())
        print(f"| {name} | {len(problems)} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
