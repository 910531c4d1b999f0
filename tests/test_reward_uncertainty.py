"""The policy's own uncertainty: values equal a full forward, whole runs, votes by rank."""

from __future__ import annotations

import math

import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM

from wcse import Recipe, solve_all
from wcse.engine.driver import Driver, Job
from wcse.engine.engine import Engine
from wcse.engine.params import SamplingParams, StepRule
from wcse.models import decoder
from wcse.models.load import LoadedModel, load_model
from wcse.reward.uncertainty import MEASURES, PolicyScorer
from wcse.search import STRATEGIES, SearchConfig
from wcse.types import Problem, WcseError
from wcse.votes import Ballot, by_rank


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(tiny_models.build("llama", tmp_path_factory.mktemp("policy")))


@pytest.mark.parametrize("measure", MEASURES)
def test_scores_equal_a_full_forward(
    policy: LoadedModel, monkeypatch: pytest.MonkeyPatch, measure: str
) -> None:
    monkeypatch.setattr(decoder, "LOGIT_ROWS", 3)  # of 4 rows, so that logits come in two parts
    engine = Engine(policy, max_rows=8)
    driver = Driver(
        engine,
        PolicyScorer(engine, measure),
        params=SamplingParams(max_tokens=30),
        rule=StepRule(delimiter="e", max_tokens=10),
    )
    prompt = policy.tokenizer.encode("How many apples?")
    config = SearchConfig(n=4, beam_width=2, agg_strategy="mean")
    job = Job("a", prompt, "", lambda root: STRATEGIES["best_of_n"].run(root, config), seed=1)
    (outcome,) = driver.run([job])
    model = AutoModelForCausalLM.from_pretrained(policy.path, dtype=torch.float32).eval()
    for leaf in outcome.solutions:
        ids = [*prompt, *leaf.completion_ids]
        with torch.no_grad():
            table = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
        drawn = table.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        each = {
            "mean_logprob": drawn,
            "entropy": (table.exp() * table).sum(-1),
            "self_certainty": -table.mean(-1) - math.log(table.shape[-1]),
        }[measure]
        end = len(prompt)
        for step in leaf.steps():
            begin, end = end, end + len(step.token_ids)
            if step.text.strip():
                assert step.score == pytest.approx(float(each[begin - 1 : end - 1].mean()), abs=1e-4)


def test_a_run_with_unbounded_scores_votes_by_rank() -> None:
    problems = [Problem("p", "Calculate 17 + 25.", "42")]
    recipe = {
        "policy": "tiny-wc",
        "prm": "policy:self_certainty",
        "problems": "p.jsonl",
        "strategies": ("best_of_n", "weighted_best_of_n", "beam_search"),
        "n": 4,
        "max_tokens": 48,
    }
    records = solve_all(Recipe.parse(recipe), problems)
    assert [record.strategy for record in records] == list(recipe["strategies"])
    assert all(record.ledger.prm_computed == 0 for record in records)
    with pytest.raises(WcseError, match="their product means nothing"):
        solve_all(Recipe.parse(recipe | {"agg_strategy": "prod"}), problems)
    with pytest.raises(WcseError, match="unknown measure; known: mean_logprob, entropy, self_certainty"):
        solve_all(Recipe.parse(recipe | {"prm": "policy:mood"}), problems)


def test_ranks_keep_the_order_and_share_ties() -> None:
    scores = [-3.0, 7.5, math.nan, -3.0, None, 1e9]
    votes = by_rank([Ballot((i,), True, 0, score) for i, score in enumerate(scores)])
    found = [vote.score for vote in votes]
    assert found[0] == found[3] == pytest.approx(1.5 / 4)
    assert (found[1], found[5], found[4]) == (0.75, 1.0, None)
    assert found[2] is not None and math.isnan(found[2])
