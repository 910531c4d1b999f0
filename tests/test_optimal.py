"""The compute-optimal choice: bins, folds without leaks, the table, the policy file, and auto as it runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_runs
import pytest
from fakes import FakePolicy, make_root, run

from wcse.cli import main
from wcse.cli.optimal import sweep
from wcse.data.fingerprint import fingerprint_models
from wcse.data.journal import read_records
from wcse.optimal.difficulty import Difficulty, fold_bins
from wcse.optimal.fit import Column, Table, best_cell, choose, cross_validate, fit, fixed_points
from wcse.optimal.grid import Cell, Grid, read_grid
from wcse.optimal.policy_file import read_policy, save, tree_budgets
from wcse.recipe import Recipe
from wcse.search import SearchConfig
from wcse.search.auto import Choice, Choices, auto, bin_of
from wcse.search.best_of_n import best_of_n
from wcse.solve import solve_all
from wcse.types import PROBE, Chosen, Problem, Search, WcseError

BASE = SearchConfig(n=16, agg_strategy="last")

# --- difficulty


def test_quintiles_are_equal_however_many_values_tie() -> None:
    values = {f"q{i:02}": float(i >= 18) for i in range(20)}  # 18 of 20 at 0
    assert Counter(Difficulty("oracle").assign(values).values()) == dict.fromkeys(range(5), 4)
    assert Difficulty("oracle").assign(values)["q18"] == 0


def test_absolute_bins() -> None:
    values = {"a": 0.5, "b": 0.49, "c": 0.1, "d": 0.09}
    assert Difficulty("oracle", bins="absolute").assign(values) == {"a": 0, "b": 1, "c": 1, "d": 2}


def test_edges_part_the_values_and_leave_no_empty_bin() -> None:
    measure = Difficulty("agreement")
    edges = measure.edges([i / 10 for i in range(10)])
    assert edges == (0.8, 0.6, 0.4, 0.2)
    assert Counter(bin_of(i / 10, edges) for i in range(10)) == dict.fromkeys(range(5), 2)
    assert measure.edges([0.5] * 10) == ()
    tied = [1.0] * 7 + [0.5] * 2 + [0.25]
    assert {bin_of(value, measure.edges(tied)) for value in tied} == set(range(len(measure.edges(tied)) + 1))


def test_folds_halve_every_bin_and_do_not_depend_on_order() -> None:
    bins = {f"q{i}": i % 5 for i in range(30)}
    folds = fold_bins(bins, 3)
    assert Counter((bins[q], fold) for q, fold in folds.items()) == {
        (b, f): 3 for b in range(5) for f in (0, 1)
    }
    assert folds == fold_bins(dict(reversed(bins.items())), 3) != fold_bins(bins, 4)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kind": "length"}, "difficulty='length' is unknown; use one of oracle, verifier, agreement"),
        ({"bins": "decile"}, "bins='decile' is unknown"),
        ({"samples": 0}, "probes=0 must be at least 1"),
    ],
)
def test_difficulty_refuses(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(WcseError, match=reason):
        Difficulty(**options)


# --- the choice


def world(count: int = 200) -> Grid:
    """Easy problems where sampling always wins, hard ones where the beam does; values tell them apart."""
    names = [f"q{i}" for i in range(count)]
    easy = {name: i % 2 == 0 for i, name in enumerate(names)}
    cost = dict.fromkeys(names, 100.0)

    def cell(text: str, sampler: bool, on_easy: float, on_hard: float) -> Cell:
        scores = {n: (on_easy if easy[n] else on_hard) for n in names}
        # a bit of fixed noise, so that there is a standard error
        scores = {n: v - 0.05 * ((i * 7919) % 5 == 0) for i, (n, v) in enumerate(scores.items())}
        return Cell(text, 16 if sampler else 12, sampler, scores, cost)

    cells = (
        cell("weighted_best_of_n(n=16)", True, 0.9, 0.2),
        replace(cell("beam_search(n=16)", False, 0.65, 0.6), n=16),
    )
    probed = replace(cell("beam_search(n=12)", False, 0.6, 0.6), tokens=dict.fromkeys(names, 120.0))
    values = {n: 0.9 if easy[n] else 0.3 for n in names}
    return Grid(cells, Difficulty("verifier", samples=4), values, dict.fromkeys(names, 20.0), (probed,))


def test_each_bin_gets_what_pays_there() -> None:
    table = fit(world(), (16,))
    assert table.edges == (0.9,)
    assert table.choices[16].probed
    assert [cell.strategy for cell in table.choices[16].cells] == [
        "weighted_best_of_n(n=16)",
        "beam_search(n=12)",
    ]


def test_cross_validated_gain_and_its_cost() -> None:
    point = cross_validate(world(), 16)
    assert point["auto"]["accuracy"] == pytest.approx(0.74, abs=0.01)
    assert point["best_fixed"]["accuracy"] == pytest.approx(0.615, abs=0.01)
    assert point["gain_low"] > 0
    assert point["auto"]["tokens"] == pytest.approx(110)  # half of the problems pay 20 for unused probes
    assert point["auto"]["tokens_without_probes"] == pytest.approx(100)


def test_one_fold_decides_nothing_about_itself() -> None:
    """Whatever one fold's labels are, its own choices come from the other (T32)."""
    grid = world(40)
    ranks = grid.difficulty.assign(grid.values)
    folds = fold_bins(ranks, 0)
    half = [name for name in grid.problems if folds[name] == 0]

    def turned(cells: Sequence[Cell]) -> tuple[Cell, ...]:
        return tuple(replace(c, accuracy=c.accuracy | {n: 1 - c.accuracy[n] for n in half}) for c in cells)

    shuffled = replace(grid, cells=turned(grid.cells), probed=turned(grid.probed))
    other = [name for name in grid.problems if folds[name] == 1]

    def strategies(grid: Grid, names: list[str]) -> list[str]:
        return [cell.strategy for cell in fit(grid, (16,), names).choices[16].cells]

    assert strategies(grid, other) == strategies(shuffled, other)
    assert strategies(grid, half) != strategies(shuffled, half)


