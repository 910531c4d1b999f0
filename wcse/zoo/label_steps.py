"""Label the steps of a policy's solutions on the training problems: ``wcse.reward.rollouts`` on zoo's corpus.

``python -m wcse.zoo.label_steps --policy DIR --out labels.jsonl --problems 2000``

Problems are drawn from templates and seeds that no evaluation uses. ``train_prm`` reads the rows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from wcse.engine.engine import Engine
from wcse.models.load import load_model
from wcse.reward.rollouts import Labelling, label_problems
from wcse.types import Problem
from wcse.zoo.arithmetic import Unwritable
from wcse.zoo.corpus import EVAL_SEED, SEPARATOR, arithmetic_example, gsm_example, training_templates

TASKS = {"gsm_symbolic": 0.9, "chain_sum": 0.05, "basic_arithmetic": 0.05}
MAX_TOKENS = 400


def training_problems(count: int, seed: int) -> list[Problem]:
    """Problems below ``EVAL_SEED``, from templates that are not held out."""
    rng = Random(seed)
    found: list[Problem] = []
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
        found.append(Problem(f"{task}-{number}-{len(found)}", example.question, example.answer))
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
    engine = Engine(model, max_rows=512, num_pages=32768)
    labelling = Labelling(
        trajectories=args.trajectories,
        rollouts=args.rollouts,
        max_tokens=MAX_TOKENS,
        delimiter=SEPARATOR,
        seed=args.seed,
    )
    start, done = time.monotonic(), 0

    def problems() -> Iterator[Problem]:
        for problem in training_problems(args.problems, args.seed):
            if time.monotonic() - start > 60 * args.minutes:
                return
            yield problem

    def tell() -> None:
        nonlocal done
        done += 1
        if done % 50 == 0:
            seconds = time.monotonic() - start
            print(
                f"{done} problems, {engine.runner.computed / seconds:,.0f} tokens/s, {seconds:.0f} s",
                flush=True,
            )

    with args.out.open("w", encoding="utf-8") as file:
        for row in label_problems(engine, problems(), labelling, source=args.policy, on_problem=tell):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
