"""Training problems of the embedded models: ``python -m wcse.zoo.problems --count 4000 > problems.jsonl``.

They come from templates and seeds that no evaluation uses; ``wcse prm label --problems problems.jsonl`` labels a
policy's solutions of them, and ``wcse prm train`` learns from the labels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from random import Random

from wcse.zoo.arithmetic import Unwritable
from wcse.zoo.corpus import EVAL_SEED, arithmetic_example, gsm_example, training_templates

TASKS = {"gsm_symbolic": 0.9, "chain_sum": 0.05, "basic_arithmetic": 0.05}


def training_problems(count: int, seed: int) -> Iterator[dict[str, str]]:
    """``problem`` and ``answer`` of problems below ``EVAL_SEED``, from templates that are not held out."""
    rng = Random(seed)
    while count:
        task = rng.choices(list(TASKS), list(TASKS.values()))[0]
        number = rng.randrange(EVAL_SEED)
        try:
            if task == "gsm_symbolic":
                example = gsm_example(rng.choice(training_templates()), number)
            else:
                example = arithmetic_example(task, number)
        except Unwritable:
            continue
        count -= 1
        yield {"problem": example.question, "answer": example.answer}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for problem in training_problems(args.count, args.seed):
        print(json.dumps(problem, ensure_ascii=False))


if __name__ == "__main__":
    main()
