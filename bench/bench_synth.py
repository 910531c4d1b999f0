"""What a data run costs besides the models: verifying answers, and deriving everything from the journal.

To reach: 100 problems x 256 samples verified in under 30 s on 2 cores. Samples are made up; half are right, and
answers take forms that need reading (fractions, decimals, LaTeX).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import synth_runs

from wcse.answers import MathPool, Verdict, answer_classes, is_correct
from wcse.synth.outputs import write_synth
from wcse.synth.recipe import EXPORTS
from wcse.synth.run import synthesize

PROBLEMS, SAMPLES = 100, 256


def _answers(rng: random.Random, gold: int) -> list[str]:
    forms = ("{}", "{}.0", "\\frac{{{}}}{{1}}", "{} apples", "${}", "{}\\text{{ km}}")
    return [rng.choice(forms).format(gold + rng.choice((0, 0, 0, 1, 2, 10))) for _ in range(SAMPLES)]


def test_verifying_answers(benchmark: Any) -> None:
    problems = [(gold, _answers(random.Random(gold), gold)) for gold in range(10, 10 + PROBLEMS)]

    def verify() -> int:
        right = 0
        with MathPool() as pool:
            for gold, answers in problems:
                answer_classes(answers, pool)
                verdicts = {answer: is_correct(answer, str(gold), pool) for answer in set(answers)}
                right += sum(verdicts[answer] is Verdict.EQUAL for answer in answers)
        return right

    right = benchmark.pedantic(verify, rounds=1)
    assert 0.3 < right / (PROBLEMS * SAMPLES) < 0.7
    if benchmark.stats:
        assert benchmark.stats["mean"] < 30


def test_deriving_outputs(benchmark: Any, tmp_path: Path) -> None:
    recipe, todo = synth_runs.recipe(n=32, match="samples", export=EXPORTS), synth_runs.problems(50)
    with synth_runs.open_journal(tmp_path, recipe, todo) as journal:
        totals, balances = synthesize(
            recipe, todo, journal, synth_runs.FakeExecutor(recipe), synth_runs.SIZES
        )
    derived = benchmark.pedantic(
        write_synth, args=(tmp_path, recipe, totals, balances, synth_runs.SIZES), rounds=1
    )
    assert derived.measures["costs"]["se"]["samples"] == 32 * 50
