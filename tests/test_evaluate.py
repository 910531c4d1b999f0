"""Numbers of runs: tables agree with the records, comparisons are paired, mixed problems are refused."""

from __future__ import annotations

from pathlib import Path

import fake_runs
import pytest

from wcse.cli import main
from wcse.evaluate import at_k, compare, load_methods, numbers, over_seeds
from wcse.metrics import mcnemar, pass_at_k, wilson
from wcse.types import WcseError


def test_numbers_and_metrics_at_k(tmp_path: Path) -> None:
    methods = load_methods([fake_runs.write(tmp_path, ["best_of_n", "beam_search"])])
    best, beam = methods
    live = [fake_runs.record(i, "best_of_n", fake_runs.recipe()) for i in range(12)]
    row = numbers(best)
    correct = sum(r.correct is True for r in live)
    assert row["accuracy"] == correct / 12 and (row["accuracy_low"], row["accuracy_high"]) == wilson(
        correct, 12
    )
    assert row["coverage"] == sum(any(s.correct for s in r.solutions) for r in live) / 12
    assert at_k(beam) == []
    rows = {row["k"]: row for row in at_k(best)}
    assert sorted(rows) == [1, 2, 4, 8]
    counts = [sum(bool(s.correct) for s in r.solutions) for r in live]
    for k, row in rows.items():
        assert row["pass"] == pytest.approx(sum(pass_at_k(8, c, k) for c in counts) / 12)
        assert row["pass_low"] <= row["pass"] <= row["pass_high"]
        assert 0 <= row["diversity"] <= k
    assert rows[8]["argmax"] == pytest.approx(correct / 12)


def test_comparison_is_paired(tmp_path: Path) -> None:
    one, other = load_methods([fake_runs.write(tmp_path, ["majority", "beam_search"], problems=30)])
    found = compare(one, other)
    pairs = [(one.results[name].correct, other.results[name].correct) for name in one.results]
    assert found.only_base == pairs.count((True, False)) and found.only_other == pairs.count((False, True))
    assert found.difference == pytest.approx(other.accuracy - one.accuracy)
    assert found.low <= found.difference <= found.high
    assert found.p == mcnemar(found.only_base, found.only_other)
    assert compare(one, one).p == 1.0


def test_seeds_are_averaged(tmp_path: Path) -> None:
    runs = [fake_runs.write(tmp_path / str(seed), ["majority"], seed=seed) for seed in (1, 2, 3)]
    (row,) = over_seeds(load_methods(runs))
    assert row["seeds"] == 3 and row["error"] > 0
    assert over_seeds(load_methods(runs[:1])) == []


def test_other_problems_are_refused(tmp_path: Path) -> None:
    few = fake_runs.write(tmp_path / "few", ["majority"], problems=3)
    many = fake_runs.write(tmp_path / "many", ["majority"], problems=5)
    with pytest.raises(WcseError, match=r"few: majority and many: majority solve different problems .*'q3'"):
        load_methods([few, many])


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    part = fake_runs.write(tmp_path / "part", ["majority", "greedy"], problems=3, keep=4)
    with pytest.raises(WcseError, match=r"part: 2 of 6 .* pairs are missing; finish the run first"):
        load_methods([part])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(fake_runs.write(tmp_path / str(seed), ["best_of_n", "dvts"], seed=seed)) for seed in (1, 2)]
    table = tmp_path / "table.csv"
    assert main(["eval", *runs, "--k=1,8", "--baseline=dvts", f"--csv={table}"]) == 0
    out = capsys.readouterr().out
    assert "1: best_of_n" in out and "McNemar" in out and "pass@k" in out and "over 2 seeds" in out
    assert "comparisons" in table.read_text()
    for arguments, reason in (
        (["--k=9"], "k=9: 1: best_of_n recorded 8 samples a problem; use k up to 8"),
        (["--baseline=beam"], "baseline='beam' is none of the methods"),
        ([str(tmp_path / "none")], "no journal.tsv in it"),
    ):
        assert main(["eval", *runs, *arguments]) == 2
        assert reason in capsys.readouterr().err
