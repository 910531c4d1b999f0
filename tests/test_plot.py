"""``wcse plot``: the report's numbers in PNG, SVG and CSV, and the report's own additions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import fake_runs
import pytest

from wcse.cli import main
from wcse.data.outputs import write_outputs
from wcse.report.figures import BY_X, accuracy_vs_flops, frontier, with_levels
from wcse.report.optimal import page
from wcse.report.plots import Figure, Line, draw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = ["majority", "weighted_best_of_n", "beam_search", "dvts"]
    return fake_runs.write(tmp_path / "run", names, problems=15)


def test_csv_holds_the_points_of_the_summary(folder: Path, tmp_path: Path) -> None:
    summary = write_outputs(folder).summary
    assert main(["plot", str(folder), f"--to={tmp_path / 'a.csv'}"]) == 0
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    curve = [float(row["accuracy"]) for row in rows if row["name"] == "weighted vote"]
    assert curve == summary["curves"]["weighted_best_of_n"]["weighted"]
    bands = [[float(row["low"]), float(row["high"])] for row in rows if row["name"] == "weighted vote"]
    assert bands == summary["bands"]["weighted_best_of_n"]["weighted"]
    assert all(low <= y <= high for (low, high), y in zip(bands, curve, strict=True))
    assert {row["name"] for row in rows} >= {"beam_search", "dvts", "majority", "any right (pass@N)"}


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_pictures(folder: Path, tmp_path: Path, suffix: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for file in files:
        assert main(["plot", str(folder), "--x=tokens", f"--to={file}"]) == 0
    assert files[0].read_bytes().startswith(start)
    if suffix == ".png":
        assert files[0].read_bytes() == files[1].read_bytes()


def test_larger_models_are_horizontal_lines(folder: Path, tmp_path: Path) -> None:
    large = fake_runs.write(tmp_path / "large", ["greedy"], problems=15, policy="models/big")
    assert main(["plot", str(folder), f"--larger={large}", f"--to={tmp_path / 'a.csv'}"]) == 0
    rows = [r for r in csv.DictReader((tmp_path / "a.csv").open()) if r["name"] == "big, greedy"]
    assert len(rows) == 2 and rows[0]["accuracy"] == rows[1]["accuracy"]
    assert float(rows[0]["x"]) == 1 and float(rows[1]["x"]) == 8


def test_a_larger_model_on_other_problems_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = fake_runs.write(tmp_path / "other", ["greedy"], problems=14, policy="models/big")
    assert main(["plot", str(folder), f"--larger={other}", f"--to={tmp_path / 'a.csv'}"]) == 2
    assert "solved other problems than" in capsys.readouterr().err


GAIN = {"gain": 0.1, "gain_low": 0.0, "gain_high": 0.2}


def test_frontier_of_optimal(tmp_path: Path) -> None:
    def point(y: float, x: float) -> dict[str, float]:
        return {"accuracy": y, "low": y - 0.1, "high": y + 0.1, "tokens": x}

    found = {
        "fixed": [
            {"strategy": f"{name}(n={n}{more})", **point(0.5 + n / 100, 100.0 * n)}
            for n in (4, 16)
            for name, more in (("majority", ""), ("beam_search", ",lookahead=1"))
        ],
        "optimal": [
            {"n": n, "auto": point(0.8, 120.0 * n), "best_fixed": point(0.7, 100.0 * n), **GAIN}
            for n in (4, 16)
        ],
    }
    figure = frontier(found)
    names = [line.name for line in figure.lines]
    assert names[:2] == ["majority", "beam_search(lookahead=1)"] and "auto (cross-validated)" in names
    assert draw(figure).count("<polyline") == 4 and draw(figure).count('class="band') == 1
    html = page(
        found
        | {
            "difficulty": {"kind": "verifier", "samples": 4},
            "problems": 9,
            "bins": [],
            "choices": {"4": {"probed": True, "strategies": ["<b>"]}},
        }
    )
    assert html.count(b"<polyline") == 4 and b"&lt;b&gt;" in html and b"<script" not in html
    (tmp_path / "optimal.json").write_text(json.dumps(found))
    assert main(["plot", str(tmp_path), f"--to={tmp_path / 'f.csv'}"]) == 0
    assert main(["plot", str(tmp_path), "--x=n", f"--to={tmp_path / 'f.csv'}"]) == 2
    # Without its sweep nobody knows whether another run solved the same problems.
    large = fake_runs.write(tmp_path / "large", ["greedy"])
    assert main(["plot", str(tmp_path), f"--larger={large}", f"--to={tmp_path / 'f.csv'}"]) == 2
    fake_runs.write(tmp_path / "sweep", ["greedy"])
    assert main(["plot", str(tmp_path), f"--larger={large}", f"--to={tmp_path / 'f.csv'}"]) == 0
    (tmp_path / "optimal.json").write_text("{}")
    assert main(["plot", str(tmp_path), f"--to={tmp_path / 'f.csv'}"]) == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--to=x.pdf"], "unknown kind of file; end it with .png, .svg, .csv"),
        (["--to=x.csv", "--x=money"], "x='money' is unknown; use one of n, tokens, flops"),
        (["--to=x.csv", "--x=flops"], "has no curve against flops"),
        (["--to=/nowhere/x.csv"], "cannot be written"),
        ([], "--to missing"),
    ],
)
def test_command_refuses(
    folder: Path, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plot", str(folder), *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_report_shows_bands_difficulty_and_sharing(folder: Path) -> None:
    outputs = write_outputs(folder)
    page = outputs.report.read_text(encoding="utf-8")
    assert page.count('<polygon class="band') == 8  # four curves against N, four against tokens
    assert "By difficulty" in page and "easiest fifth" in page and "sharing" in page
    bins = outputs.summary["difficulty"]
    assert [part["problems"] for part in bins] == [3] * 5
    shares = [part["pass@1"] for part in bins]
    assert shares == sorted(shares, reverse=True)
    for name, numbers in outputs.summary["strategies"].items():
        assert sum(part["accuracy"][name] for part in bins) / 5 == pytest.approx(numbers["accuracy"])
        assert numbers["sharing_factor"] >= 1
    assert accuracy_vs_flops(outputs.summary) is None  # a run that counted none
    counted = json.loads(json.dumps(outputs.summary))
    for numbers in counted["strategies"].values():
        numbers["policy_flops"] = 1e9
    assert all(make(counted) is not None for make in BY_X.values())


def test_levels_span_the_figure() -> None:
    figure = Figure("N", [Line("a", "hue-0", [2, 8], [0.5, 0.6])], ())
    (_, level) = with_levels(figure, [("big", 0.9)]).lines
    assert list(level.xs) == [2, 8] and list(level.ys) == [0.9, 0.9]
