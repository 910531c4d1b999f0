"""ProcessBench: predictions, F1 on hand-made cases, files, thresholds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wcse.cli import main
from wcse.reward.load import load_prm
from wcse.reward.processbench import ALL_CORRECT, Case, best_threshold, evaluate, first_error, read_cases
from wcse.reward.text import score_texts
from wcse.types import WcseError

ROWS = [
    {
        "id": "gsm8k-0",
        "problem": "What is 2 + 3 + 4?",
        "steps": ["2 + 3 = 5.", "5 + 4 = 8.", "So 8."],
        "label": 1,
    },
    {"id": "gsm8k-1", "problem": "What is 2 + 3?", "steps": ["2 + 3 = 5."], "label": -1},
    {"id": "gsm8k-2", "problem": "What is 2 + 3?", "steps": ["2 + 3 = 6.", "So 6."], "label": 0},
]


def case(label: int, steps: int = 3) -> Case:
    return Case("", "p", ("s",) * steps, label)


def test_predictions_on_hand_made_cases() -> None:
    cases = [case(-1), case(0), case(2), case(1), case(1)]
    scores = [[0.9, 0.5, 0.8], [0.1, 0.9, 0.2], [0.9, 0.9, 0.4], [0.2, 0.1, 0.9], [0.9, 0.9, 0.1]]
    assert [first_error(row, 0.5) for row in scores] == [
        ALL_CORRECT,
        0,
        2,
        0,
        2,
    ]  # right, right, right, early, late
    result = evaluate(cases, scores, 0.5)
    assert (result.wrong, result.right, result.acc_error, result.acc_correct) == (4, 1, 0.5, 1.0)
    assert result.f1 == pytest.approx(2 / 3)
    assert evaluate(cases, scores, 2.0).f1 == 0.0
    with pytest.raises(WcseError, match="F1 needs both"):
        evaluate(cases[:1], scores[:1], 0.5)


def test_the_threshold_with_the_best_f1() -> None:
    cases = [case(-1, 2), case(1, 2)]
    scores = [[-3.0, -2.0], [-1.0, -7.0]]
    assert best_threshold(cases, scores) == -5.0
    assert evaluate(cases, scores, -5.0).f1 == 1.0


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"gsm8k{suffix}"
    if suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_text(json.dumps(ROWS) if suffix == ".json" else "\n".join(map(json.dumps, ROWS)) + "\n")
    assert [(c.id, c.label, len(c.steps)) for c in read_cases(path)] == [
        ("gsm8k-0", 1, 3),
        ("gsm8k-1", -1, 1),
        ("gsm8k-2", 0, 2),
    ]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"problem": "p", "steps": ["a"]}, "row 1: needs the columns problem, steps and label"),
        ({"problem": "p", "steps": ["a", " "], "label": 0}, "none of them blank"),
        (
            {"problem": "p", "steps": ["a"], "label": 1},
            "label=1 must be -1 or the index of one of the 1 steps",
        ),
    ],
)
def test_rows_that_are_no_cases_are_refused(tmp_path: Path, row: dict[str, object], complaint: str) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    with pytest.raises(WcseError, match=complaint):
        read_cases(tmp_path / "x.jsonl")


def test_eval_prints_f1_and_writes_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / f"{name}.jsonl" for name in ("gsm8k", "math")]
    for file in files:
        file.write_text("\n".join(map(json.dumps, ROWS)))
    out = tmp_path / "scores.jsonl"
    command = ["prm", "eval", *map(str, files), "--prm", "tiny-wc-prm", "--out", str(out), "--tune", "gsm8k"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "chosen on gsm8k" in shown
    assert "mean of subsets" in shown
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [len(row["scores"]) for row in found] == [3, 1, 2] * 2
    prm = load_prm("tiny-wc-prm", kv_memory=0.1)
    assert [found[0]["scores"]] == score_texts(prm, str(ROWS[0]["problem"]), [ROWS[0]["steps"]])  # type: ignore[list-item]
    assert main([*command[:4], "--prm", "tiny-wc-prm", "--tune", "olympiad"]) == 2
    assert "no such subset" in capsys.readouterr().err


def test_check_shows_what_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prm", "check", "tiny-wc-prm"]) == 0
    shown = capsys.readouterr().out
    assert "3 steps, 3 scores" in shown
    assert shown.splitlines()[-1] == "pass"
    (tmp_path / "x.jsonl").write_text(json.dumps(ROWS[0]))
    assert main(["prm", "check", "tiny-wc-prm", "--file", str(tmp_path / "x.jsonl")]) == 0
    (tmp_path / "x.jsonl").write_text("[]")
    assert main(["prm", "check", "tiny-wc-prm", "--file", str(tmp_path / "x.jsonl")]) == 2