def test_where_looking_does_not_pay_the_best_strategy_has_the_whole_budget(tmp_path: Path) -> None:
    """Sampling is no better on easy problems than the beam, so probes only take from it."""
    grid = world()
    beam = next(cell for cell in grid.cells if not cell.sampler)
    dull = replace(
        grid, cells=(replace(beam, strategy="dvts(n=16)", accuracy=dict.fromkeys(grid.problems, 0.9)), beam)
    )
    column = fit(dull, (16,)).choices[16]
    assert not column.probed and [cell.strategy for cell in column.cells] == ["dvts(n=16)"]
    point = cross_validate(dull, 16)
    assert point["gain"] == 0 and point["auto"]["tokens"] == point["auto"]["tokens_without_probes"] == 100
    file = tmp_path / "policy.json"
    save(file, fit(dull, (16,)), Difficulty(), agg_strategy="last", recipe=MODELS, inputs=PRINTS)
    found = read_policy(str(file), names=MODELS, inputs=PRINTS).choices(16, SearchConfig())
    assert (found.samples, found.edges, len(found.bins)) == (0, (), 1)
    policy = FakePolicy(1, max_steps=10**6)
    assert 4 < len(outcome(auto(make_root(), found), policy).solutions) <= 16
    assert all(path[0] < PROBE for path in policy.tree)


def test_noise_does_not_leave_the_default() -> None:
    names = [f"q{i}" for i in range(20)]
    cost = dict.fromkeys(names, 1.0)
    default = Cell("a", 4, True, {n: float(i % 2) for i, n in enumerate(names)}, cost)
    lucky = Cell("b", 4, True, {n: float((i + 1) % 2 or i == 1) for i, n in enumerate(names)}, cost)
    assert best_cell([default, lucky], names) is lucky
    assert choose([default, lucky], names, default) is default
    cheap = Cell("c", 4, True, default.accuracy, dict.fromkeys(names, 0.5))
    assert best_cell([default, cheap], names) is cheap


