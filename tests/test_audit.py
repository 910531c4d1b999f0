"""The audit: style apart from correctness, verdicts that follow from the numbers, the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from wcse import cli
from wcse.audit import run
from wcse.audit.broad import _marks
from wcse.audit.style import Style, likeness
from wcse.audit.verdict import Answers, Difference, audit_student, difference, gap_closed, scaling, verdict
from wcse.types import WcseError

UP, DOWN, NONE = Difference(0.2, 0.1, 0.3), Difference(-0.2, -0.3, -0.1), Difference(0.0, -0.1, 0.1)


def answers(right: int, n: int = 100, text: str = "It is 5.") -> Answers:
    return Answers(tuple(index < right for index in range(n)), (text,) * n)


def test_style_ignores_the_numbers() -> None:
    assert likeness(["We add 2 + 3 = 5."], ["We add 7 + 8 = 16.5."]) == pytest.approx(1.0)
    assert likeness(["We add 2 + 3 = 5."], ["Nobody knows"]) < 0.2
    assert likeness([""], ["a"]) < 1 and likeness(["a b"], ["b a"]) < 1
    style = Style.of(["a = b\n\nso \\boxed{1}", "no"])
    assert (style.words, style.steps, style.boxed, style.equations) == (3.0, 1.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("home", "away", "style", "start"),
    [
        (UP, [UP], 0.0, "Gained capability"),
        (
            UP,
            [NONE],
            0.5,
            "Learned the task: better in its domain. Elsewhere nothing is shown. Its style moved",
        ),
        (UP, [], 0.0, "Learned the task: better in its domain. No held-out set was given"),
        (UP, [UP, DOWN], 0.0, "Lost capability"),
        (NONE, [NONE], 0.5, "Imitates"),
        (NONE, [NONE], 0.0, "Nothing shown"),
        (DOWN, [NONE], 0.0, "Lost ground"),
        (DOWN, [UP], 0.0, "Lost ground"),
    ],
)
def test_the_verdict_follows_from_the_numbers(
    home: Difference, away: list[Difference], style: float, start: str
) -> None:
    assert verdict(home, away, style).startswith(start)


def test_the_gap_is_undefined_unless_the_teacher_is_better() -> None:
    assert gap_closed(answers(50), answers(40), answers(60)) == pytest.approx(0.5)
    assert gap_closed(answers(50), answers(40), answers(40)) is None
    with pytest.raises(WcseError, match="both must answer the same problems"):
        difference(answers(5, 10), answers(5, 11))


def test_an_imitator_is_found_out() -> None:
    base = {"in_domain": answers(40, text="five"), "logic": answers(30, text="five")}
    student = {"in_domain": answers(41, text="We add 2 + 3."), "logic": answers(30, text="We add.")}
    teacher = {"in_domain": answers(80, text="We add 4 + 5."), "logic": answers(70, text="We add.")}
    report = audit_student(base, student, teacher)
    assert report["verdict"].startswith("Imitates") and report["sets"]["logic"]["gap_closed"] == 0
    assert report["style"]["likeness_after"] > 0.99 > report["style"]["likeness_before"]
    rows = scaling([("1k", report), ("2k", report)])
    assert [row["student"] for row in rows] == ["1k", "2k"] and rows[0]["in_domain"] == 0.41


def test_marks_of_lm_eval_become_answers() -> None:
    samples = [
        {"doc_id": i, "filter": name, "acc": float(i > 0)} for name in ("none", "vote") for i in (1, 0)
    ]
    assert _marks("t", samples).right == (False, True)
    with pytest.raises(WcseError, match="tasks=t: has none of the marks exact_match"):
        _marks("t", [{"doc_id": 0, "bleu": 0.3}])


def test_lm_evals_tasks_are_asked_with_the_audits_options(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def broad(model: str, tasks: Sequence[str], **options: Any) -> dict[str, Answers]:
        asked.append(options)
        return {name: answers(5, 10) for name in tasks}

    monkeypatch.setattr(run, "task_answers", broad)
    monkeypatch.setattr(run, "load_problems", lambda *_, **__: [])
    monkeypatch.setattr(run, "answers", lambda *_, **__: answers(5, 10))
    run.run_audit("b", {"s": "s"}, "t", "home", {}, tasks=("gsm8k",), limit=10, max_tokens=48, threads=1)
    assert asked == [{"limit": 10, "include_path": None, "max_tokens": 48, "threads": 1}] * 3


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, numbers in (("home", range(3)), ("away", range(3, 6))):
        rows = ({"problem": f"Calculate {n} + 4.", "answer": str(n + 4)} for n in numbers)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [
        "audit",
        "--base=tiny-wc",
        "--teacher=tiny-wc",
        f"--in-domain={tmp_path / 'home.jsonl'}",
        "--quiet",
    ]
    held_out = f"--held-out=away={tmp_path / 'away.jsonl'}"
    out = tmp_path / "audit.json"
    arguments = [
        "--student=a=tiny-wc",
        "--student=b=tiny-wc",
        held_out,
        "--max-tokens=48",
        "--threads=1",
        f"--out={out}",
    ]
    assert cli.main([*given, *arguments]) == 0
    text = capsys.readouterr().out
    assert text.count("Verdict: Nothing shown") == 2 and "## Scaling" in text and "| away | 3 |" in text
    assert set(json.loads(out.read_text())["students"]) == {"a", "b"}
    for wrong, message in (
        (["--student=a=tiny-wc", "--student=a=tiny-wc"], "'a' is given twice"),
        (["--student=tiny-wc", f"--held-out=in_domain={tmp_path}"], "this name is taken"),
        ([], "--student missing"),
    ):
        assert cli.main([*given, *wrong]) == 2
        assert message in capsys.readouterr().err
