"""Budgets: read, refused when impossible, and never exceeded; FLOPs by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wcse.budget import Account, Budget
from wcse.data.fingerprint import fingerprint_models
from wcse.data.record import SolveRecord
from wcse.flops import ModelCost
from wcse.ledger import Ledger
from wcse.models.spec import LayerSpec, ModelSpec, Rope
from wcse.optimal.difficulty import Difficulty
from wcse.optimal.fit import Column, Table
from wcse.optimal.grid import Cell
from wcse.optimal.policy_file import save
from wcse.problems import load_problems
from wcse.recipe import Recipe
from wcse.solve import solve_all
from wcse.types import PROBE, Problem, WcseError

COST = ModelCost(params=100, attention=8)


def test_flops_by_hand() -> None:
    spec = ModelSpec("llama", 50, 8, 16, 4, 2, 2, 64, (LayerSpec(0, Rope()),) * 3, 1e-6, "silu", True, 1.0)
    layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16  # q, k and v, o, gate and up and down
    assert ModelCost.of(spec) == ModelCost(3 * layer + 50 * 8, 4 * 3 * 4 * 2)
    assert ModelCost.of(spec, head=False).params == 3 * layer
    assert COST.flops(10, 5) == 2 * 100 * 10 + 8 * (10 * 5 + 50)


@given(st.integers(0, 5000), st.integers(0, 3000), st.floats(0, 1))
def test_tokens_is_the_inverse_of_flops(tokens: int, context: int, extra: float) -> None:
    step = COST.flops(tokens + 1, context) - COST.flops(tokens, context)
    assert COST.tokens(COST.flops(tokens, context) + extra * 0.99 * step, context) == tokens


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "sets no limit"),
        ("tokens", "unknown unit 'tokens'"),
        ("token=5", r"unknown unit 'token' \(did you mean 'tokens'\?\)"),
        ("tokens=0", "tokens=0 must be above 0"),
        ("tokens=-3", "tokens=-3 must be above 0"),
        ("tokens=2.5", r"tokens=2.5 must be a whole number"),
        ("flops=inf", "flops=inf must be above 0"),
        ("seconds=soon", "seconds='soon' is not a number"),
        ("money=1", "money needs prices per million tokens"),
        ("tokens=5,price_in=1", "prices are given, but no money"),
        ("money=1,price_out=-1", "price_out=-1 must be at least 0"),
        ("tokens=5,tokens=6", "tokens is given twice"),
    ],
)
def test_impossible_budgets_are_refused(text: str, reason: str) -> None:
    with pytest.raises(WcseError, match=reason):
        Budget.parse(text)


@given(
    st.sampled_from(["tokens=900", "flops=400000", "money=.004,price_in=1,price_out=3,price_prm=2"]),
    st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=8), max_size=20),
    st.booleans(),
)
def test_no_use_of_the_shares_exceeds_the_budget(text: str, rounds: list[list[float]], scored: bool) -> None:
    budget = Budget.parse(text)
    account = Account(budget, COST, ModelCost(60, 4), scored=scored)
    account.open(50, "p")
    for used in rounds:
        contexts = [50 + 7 * i for i in range(len(used))]
        shares = account.shares(contexts)
        assert shares is not None
        for share, part, context in zip(shares, used, contexts, strict=True):
            account.charge(round(share * part), context)
    spent = {
        "tokens": account.prompt + account.written + account.read,
        "flops": account.policy_flops + account.prm_flops,
        "money": account.money,
    }
    unit = text.partition("=")[0]
    assert spent[unit] <= getattr(budget, unit) * (1 + 1e-9)
    assert (account.read > 0) == scored


def test_whole_shares_use_the_budget_up() -> None:
    account = Account(Budget(tokens=1000), COST, None)
    account.open(100, "p")
    assert account.shares([100] * 9) == [100] * 9
    for _ in range(9):
        account.charge(100, 100)
    assert account.shares([200]) == [0]


def test_a_prompt_beyond_the_budget_is_refused() -> None:
    account = Account(Budget(tokens=150), COST, COST, scored=True)
    with pytest.raises(
        WcseError, match=r"tokens=150 is impossible for problem 'p': .* 100 tokens alone costs 200"
    ):
        account.open(100, "p")


# --- on a real engine

PROBLEMS = "gsm_symbolic:size=3,seed=30000000"
STRATEGIES = (
    *("majority", "weighted_best_of_n", "beam_search", "mcts", "adaptive_vote(chunk=2)"),
    "lookahead_search(lookahead=2)",
)


def recipe(**options: Any) -> Recipe:
    given = {"policy": "tiny-wc", "prm": "tiny-wc-prm", "problems": PROBLEMS, "strategies": STRATEGIES}
    return Recipe.parse(given | {"n": 4, "beam_width": 2, "max_tokens": 160} | options)


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return load_problems(PROBLEMS)


def logical(record: SolveRecord) -> int:
    tokens = record.prompt_tokens + sum(len(node.token_ids) for node in record.nodes)
    return tokens * (3 if record.ledger.prm_flops else 1)  # the verifier is two models


def plain(records: list[SolveRecord]) -> list[SolveRecord]:
    return [replace(record, ledger=Ledger(), seconds=0.0) for record in records]


def test_a_token_budget_is_kept_and_cuts_at_the_same_token_in_every_batch(problems: list[Problem]) -> None:
    limited = recipe(budget="tokens=560")
    records = solve_all(limited, problems)
    free = {record.key: logical(record) for record in solve_all(recipe(), problems)}
    for record in records:
        assert logical(record) <= 560
        assert logical(record) == free[record.key] or free[record.key] > 400
    assert any(free[record.key] > 560 for record in records)
    assert any(node.finish == "budget" for record in records for node in record.nodes)
    again = solve_all(recipe(budget="tokens=560", batch_size=2), problems)
    assert plain(records) == plain(again)


def test_probes_of_the_difficulty_are_charged(problems: list[Problem], tmp_path: Path) -> None:
    """Two probes, then a beam: both within the limit, which the probes alone would not reach."""
    models = {"policy": "tiny-wc", "prm": "tiny-wc-prm"}
    cells = tuple(Cell(text, 4, False) for text in ("beam_search(n=2)", "beam_search(n=2)"))
    difficulty = Difficulty("verifier", samples=2)
    file = tmp_path / "policy.json"
    save(
        file,
        Table((0.5,), {4: Column(True, cells)}),
        difficulty,
        agg_strategy="last",
        recipe=models,
        inputs=fingerprint_models(models),
    )
    options = {"strategies": ("auto",), "strategy_policy": str(file)}
    free = {record.key: logical(record) for record in solve_all(recipe(**options), problems)}
    records = solve_all(recipe(budget="tokens=700", **options), problems)
    assert all(logical(record) <= 700 for record in records)
    assert any(free[record.key] > 700 for record in records)
    for record in records:
        probes = sum(len(node.token_ids) for node in record.nodes if node.path[0] >= PROBE)
        assert 0 < 3 * (record.prompt_tokens + probes) < 700


@pytest.mark.parametrize("budget", ["flops=1.6e9", "money=.0007,price_in=1,price_out=3,price_prm=1"])
def test_flops_and_money_are_kept(problems: list[Problem], budget: str) -> None:
    names = ("majority", "beam_search")
    records = solve_all(recipe(budget=budget, strategies=names), problems)
    for record in records:
        if budget.startswith("flops"):
            assert record.ledger.policy_flops + record.ledger.prm_flops <= 1.6e9
        written = sum(len(node.token_ids) for node in record.nodes)
        read = record.prompt_tokens + written if record.ledger.prm_flops else 0
        if budget.startswith("money"):
            assert (record.prompt_tokens + 3 * written + read) / 1e6 <= 0.0007
    assert any(node.finish == "budget" for record in records for node in record.nodes)


def test_seconds_end_a_search(problems: list[Problem]) -> None:
    (record,) = solve_all(recipe(budget="seconds=0.001", strategies=("majority",)), problems[:1])
    assert record.answer is None and {node.finish for node in record.nodes} <= {"budget", "delim", "eos"}
    assert max(len(node.token_ids) for node in record.nodes) <= 8


def test_a_budget_in_solutions_is_n(problems: list[Problem]) -> None:
    (record,) = solve_all(recipe(budget="solutions=2", strategies=("majority",)), problems[:1])
    assert len(record.solutions) == 2


def test_recipes_refuse_impossible_budgets(problems: list[Problem]) -> None:
    with pytest.raises(WcseError, match="tokens=0 must be above 0"):
        recipe(budget="tokens=0")
    with pytest.raises(WcseError, match=r"majority\(n=9\): n=9 is above the budget of solutions=8; lower n"):
        recipe(budget="solutions=8", strategies=("majority(n=9)",))
    with pytest.raises(WcseError, match="tokens=inf must be a whole number"):
        recipe(budget="tokens=inf")
    with pytest.raises(WcseError, match="tokens=20 is impossible for problem"):
        solve_all(recipe(budget="tokens=20", strategies=("majority",)), problems)


def test_a_verifier_of_two_models_reads_each_token_twice() -> None:
    one = ModelCost(10, 1)
    account = Account(Budget(tokens=100), one, one + one, scored=True)
    account.open(10, "a")
    assert (account.read, account.prm_flops) == (20, 2 * one.flops(10, 0))
    assert account.shares([10]) == [(100 - 10 - 20) // 3]
    account.charge(23, 10)
    assert account.read == 20 + 46
    assert account.prompt + account.written + account.read <= 100