# --- the grid of a run


def test_grid_of_a_run(tmp_path: Path) -> None:
    names = sweep(["beam_search"], (4, 8), 4, scored=True, beam_width=4)
    assert names == ("majority", "best_of_n", "weighted_best_of_n", "beam_search(n=4)", "beam_search(n=8)")
    folder = fake_runs.write(tmp_path, names)
    grid = read_grid(folder, (4, 8), Difficulty("verifier", samples=4))
    assert {c.strategy for c in grid.fixed(4)} == {
        *("majority(n=4)", "best_of_n(n=4)", "weighted_best_of_n(n=4)", "beam_search(n=4)")
    }
    assert {c.strategy for c in grid.after_probes(8) if not c.sampler} == {"beam_search(n=4)"}
    assert [c for c in grid.after_probes(4) if not c.sampler] == []
    whole = {c.strategy: c for c in grid.fixed(8)}["majority(n=8)"]
    live = {r.problem.id: r for r in read_records(folder) if r.strategy == "majority"}
    assert whole.accuracy == {name: float(r.correct is True) for name, r in live.items()}
    assert whole.tokens["q0"] == live["q0"].ledger.policy_computed
    points = {p["strategy"]: p for p in fixed_points(grid, 8)}
    assert points["majority(n=8)"]["low"] <= points["majority(n=8)"]["accuracy"]
    with pytest.raises(WcseError, match="nothing was recorded at n=32"):
        read_grid(folder, (32,), Difficulty())
    with pytest.raises(WcseError, match="probes=9: best_of_n recorded 8 samples"):
        read_grid(folder, (8,), Difficulty(samples=9))


def test_probes_vote_with_the_search_that_follows_them(tmp_path: Path) -> None:
    """The joined cell is the weighted vote over a search's solutions and the last samples, at the cost of both."""
    names = sweep(["beam_search"], (8,), 4, scored=True, beam_width=4)
    folder = fake_runs.write(tmp_path, names)
    grid = read_grid(folder, (8,), Difficulty("verifier", samples=4))
    (cell,) = [cell for cell in grid.after_probes(8) if not cell.sampler]
    assert cell.strategy == "beam_search(n=4)"
    found = {(r.problem.id, r.strategy): r for r in read_records(folder)}
    changed = 0
    for name in grid.problems:
        search, samples = found[name, "beam_search(n=4)"], found[name, "best_of_n"]
        weights: Counter[str] = Counter()
        for solution in (*search.solutions, *samples.solutions[-4:]):
            if solution.answer is not None:
                weights[solution.answer] += solution.agg or 0.0  # type: ignore[assignment]
        best = max(weights, key=lambda answer: weights[answer], default=None)
        assert cell.accuracy[name] == float(best == search.problem.answer)
        changed += best != search.answer
        assert cell.tokens[name] > search.ledger.policy_computed + search.ledger.prm_computed
    assert changed


def test_tree_budgets() -> None:
    assert tree_budgets((4, 16), 4, 4) == [4, 12, 16]
    assert tree_budgets((4, 16), 2, 4) == [4, 12, 16]
    assert tree_budgets((6, 64), 4, 8) == [56, 64]
    with pytest.raises(WcseError, match="budgets: 10 is not divisible by beam_width=4; give multiples"):
        tree_budgets((4, 10), 4, 4)


# --- auto


def choices(**options: Any) -> Choices:
    given: dict[str, Any] = {
        "n": 8,
        "feature": "verifier",
        "samples": 3,
        "agg_strategy": "last",
        "edges": (0.5,),
        "bins": (
            Choice(None, "majority"),
            Choice(lambda root: best_of_n(root, replace(BASE, n=5)), "argmax"),
        ),
    }
    return Choices(**given | options)


