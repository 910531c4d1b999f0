"""Replay: what is recomputed from a recorded tree equals the live run (T36), and nothing is made up beyond it."""

from __future__ import annotations

import csv
import itertools
import math
from dataclasses import replace
from pathlib import Path

import fake_runs
import numpy as np
import pytest

from wcse.cli import main
from wcse.data.curves import subsets
from wcse.data.journal import Header, Journal
from wcse.data.record import SolveRecord
from wcse.ledger import Ledger
from wcse.replay import rerun, reselect
from wcse.replay_rows import replay, sample_set
from wcse.types import WcseError
from wcse.votes import SELECTORS

RECIPE = fake_runs.recipe(strategies=("best_of_n",))


def same(one: SolveRecord, other: SolveRecord) -> bool:
    return replace(one, ledger=Ledger(), seconds=0) == replace(other, ledger=Ledger(), seconds=0)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("best_of_n", "best_of_n(n=3)"),
        ("best_of_n", "weighted_best_of_n(n=5,agg_strategy=min)"),
        ("best_of_n", "majority(n=4)"),
        ("best_of_n", "adaptive_vote(chunk=2)"),
        ("best_of_n", "speculative_rejection(checkpoint_tokens=10)"),
        ("majority", "adaptive_vote(stop_rule=certain)"),
        ("dvts", "dvts(n=4)"),
        ("beam_search", "beam_search"),
        ("lookahead_search", "lookahead_search"),
        ("particle_filter(ess_threshold=1)", "particle_filter(ess_threshold=1)"),
        ("mcts", "mcts"),
        ("rebase", "rebase"),
        ("greedy", "greedy"),
    ],
)
def test_a_rerun_on_the_tree_is_the_live_run(source: str, target: str) -> None:
    for index in range(6):
        again = rerun(fake_runs.record(index, source, RECIPE), target, RECIPE.results())
        live = fake_runs.record(index, target, RECIPE)
        assert same(again, live)
        assert again.ledger == live.ledger  # the fake's ledger counts each token once, too


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("best_of_n", "best_of_n(n=9)", r"asks for step 8 of problem 'q0', which best_of_n did not record"),
        ("best_of_n", "beam_search", "did not record; lower n, or run it with a model"),
        ("majority", "best_of_n(n=2)", "best_of_n.n=2. needs step scores, and majority recorded none"),
        ("greedy", "majority(n=1)", "which greedy did not record"),
        ("majority", "greedy", "which majority did not record"),
        ("dvts", "dvts(n=6)", "n=6 is not divisible by beam_width=4"),
        ("best_of_n", "best_off_n", "unknown .did you mean 'best_of_n'"),
    ],
)
def test_what_was_not_recorded_is_refused(source: str, target: str, reason: str) -> None:
    with pytest.raises(WcseError, match=reason):
        rerun(fake_runs.record(0, source, RECIPE), target, RECIPE.results())


@pytest.mark.parametrize("how", ["last", "min", "prod", "mean"])
def test_another_aggregation_of_samples_is_another_run(how: str) -> None:
    for index in range(6):
        record = fake_runs.record(index, "weighted_best_of_n", RECIPE)
        live = fake_runs.record(index, "weighted_best_of_n", fake_runs.recipe(agg_strategy=how))
        assert same(reselect(record, how), live)


def test_reselecting_needs_scores() -> None:
    with pytest.raises(WcseError, match="majority recorded no step scores"):
        reselect(fake_runs.record(0, "majority", RECIPE), "min")


