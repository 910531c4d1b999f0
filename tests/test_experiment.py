"""The experiment runs end to end on the embedded model, goes on where it stopped, and its tables add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wcse import cli
from wcse.train import experiment
from wcse.train.evaluate import Score
from wcse.train.paper import PaperConfig, curve_cells, matrix_cells
from wcse.train.prune import prune
from wcse.train.tables import Outcome, curve_table, matrix_table
from wcse.types import WcseError


def save(path: Path, numbers: range) -> Path:
    rows = ({"problem": f"Calculate {n} + {n + 3}.", "answer": str(2 * n + 3)} for n in numbers)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {
        "wc": "tiny-wc",
        "se": "tiny-wc",
        "problems": save(tmp_path / "train.jsonl", range(10, 16)),
        "validation": save(tmp_path / "validation.jsonl", range(30, 32)),
        "test": save(tmp_path / "test.jsonl", range(40, 43)),
        "match": "samples",
        "budgets": "2",
        "steps": "2",
        "learning-rate": "0.0001",
        "seeds": 1,
        "checkpoints": 1,
        "samples": 1,
        "max-tokens": 48,
        "step-by-step": "no",
        "threads": 1,
        "out": tmp_path / "out",
    }


def main(options: dict[str, Any]) -> int:
    return cli.main(["experiment", "wcse-paper", *(f"--{name}={value}" for name, value in options.items())])


def test_it_runs_goes_on_and_prints_its_tables(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, trained = experiment.train, []

    def counted(config: Any) -> Any:
        trained.append(config)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return real(config)

    monkeypatch.setattr(experiment, "train", counted)
    assert main(options) == 130
    assert main(options) == 0  # the two finished cells are not trained again
    assert len(trained) == 5
    first = capsys.readouterr().out
    for part in ("## Data, 2 samples", "match held", "| self-improvement | 2 |", "| weak-to-strong | 2 |"):
        assert part in first
    assert main(options) == 0 and len(trained) == 5
    assert capsys.readouterr().out == first
    folder = Path(options["out"])
    assert len(json.loads((folder / "results.json").read_text())["matrix"]) == 2
    assert not [path for path in (folder / "cells").iterdir() if path.is_dir()]
    assert main(options | {"steps": "3"}) == 2
    assert "holds another experiment (steps differs)" in capsys.readouterr().err


def test_rates_are_chosen_once_whatever_the_workers(options: dict[str, Any], tmp_path: Path) -> None:
    options |= {"learning-rate": "0.0001,0.01", "seeds": 2, "distil": "tiny-wc", "distil-layers": "0,5"}
    found = []
    for workers in (1, 2):
        out = tmp_path / f"workers-{workers}"
        assert main(options | {"out": out, "workers": workers}) == 0
        results = json.loads((out / "results.json").read_text())
        assert [row["setup"] for row in results["matrix"]] == [
            "distillation",
            "self-improvement",
            "weak-to-strong",
        ]
        for first, second in results["validation"].values():
            rates = [look["learning_rate"] for look in first]
            assert rates == [0.0001, 0.01]  # the first seed tries all
            accuracies = [look["accuracy"] for look in first]
            assert [look["learning_rate"] for look in second] == [rates[accuracies.index(max(accuracies))]]
        (run,) = results["runs"]
        assert run["cells"] == 12 and run["workers"] == workers and run["cpu_seconds"] > 0
        found.append((results["matrix"], results["validation"]))
    assert found[0] == found[1]


def test_a_student_of_some_layers(tmp_path: Path) -> None:
    prune("tiny-wc", [0, 5], tmp_path / "student")
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2 and (tmp_path / "student" / "tokenizer.json").is_file()
    with pytest.raises(WcseError, match=r"layers=\[6\]: tiny-wc has the layers 0 \.\. 5"):
        prune("tiny-wc", [6], tmp_path / "other")


def test_leaking_splits_and_unclear_options_are_refused(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options | {"test": options["problems"]}) == 2
    assert "test: 6 of its problems are in problems, too" in capsys.readouterr().err
    assert main(options | {"test": options["validation"]}) == 2
    assert "test: 2 of its problems are in validation, too" in capsys.readouterr().err
    assert main(options | {"budgets": "1,2"}) == 2
    assert "give one number of steps a budget" in capsys.readouterr().err
    assert main(options | {"step-by-step": "maybe"}) == 2
    assert "'maybe': give yes or no" in capsys.readouterr().err


def test_changed_inputs_are_another_experiment(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 0
    save(options["test"], range(50, 53))
    assert main(options) == 2
    assert "holds another experiment (test differs)" in capsys.readouterr().err


def score(*right: bool) -> Score:
    return Score(sum(right) / len(right), 0.0, 1.0, right, {}, {4: 0.5})


def outcome(*right: bool, rate: float = 0.1) -> Outcome:
    return Outcome(score(*right), [{"learning_rate": rate, "accuracy": 0.5}], 0)


def test_tables_average_seeds_and_pair_problems() -> None:
    config = PaperConfig.parse({"wc": "w", "se": "s", "out": "o", "budgets": (3,), "steps": (1,), "seeds": 2})
    keys = {cell.key for cell in matrix_cells(config)}
    assert len(matrix_cells(config)) == 8 and {cell.config.max_steps for cell in matrix_cells(config)} == {1}
    scores = {key: [outcome(True, False), outcome(True, True)] for key in keys}
    scores["matrix", "self-improvement", "se", "3"] = [outcome(False, False), outcome(True, False, rate=0.2)]
    bases = {"self-improvement": score(True, False), "weak-to-strong": score(True, True)}
    first, second = matrix_table(config, bases, scores)
    assert (first["setup"], first["base"], first["wc"], first["se"]) == ("self-improvement", 0.5, 0.75, 0.25)
    assert (
        first["wc_error"] == pytest.approx(0.25)
        and first["interval"][0] <= 0.5 <= first["interval"][1]
        and (first["wc_rates"], first["se_rates"]) == ([0.1], [0.1, 0.2])
        and first["wc_maj"] == {4: 0.5}
    )
    assert second["difference"] == 0 and second["base"] == 1
    assert set(PaperConfig.parse({"wc": "w", "se": "s", "out": "o", "distil": "d"}).students()) == {
        "distillation",
        "self-improvement",
        "weak-to-strong",
    }


def test_the_curve_compares_objectives_at_each_share() -> None:
    config = PaperConfig.parse({"wc": "w", "se": "s", "out": "o", "seeds": 1})
    cells = curve_cells(config)
    assert [cell.config.share for cell in cells] == [0.125, 0.25, 0.5, 1.0] * 2
    assert {cell.config.objective for cell in cells} == {"label", "step_by_step"}
    scores = {cell.key: [outcome(cell.config.objective == "label", True)] for cell in cells}
    rows = curve_table(scores)
    assert [row["share"] for row in rows] == [0.125, 0.25, 0.5, 1.0]
    assert all(row["difference"] == -0.5 and row["label_error"] is None for row in rows)
