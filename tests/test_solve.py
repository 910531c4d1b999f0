"""The main job on the embedded models: the same trees whatever the batch, the memory, or a kill in between."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wcse.cli import main
from wcse.data.journal import read_records
from wcse.data.record import SolveRecord
from wcse.ledger import Ledger
from wcse.problems import load_problems
from wcse.recipe import Recipe
from wcse.solve import plan, solve_all
from wcse.types import Problem, WcseError

PROBLEMS = "gsm_symbolic:size=4,seed=30000000"
ALL = ("greedy", "majority", "best_of_n", "weighted_best_of_n", "beam_search", "dvts")


def recipe(**options: Any) -> Recipe:
    given = {
        "policy": "tiny-wc",
        "prm": "shared",
        "problems": PROBLEMS,
        "strategies": ALL,
        "n": 4,
        "beam_width": 2,
    }
    return Recipe.parse(given | {"max_tokens": 160} | options)


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return load_problems(PROBLEMS)


@pytest.fixture(scope="module")
def records(problems: list[Problem]) -> list[SolveRecord]:
    return solve_all(recipe(), problems)


def untimed(records: Sequence[SolveRecord]) -> dict[tuple[str, str], dict[str, Any]]:
    """Records without what may differ: costs depend on eviction and time."""
    return {record.key: replace(record, seconds=0.0, ledger=Ledger()).to_json() for record in records}


def test_every_strategy_answers_every_problem(records: list[SolveRecord], problems: list[Problem]) -> None:
    assert {record.key for record in records} == {(p.id, name) for p in problems for name in ALL}
    for record in records:
        budget = 1 if record.strategy == "greedy" else 4
        assert len(record.solutions) <= budget
        for solution in record.solutions:
            assert solution.correct is False or solution.answer is not None
            assert (solution.agg is None) == (
                record.strategy in ("greedy", "majority") or not record.complete(solution)
            )
        assert record.ledger.policy_computed > 0
        assert record.ledger.prm_computed == 0  # the head reads the policy's own states


def test_one_sample_set_serves_three_selectors(records: list[SolveRecord]) -> None:
    def texts(name: str) -> dict[str, list[str]]:
        return {r.problem.id: [n.text for n in r.nodes] for r in records if r.strategy == name}

    assert texts("majority") == texts("best_of_n") == texts("weighted_best_of_n")
    assert next(part.members for part in plan(recipe())) == ("majority", "best_of_n", "weighted_best_of_n")


@pytest.mark.parametrize("runtime", [{"batch_size": 1}, {"batch_size": 3}, {"kv_memory_gb": 0.002}])
def test_batch_and_memory_change_nothing(
    records: list[SolveRecord], problems: list[Problem], runtime: dict[str, Any]
) -> None:
    names = ("best_of_n", "beam_search")
    again = solve_all(recipe(strategies=names, **runtime), problems[:3])
    expected = [r for r in records if r.strategy in names and r.problem.id in {p.id for p in problems[:3]}]
    assert untimed(again) == untimed(expected)


def test_the_embedded_verifier_tells_right_from_wrong_solutions_of_one_problem() -> None:
    fresh = "gsm_symbolic:size=24,seed=40000000"
    runs = solve_all(
        recipe(prm="tiny-wc-prm", problems=fresh, strategies=("best_of_n",), n=8), load_problems(fresh)
    )
    pairs = [
        (good.agg > bad.agg)
        for record in runs
        for good in record.solutions
        for bad in record.solutions
        if good.correct and bad.correct is False and good.agg is not None and bad.agg is not None
    ]
    assert len(pairs) > 100
    assert sum(pairs) / len(pairs) > 0.75


def test_a_separate_prm_reads_each_token_once(problems: list[Problem]) -> None:
    runs = solve_all(recipe(prm="tiny-wc-prm", strategies=("best_of_n", "dvts")), problems[:2])
    for record in runs:
        written = sum(len(node.token_ids) for node in record.nodes)
        assert 0 < record.ledger.prm_computed < 2 * (written + record.prompt_tokens)
        assert all(
            node.score is not None and 0 <= node.score <= 1 for node in record.nodes if node.text.strip()
        )


KILLED = """
import os, signal, sys
import wcse.solve
from wcse.cli import main
from wcse.solve import solve

def killed(recipe, problems, on_record, on_progress, skip):
    count = 0
    def record(r):
        nonlocal count
        on_record(r)
        count += 1
        if count == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    solve(recipe, problems, record, on_progress, skip)

wcse.solve.solve = killed
main(sys.argv[1:])
"""


def test_a_killed_run_goes_on_to_the_same_trees(records: list[SolveRecord], tmp_path: Path) -> None:
    names = ("best_of_n", "dvts")
    command = [
        *(
            "solve",
            "--policy",
            "tiny-wc",
            "--prm",
            "shared",
            "--problems",
            PROBLEMS,
            "--strategy",
            ",".join(names),
        ),
        *("--n", "4", "--beam-width", "2", "--max-tokens", "160", "--out", str(tmp_path / "run"), "--quiet"),
    ]
    killed = subprocess.run([sys.executable, "-c", KILLED, *command], capture_output=True, timeout=300)
    assert killed.returncode == -9
    assert len(list(read_records(tmp_path / "run"))) == 3
    assert main(command) == 0
    assert untimed(list(read_records(tmp_path / "run"))) == untimed(
        [r for r in records if r.strategy in names]
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["strategies"]) == set(names)


def test_a_strategy_without_its_verifier_is_refused() -> None:
    with pytest.raises(WcseError, match="beam_search needs a verifier; set prm"):
        recipe(prm=None, strategies=("greedy", "beam_search"))


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    with pytest.raises(
        WcseError, match=r"problem 'long': the prompt has \d+ tokens and the model's context is"
    ):
        solve_all(recipe(strategies=("greedy",)), [Problem("long", "apples " * 5000)])
