"""A small model beside larger ones: cells at equal FLOPs, difficulty, paired differences, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_runs
import pytest

from wcse.cli import main
from wcse.optimal.versus import Side, auto_rows, compare, crossings, equal_flops, rivals, thirds
from wcse.report.plots import draw
from wcse.report.versus import curves_table, figure, page
from wcse.types import WcseError

STRATEGIES = ("greedy", "majority", "weighted_best_of_n", "beam_search(n=4)", "beam_search(n=8)", "dvts(n=8)")


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Side, Side]:
    folder = tmp_path_factory.mktemp("versus")
    fake_runs.write(folder / "small", STRATEGIES, problems=15, flops=True)
    fake_runs.write(
        folder / "large", ("greedy", "majority"), problems=15, flops=True, seed=3, policy="bigger"
    )
    return Side.read("small", folder / "small"), Side.read("bigger", folder / "large")


def test_cells_of_samples_and_of_searches(sides: tuple[Side, Side]) -> None:
    curves = sides[0].curves()
    assert [cell.n for cell in curves["majority"]] == [1, 2, 3, 4, 6, 8]
    assert [cell.n for cell in curves["beam_search"]] == [4, 8]
    spent = [sum(cell.flops.values()) for cell in curves["weighted_best_of_n"]]
    assert spent == sorted(spent)
    alone = [sum(cell.flops.values()) for cell in curves["majority"]]
    assert all(
        b == pytest.approx(2 * a) for a, b in zip(alone, spent, strict=True)
    )  # the verifier reads as much


def test_thirds_are_equal_however_many_tie() -> None:
    parts = thirds({f"q{i}": float(i == 7) for i in range(9)})
    assert {name: len(members) for name, members in parts.items()} == {"easy": 3, "medium": 3, "hard": 3}
    assert "q7" in parts["easy"]


def test_nothing_costs_more_than_the_rival(sides: tuple[Side, Side]) -> None:
    small, large = sides
    assert [cell.n for cell in rivals(large)] == [1, 8]
    rows = equal_flops(small, large, thirds(small.share))
    assert rows and all(row["flops"] <= row["rival_flops"] for row in rows)
    for row in rows:
        whole = row["bins"]["all"]
        assert whole["gain"] == pytest.approx(whole["accuracy"] - whole["rival"])
        assert whole["gain_low"] <= whole["gain"] <= whole["gain_high"]
    mine = {(row["rival"], row["method"]): row["n"] for row in rows}
    assert mine["majority(n=8)", "majority"] in (6, 8)
    assert mine["majority(n=8)", "weighted_best_of_n"] in (
        2,
        3,
        4,
    )  # each of its samples is read by a verifier


def test_a_level_is_reached_at_the_first_budget_that_does(sides: tuple[Side, Side]) -> None:
    small, large = sides
    for row in crossings(small, large):
        cells = small.curves()[row["method"]]
        enough = [cell.n for cell in cells if cell.mean(small.problems) >= row["accuracy"]]
        assert row["n"] == (enough[0] if enough else None)
        assert (row["flops_ratio"] is None) == (not enough)


def test_auto_beside_single_strategies(tmp_path: Path) -> None:
    # The fake journal has no run of auto: rename a search, which costs and reaches the same.
    fake_runs.write(tmp_path / "run", STRATEGIES, problems=15, flops=True)
    side = Side.read("small", tmp_path / "run")
    cells = tuple(
        cell.__class__("auto(n=8)", 8, False, cell.accuracy, cell.tokens, cell.flops)
        if cell.strategy == "dvts(n=8)"
        else cell
        for cell in side.cells
    )
    (row,) = auto_rows(Side("small", side.header, cells, side.share), {8: "beam_search(n=8)"})
    assert row["n"] == 8 and row["fixed"]["strategy"] == "beam_search(n=8)"
    assert row["best"]["accuracy"] >= row["fixed"]["accuracy"] >= row["worst"]["accuracy"]
    assert row["fixed"]["gain"] == pytest.approx(row["auto"]["accuracy"] - row["fixed"]["accuracy"])


def test_page_and_tables(sides: tuple[Side, Side]) -> None:
    small, large = sides
    found = json.loads(json.dumps(compare(small, [large])))
    assert len(curves_table(found)) == 1 + sum(len(curve["points"]) for curve in found["curves"])
    html = page(found | {"policy": "small", "options": {"problems": "<b>"}}).decode()
    assert "<b>small" not in html and "&lt;b&gt;" in html and "bigger, one sample" in html
    assert "{{" not in html and "nan" not in draw(figure(found))
    assert "hard" in found["bins"] and "hard" in html


def test_other_problems_are_refused(sides: tuple[Side, Side], tmp_path: Path) -> None:
    fake_runs.write(tmp_path / "other", ("majority",), problems=14, policy="bigger")
    with pytest.raises(WcseError, match="different problems"):
        compare(sides[0], [Side.read("bigger", tmp_path / "other")])
    fake_runs.write(tmp_path / "same", ("majority",), problems=14, policy="bigger")
    with pytest.raises(WcseError, match="different problems"):
        Side.read("bigger", tmp_path / "same", fake_runs.write(tmp_path / "more", ("dvts",), problems=15))
    both = Side.read("bigger", tmp_path / "other", tmp_path / "same")
    assert len(both.cells) == 2 * len(Side.read("bigger", tmp_path / "same").cells)
    fake_runs.write(tmp_path / "half", ("majority", "dvts(n=4)"), problems=5, keep=7)
    with pytest.raises(WcseError, match="finish the run"):
        Side.read("half", tmp_path / "half")
    fake_runs.write(tmp_path / "none", ("greedy",), problems=3)
    with pytest.raises(WcseError, match="no sample set"):
        Side.read("none", tmp_path / "none")


RUN = ["--policy", "tiny-wc", "--prm", "tiny-wc-prm", "--max-tokens", "48", "--quiet"]


def test_fit_and_judge_on_other_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, spec = ["--out", str(tmp_path / "v")], "chain_sum:size=6,seed=40000000"
    assert main(["versus", *RUN, "--problems", spec, "--fit", spec, *out]) == 2
    assert "share 6 problems" in capsys.readouterr().err
    assert not (tmp_path / "v").exists()


def test_impossible_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, spec = ["--out", str(tmp_path / "v")], ["--problems", "chain_sum:size=6,seed=40000000"]
    few_options = ["--fit", "chain_sum:size=6,seed=40001000", "--difficulty", "oracle"]
    assert main(["versus", *RUN, *spec, *out, *few_options]) == 2
    assert "fit: auto asks a verifier and never the gold answers" in capsys.readouterr().err
    assert main(["versus", *RUN, *spec, *out, "--n", "4", "--budgets", "8"]) == 2
    assert "n=4 is below the largest budget 8" in capsys.readouterr().err
    assert main(["versus", *RUN, *spec, *out, "--larger", "other/tiny-wc"]) == 2
    assert "'tiny-wc' would be the directory of two runs" in capsys.readouterr().err
    few = ["--fit", "chain_sum:size=5,seed=40001000"]
    assert main(["versus", *RUN, *spec, *out, *few]) == 2
    assert "5 problems are too few to choose from; give 6 or more" in capsys.readouterr().err
    assert not (tmp_path / "v").exists()


def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "versus",
        *RUN,
        "--larger",
        "tiny-wc-prm",
        "--larger-n",
        "2",
        "--out",
        str(tmp_path),
        "--budgets",
        "8",
    ]
    command += ["--problems", "chain_sum:size=6,seed=40000000", "--fit", "chain_sum:size=6,seed=40001000"]
    command += ["--strategy", "dvts,rebase(n=4)"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "At equal FLOPs" in printed and "rebase" in printed and "auto beside" in printed
    found: dict[str, Any] = json.loads((tmp_path / "versus.json").read_text())
    methods = {(c["model"], c["method"]): [p["n"] for p in c["points"]] for c in found["curves"]}
    assert methods["tiny-wc", "auto"] == [8] and methods["tiny-wc", "rebase"] == [4]
    assert methods["tiny-wc-prm", "majority"] == [1, 2]
    assert (tmp_path / "versus.html").stat().st_size > 10_000
    stamp = (tmp_path / "versus.json").read_bytes()
    assert main(command) == 0  # everything is stored: nothing runs again
    assert (tmp_path / "versus.json").read_bytes() == stamp
