"""What a data run costs besides the models: verifying answers, storing, and deriving everything from the journal.

To reach: 100 problems x 256 samples verified in under 30 s on 2 cores (made-up samples; half are right, and answers
take forms that need reading: fractions, decimals, LaTeX); verifying, storing and deriving under 5 % of a real run's
time, with the smallest and so the fastest model there is.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import synth_runs

from wcse import solve
from wcse.answers import MathPool, Verdict, answer_classes, is_correct
from wcse.data.grading import Graded
from wcse.data.journal import Journal
from wcse.problems import load_problems
from wcse.synth import work
from wcse.synth.outputs import write_synth
from wcse.synth.recipe import EXPORTS, SynthRecipe
from wcse.synth.record import Unit
from wcse.synth.run import synthesize

pytestmark = pytest.mark.long

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


def test_share_of_a_run(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds spent beside the model: grading, the journal, and all derived files in every format.

    The journal is written behind the generation, so it takes what its thread computes; the others take what they last.
    """
    pytest.importorskip("reasoning_gym")
    spent: dict[str, float] = {}

    def timed(
        name: str, function: Callable[..., Any], clock: Callable[[], float] = time.perf_counter
    ) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] = spent.get(name, 0.0) + clock() - start

        return call

    monkeypatch.setattr(Graded, "of", staticmethod(timed("verifying", Graded.of)))
    monkeypatch.setattr(solve, "classify", timed("verifying", solve.classify))
    monkeypatch.setattr(Journal, "append", timed("storing", Journal.append, time.thread_time))
    monkeypatch.setattr(work, "write_synth", timed("deriving", work.write_synth))
    spec = "gsm_symbolic:size=100,seed=1000000"
    sampler = {"model": "tiny-wc", "max_tokens": 256}
    recipe = SynthRecipe.parse({"problems": spec, "samplers": {"wc": sampler}, "n": 64, "export": EXPORTS})
    problems = load_problems(spec, limit=None if benchmark.enabled else 2)
    benchmark.pedantic(work.run_synth, args=(recipe, problems, str(tmp_path)), rounds=1)
    if benchmark.stats:
        total = benchmark.stats["mean"]
        shares = {name: seconds / total for name, seconds in spent.items()}
        benchmark.extra_info.update(shares)
        print({name: f"{share:.2%}" for name, share in shares.items()})


@pytest.mark.parametrize("ray", [None, "local"], ids=["processes", "ray"])
@pytest.mark.parametrize("workers", [1, 2])
def test_rate_of_workers(benchmark: Any, workers: int, ray: str | None) -> None:
    """Samples a second of workers with one thread each, after they have loaded and done a first batch."""
    if not benchmark.enabled:
        pytest.skip("a rate: nothing to check without a clock")
    pytest.importorskip("reasoning_gym")
    if ray:
        pytest.importorskip("ray", minversion="2")
    spec, n = "gsm_symbolic:size=100,seed=1000000", 32
    sampler = {"model": "tiny-wc", "max_tokens": 256}
    given = {"problems": spec, "samplers": {"wc": sampler}, "n": n}
    recipe = SynthRecipe.parse(given | {"workers": workers, "threads": 1, "ray": ray})
    problems = load_problems(spec)
    with work.executor_of(recipe) as executor:
        executor.run([(Unit("wc", 1, problem.id, 1), problem) for problem in problems], lambda _: None)
        tasks = [(Unit("wc", 0, problem.id, n), problem) for problem in problems]
        benchmark.pedantic(executor.run, args=(tasks, lambda _: None), rounds=1)
    benchmark.extra_info["samples_per_second"] = len(tasks) * n / benchmark.stats["mean"]
    print(
        f"{ray or 'processes'}, {workers} workers: {benchmark.extra_info['samples_per_second']:.0f} samples/s"
    )
