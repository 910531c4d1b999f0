"""Grading: a strategy is charged and judged as if it ran alone; scores that are no probabilities vote by rank."""

from __future__ import annotations

import fake_runs
import pytest
from fakes import FakePolicy, make_path, make_root, run

from wcse.data.grading import Graded
from wcse.ledger import Ledger
from wcse.problems import load_problems
from wcse.recipe import Recipe
from wcse.replay import reselect
from wcse.search import STRATEGIES, SearchConfig
from wcse.solve import solve_all
from wcse.types import WcseError


def test_majority_does_not_see_the_verifier_beside_it() -> None:
    """Samples scored for another strategy: the plain vote breaks its ties without their scores."""
    differs = False
    for seed in range(30):
        policy = FakePolicy(seed, words=3)
        config = SearchConfig(n=4, agg_strategy="last")
        nodes = run(STRATEGIES["best_of_n"].run(make_root(), config), policy)
        made = [
            Graded.of(fake_runs.problem(0), nodes, how, None).record(
                "majority", selector=None, nodes=(), ledger=Ledger(), prompt_tokens=1
            )
            for how in ("last", None)
        ]
        assert made[0] == made[1]
        beside = Graded.of(fake_runs.problem(0), nodes, "last", None).selections["majority"]
        differs = differs or beside.answer != made[0].answer
    assert differs


def test_unbounded_scores_count_by_rank() -> None:
    nodes = [make_path(score, path=(i,)) for i, score in enumerate((-3.0, -1.0, -2.0))]
    graded = Graded.of(fake_runs.problem(0), nodes, "last", None, bounded=False)
    assert [s.agg for s in graded.solutions] == pytest.approx([1 / 3, 1.0, 2 / 3])
    assert graded.selections["argmax"].solution == 1


def test_unbounded_scores_are_no_weights_of_particles() -> None:
    def recipe(**options: object) -> Recipe:
        given = {"policy": "tiny-wc", "prm": "policy:mean_logprob", "problems": "p", "n": 2, "max_tokens": 60}
        return Recipe.parse(given | options)

    problems = load_problems("gsm_symbolic:size=2,seed=30000000")[:1]
    with pytest.raises(WcseError, match=r"strategy particle_filter: .* unbounded and cannot be weights"):
        solve_all(recipe(strategies=["particle_filter"]), problems)
    (record,) = solve_all(recipe(strategies=["weighted_best_of_n"]), problems)
    assert reselect(record, "mean").solutions == record.solutions
    with pytest.raises(WcseError, match="agg_strategy='prod' means nothing for the unbounded scores"):
        reselect(record, "prod")