def test_auto_measures_chooses_and_stays_within_n() -> None:
    seen = set()
    for seed in range(20):
        policy = FakePolicy(seed, max_steps=10**6)
        result = outcome(auto(make_root(), choices()), policy)
        firsts = {path[0] for path in policy.tree}
        assert firsts == {*range(5), PROBE, PROBE + 1, PROBE + 2}
        assert {leaf.path[0] for leaf in result.solutions} == firsts  # the probes vote, too
        seen.add(result.selector)
    assert seen == {"majority", "argmax"}


def outcome(strategy: Search, policy: FakePolicy) -> Chosen:
    request = next(strategy)
    with pytest.raises(StopIteration) as stop:
        while True:
            request = strategy.send(policy.answer(request))
    assert isinstance(stop.value.value, Chosen)
    return stop.value.value


def test_auto_says_which_selector_chooses() -> None:
    strategy = auto(make_root(), choices(feature="agreement", edges=(0.01,)))
    assert outcome(strategy, FakePolicy(1, max_steps=10**6)).selector == "majority"


def test_auto_without_a_table_is_refused() -> None:
    with pytest.raises(WcseError, match="strategy auto needs a policy file: make one with wcse optimal"):
        run(auto(make_root(), None), FakePolicy())


# --- the policy file

MODELS = {"policy": "fake", "prm": "toy"}
PRINTS = {"policy": "aa", "prm": "bb"}


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.json"
    save(path, fit(world(), (16,)), Difficulty("verifier"), agg_strategy="prod", recipe=MODELS, inputs=PRINTS)
    return path


def test_policy_file_round_trip(policy_file: Path) -> None:
    loaded = read_policy(str(policy_file), names=MODELS, inputs=PRINTS).choices(20, SearchConfig())
    assert (loaded.n, loaded.feature, loaded.samples, loaded.agg_strategy) == (16, "verifier", 4, "prod")
    assert loaded.edges == (0.9,)
    assert [choice.selector for choice in loaded.bins] == ["weighted", "weighted"]
    assert loaded.bins[0].run is None and loaded.bins[1].run is not None
    assert len(run(auto(make_root(), loaded), FakePolicy(3, max_steps=10**6))) == 16


@pytest.mark.parametrize(
    ("change", "n", "reason"),
    [
        ({}, 8, "n=8 is below its smallest budget 16"),
        ({"format": 0}, 16, "not a policy file of this version"),
        (
            {"models": {"policy": {"name": "big", "fingerprint": "cc"}}},
            16,
            "made for policy='big', and the run",
        ),
        (
            {"difficulty": {"feature": "oracle", "samples": 4}},
            16,
            "difficulty feature 'oracle' cannot be measured",
        ),
        ({"edges": [0.9, 0.5]}, 16, "2 bins but 2 edges"),
        ({"edges": ["high"]}, 16, "not a policy file of wcse optimal"),
        ({"budgets": {"many": {}}}, 16, "not a policy file of wcse optimal"),
        (
            {"budgets": {"16": {"probed": True, "strategies": ["beem", "dvts"]}}},
            16,
            "strategy='beem' is unknown",
        ),
        ({"budgets": None}, 16, "not a policy file of wcse optimal"),
    ],
)
def test_policy_file_refuses(policy_file: Path, change: dict[str, Any], n: int, reason: str) -> None:
    data = json.loads(policy_file.read_text())
    policy_file.write_text(json.dumps(data | change))
    with pytest.raises(WcseError, match=reason):
        read_policy(str(policy_file), names=MODELS, inputs=PRINTS).choices(n, SearchConfig())


def test_difficulty_is_measured_as_in_the_fit_whatever_ranks_steps(policy_file: Path) -> None:
    file = read_policy(str(policy_file), names=MODELS, inputs=PRINTS)
    assert file.choices(16, SearchConfig(agg_strategy="min")).agg_strategy == "prod"