def test_dvts_is_cut_by_whole_subtrees() -> None:
    record = fake_runs.record(1, "dvts(n=12,beam_width=3)", RECIPE)
    samples = sample_set(record, RECIPE.search_config)
    assert samples is not None and samples.unit_count == 4
    masks = subsets(samples, 2, np.random.default_rng(0))
    assert len(masks) == math.comb(4, 2)
    paths = sorted(s.path for s in record.solutions)
    for mask, chosen in zip(masks, itertools.combinations(range(4), 2), strict=True):
        assert {p for p, m in zip(paths, mask, strict=True) if m} == {p for p in paths if p[0] // 3 in chosen}


def test_rows_end_at_the_live_run_and_agree_with_reruns(tmp_path: Path) -> None:
    names = ("best_of_n", "dvts", "beam_search", "adaptive_vote")
    folder = fake_runs.write(tmp_path, names)
    rows = {(r["strategy"], r["selector"], r["n"]): r for r in replay(folder)}
    for name in names:
        live = [fake_runs.record(i, name, RECIPE) for i in range(12)]
        for selector in live[0].selectors:
            share = sum(r.selectors[selector].correct is True for r in live) / 12
            row = rows[name, selector, 8]
            assert row["accuracy"] == pytest.approx(share)
            assert row["low"] <= row["accuracy"] <= row["high"]
    assert {n for name, _, n in rows if name == "best_of_n"} == {1, 2, 4, 8}
    assert {n for name, _, n in rows if name == "dvts"} == {4, 8}
    assert {n for name, _, n in rows if name == "beam_search"} == {8}
    # DVTS with one of its two subtrees, averaged over which
    halves = [
        sum(
            SELECTORS["weighted"]([b for b in r.ballots() if b.path[0] // 4 == tree]) is not None
            and _right(r, [i for i, b in enumerate(r.ballots()) if b.path[0] // 4 == tree])
            for tree in (0, 1)
        )
        / 2
        for r in (fake_runs.record(i, "dvts", RECIPE) for i in range(12))
    ]
    assert rows["dvts", "weighted", 4]["accuracy"] == pytest.approx(sum(halves) / 12)


def _right(record: SolveRecord, members: list[int]) -> bool:
    ballots = record.ballots()
    pick = SELECTORS["weighted"]([ballots[i] for i in members])
    return pick is not None and record.solutions[members[pick]].correct is True


def test_one_sample_of_a_beam_is_not_its_best(tmp_path: Path) -> None:
    folder = fake_runs.write(tmp_path, ["beam_search"])
    with pytest.raises(
        WcseError, match=r"n=1: beam_search ran with n=8, and a part .* run beam_search\(n=1\)"
    ):
        replay(folder, sizes=(1,))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--n=16"], "n=16: best_of_n recorded n=8; replay cannot go beyond it"),
        (["--n=many"], "'many': give whole numbers"),
        (["--n=0"], "'0': give whole numbers of at least 1"),
        (["--agg-strategy=median"], "agg_strategy='median' is unknown"),
        (["--selector=weigthed"], "selector='weigthed' is unknown; use one of argmax, majority, weighted"),
        (["--strategy=best_of_n(n=99)"], "asks for step 8"),
        (["--strategy=majority", "--n=4"], "write its options in parentheses"),
        (["--csv=/nowhere/x.csv"], "cannot be written"),
    ],
)
def test_command_refuses(
    tmp_path: Path, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fake_runs.write(tmp_path / "run", ["best_of_n"], problems=3)
    assert main(["replay", str(folder), *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_a_budget_in_solutions_is_the_n_of_the_run(tmp_path: Path) -> None:
    folder = fake_runs.write(tmp_path, ["dvts", "beam_search"], n=16, budget="solutions=8")
    shown = {(row["strategy"], row["n"]) for row in replay(folder)}
    assert shown == {("dvts", 4), ("dvts", 8), ("beam_search", 8)}


def cut(record: SolveRecord) -> SolveRecord:
    """The record with its last solution cut by a budget."""
    nodes = (*record.nodes[:-1], replace(record.nodes[-1], finish="budget"))
    return replace(record, nodes=nodes)


def test_samples_that_a_budget_cut_show_no_smaller_n(tmp_path: Path) -> None:
    whole = fake_runs.record(0, "best_of_n", RECIPE)
    assert whole.independent and not cut(whole).independent
    last = fake_runs.recipe(strategies=("best_of_n",)).results()
    with pytest.raises(WcseError, match=r"step 7.* was cut by the budget of best_of_n, and majority\(n=8\)"):
        rerun(cut(whole), "majority(n=8)", last)
    assert rerun(cut(whole), "best_of_n", last).strategy == "best_of_n"
    # One problem without smaller N leaves none to the whole run, and no problem out.
    header = Header(last, {}, ("q0", "q1", "q2"))
    with Journal.open(tmp_path, header) as journal:
        for index in range(3):
            record = fake_runs.record(index, "best_of_n", RECIPE)
            journal.append(cut(record) if index == 0 else record)
    rows = {(row["selector"], row["n"]): row["accuracy"] for row in replay(tmp_path)}
    right = [r.correct is True for r in (fake_runs.record(i, "best_of_n", RECIPE) for i in range(3))]
    assert rows["argmax", 8] == pytest.approx(sum(right) / 3)
    assert {n for _, n in rows} == {8}


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fake_runs.write(tmp_path / "run", ["best_of_n", "beam_search"])
    table = tmp_path / "rows.csv"
    arguments = ["--agg-strategy=min,prod", "--selector=argmax", f"--csv={table}"]
    assert main(["replay", str(folder), *arguments]) == 0
    out = capsys.readouterr().out
    assert "N=1" in out and "N=8" in out and "prod" in out and "majority" not in out
    rows = list(csv.DictReader(table.open()))
    assert {row["aggregation"] for row in rows} == {"min", "prod"}
    assert main(["replay", str(folder), "--strategy=best_of_n(n=4),adaptive_vote"]) == 0
    assert "adaptive_vote" in capsys.readouterr().out