def test_the_file_keeps_the_n_that_was_fitted(tmp_path: Path) -> None:
    cell = replace(world().probed[0], strategy="beam_search", n=12)
    table = Table((), {16: Column(True, (cell,))})
    save(tmp_path / "p", table, Difficulty(), agg_strategy="last", recipe=MODELS, inputs=PRINTS)
    found = read_policy(str(tmp_path / "p"), names=MODELS, inputs=PRINTS).choices(64, SearchConfig(n=64))
    assert len(run(auto(make_root(), found), FakePolicy(1, max_steps=10**6))) == 16


def test_policy_file_must_exist_and_be_json(tmp_path: Path) -> None:
    with pytest.raises(WcseError, match="make one with wcse optimal"):
        read_policy(str(tmp_path / "none"), names=MODELS, inputs=PRINTS)
    (tmp_path / "bad").write_text("{")
    with pytest.raises(WcseError, match="not JSON"):
        read_policy(str(tmp_path / "bad"), names=MODELS, inputs=PRINTS)


def test_oracle_difficulty_makes_no_policy_file(tmp_path: Path) -> None:
    with pytest.raises(WcseError, match="difficulty=oracle needs gold answers"):
        save(
            tmp_path / "p",
            fit(world(), (16,)),
            Difficulty("oracle"),
            agg_strategy="last",
            recipe={},
            inputs={},
        )


# --- the command, on a real model


def test_optimal_then_auto(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--policy=tiny-wc", "--prm=shared", "--problems=gsm_symbolic:size=8,seed=30000000"]
    options = ["--budgets=2,4", "--probes=2", "--beam-width=2", "--max-tokens=160", "--strategy=beam_search"]
    command = ["optimal", *common, *options, f"--out={tmp_path}", "--quiet"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "auto, cross-validated (n=4)" in out and "by difficulty" in out and "policy file" in out
    file = tmp_path / "policy.json"
    recipe = Recipe.parse(
        {
            "policy": "tiny-wc",
            "prm": "shared",
            "problems": "p",
            "strategies": ["auto"],
            "strategy_policy": str(file),
            "n": 4,
            "beam_width": 2,
            "max_tokens": 160,
        }
    )
    data = json.loads(file.read_text())
    problems = [Problem(f"a{i}", f"Calculate {i} + 12.", str(i + 12)) for i in range(4)]
    for record in solve_all(recipe, problems):
        assert 1 <= len({node.path[0] for node in record.nodes}) <= 4
        drawn = sum(node.path == (PROBE + i,) for node in record.nodes for i in (0, 1))
        assert drawn == (2 if data["budgets"]["4"]["probed"] else 0)
        assert record.selector in ("majority", "argmax", "weighted")
    data["models"]["policy"]["fingerprint"] = "0"
    file.write_text(json.dumps(data))
    with pytest.raises(WcseError, match="was made for policy='tiny-wc'"):
        solve_all(recipe, problems)
    assert "policy" in fingerprint_models({"policy": recipe.policy, "prm": recipe.prm})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--difficulty=length"], "difficulty='length' is unknown"),
        (["--strategy=best_of_n"], "give searches that ask a verifier"),
        (["--strategy=adaptive_vote"], "give searches that ask a verifier"),
        (["--strategy=beam(n=4)"], "n comes from --budgets"),
        (["--budgets=none"], "give whole numbers of at least 1"),
        (["--budgets=4,10"], "budgets: 10 is not divisible by beam_width=4"),
        (["--budgets=2,4", "--probes=5"], "probes=5 is above the largest budget 4"),
    ],
)
def test_command_refuses(
    tmp_path: Path, options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["optimal", "--policy=tiny-wc", "--prm=shared", "--problems=p", f"--out={tmp_path / 'o'}"]
    assert main([*command, *options]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_recipe_wants_auto_and_its_file_together() -> None:
    good = {"policy": "p", "prm": "r", "problems": "q"}
    with pytest.raises(WcseError, match="strategy auto needs strategy_policy"):
        Recipe.parse(good | {"strategies": ["auto"]})
    with pytest.raises(WcseError, match="strategy_policy is for the strategy auto only"):
        Recipe.parse(good | {"strategy_policy": "x"})
