"""Problems: the three kinds of source, stable ids, and an error that names the row for everything wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wcse.problems import load_problems
from wcse.types import Problem, WcseError


def write_jsonl(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def error_of(spec: str, limit: int | None = None) -> str:
    with pytest.raises(WcseError) as caught:
        load_problems(spec, limit=limit)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_columns_of_gsm8k_math_and_math_500(tmp_path: Path) -> None:
    rows = (
        {"question": "q", "answer": "2 + 3 = 5\n#### 5"},
        {
            "problem": "p",
            "level": "Level 3",
            "type": "Algebra",
            "solution": "So $x = \\boxed{\\frac{1}{2}}$.",
        },
        {"problem": "r", "solution": "... \\boxed{4}", "answer": "4.0", "unique_id": "test/algebra/1.json"},
    )
    gsm8k, math, math_500 = load_problems(write_jsonl(tmp_path / "rows.jsonl", *rows))
    assert (gsm8k.answer, math.answer, math_500.answer) == ("5", "\\frac{1}{2}", "4.0")
    assert gsm8k.meta["solution"].startswith("2 + 3") and math.meta["type"] == "Algebra"
    assert math.meta["solution"].startswith("So") and math_500.id == "test/algebra/1.json"


# reasoning-gym


def test_task_has_stable_ids_and_a_prefix_property() -> None:
    pytest.importorskip("reasoning_gym")
    five = load_problems("gsm_symbolic:size=5,seed=7")
    assert [p.id for p in five] == [f"gsm_symbolic-seed7-{i}" for i in range(5)]
    assert load_problems("gsm_symbolic:size=5,seed=7", limit=2) == five[:2]
    assert all(p.prompt and p.answer for p in five)
    assert "answer_cot" not in five[0].meta  # the worked solution must not travel with the question


def test_task_options_reach_the_task_and_the_seed_counts() -> None:
    pytest.importorskip("reasoning_gym")
    drills = load_problems("chain_sum:size=3,seed=1,min_terms=5,max_terms=5")
    assert all(p.prompt.count("+") + p.prompt.count(" - ") >= 4 for p in drills)
    assert load_problems("chain_sum:size=3")[0].id == "chain_sum-seed0-0"  # never a random seed
    assert load_problems("chain_sum:size=3,seed=2")[0].prompt != load_problems("chain_sum:size=3")[0].prompt


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("gsm_symbolik:size=3", "did you mean 'gsm_symbolic'?"),
        ("nosuch", "known tasks: "),
        ("chain_sum:sizes=3", "unknown option 'sizes' (did you mean 'size'?); known: allow_negation"),
        ("chain_sum:size=0", "size=0 must be a whole number of at least 1"),
        ("chain_sum:size=many", "size=many must be a whole number"),
        ("chain_sum:seed=-1", "seed=-1 must be"),
        ("chain_sum:min_terms=9,max_terms=2", "refused by the task"),
        ("chain_sum:size", "'size' is not key=value"),
        ("chain_sum:size=1,size=2", "'size' is given twice"),
        ("two words", "not understood; give a reasoning-gym task"),
        ("", "not understood"),
        ("x" * 5000 + " ", "not understood"),
        ("nul\x00", "not understood"),
    ],
)
def test_bad_specifications_name_the_fix(spec: str, expected: str) -> None:
    pytest.importorskip("reasoning_gym")
    assert expected in error_of(spec)


def test_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    assert "pip install 'wcse[problems]'" in error_of("gsm_symbolic:size=3")


# files


def test_jsonl_with_each_name_of_the_prompt_column(tmp_path: Path) -> None:
    rows = [
        {"problem": "a?", "answer": "1"},
        {"question": "b?", "answer": 2},
        {"prompt": "c?", "answer": 2.5},
    ]
    problems = load_problems(write_jsonl(tmp_path / "mine.jsonl", *rows))
    assert [(p.id, p.prompt, p.answer) for p in problems] == [
        ("mine-0", "a?", "1"),
        ("mine-1", "b?", "2"),
        ("mine-2", "c?", "2.5"),
    ]


def test_gsm8k_worked_answer_gives_the_part_after_the_mark(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "He pays 2 #### no\nso <<35*2=70>>70.\n#### 70,000 "}
    (problem,) = load_problems(write_jsonl(tmp_path / "gsm8k.jsonl", row))
    assert problem.answer == "70,000"
    assert problem.meta["solution"] == row["answer"]


def test_own_ids_are_kept_and_duplicates_get_an_ordinal(tmp_path: Path) -> None:
    rows = [{"id": i, "problem": "q", "answer": "1"} for i in ("x", "x", "x#2", "x", 7)]
    problems = load_problems(write_jsonl(tmp_path / "p.jsonl", *rows))
    assert [p.id for p in problems] == ["x", "x#2", "x#2#2", "x#3", "7"]


def test_parquet_json_and_jsonl_agree(tmp_path: Path) -> None:
    rows = [{"problem": f"q{i}", "answer": str(i), "level": i, "unique_id": f"u{i}"} for i in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    (tmp_path / "p.json").write_text(json.dumps(rows))
    loaded = [load_problems(write_jsonl(tmp_path / "p.jsonl", *rows))]
    loaded += [load_problems(str(tmp_path / name)) for name in ("p.parquet", "p.json")]
    stripped = [[(p.id, p.prompt, p.answer, p.meta["level"]) for p in problems] for problems in loaded]
    assert stripped[0] == stripped[1] == stripped[2] == [(f"u{i}", f"q{i}", str(i), i) for i in range(3)]


def test_unicode_braces_surrogates_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    text = (
        '\ufeff{"problem": "\u5341 {} \\ud800 \\u0000", "answer": "1"}\n\n  \n{"problem": "b", "answer": "2"}'
    )
    path.write_bytes(text.encode())
    problems = load_problems(str(path))
    assert problems[0].prompt == "\u5341 {} \ud800 \x00"
    assert len(problems) == 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            '{"problem": "q", "solution": "s"}',
            "line 1: no answer column (or it is null); columns present: problem, solution",
        ),
        (
            '{"text": "q", "answer": "s"}',
            "line 1: no problem or question or prompt column; columns present: text, answer",
        ),
        ('{"problem": "q", "answer": "1"}\n{"problem": "q", "answer": null}', "line 2: no answer column"),
        (
            '{"problem": "q", "answer": "1"}\n\n[1]',
            "line 3: a row must be an object with named columns, not list",
        ),
        ('{"problem": "q", "answer": "1"}\n{"problem": ', "line 2: not valid JSON"),
        ('{"problem": "  ", "answer": "1"}', "line 1: problem must be non-empty text"),
        ('{"prompt": [{"role": "user"}], "answer": "1"}', "line 1: prompt must be non-empty text, not list"),
        ('{"problem": "q", "answer": ["1"]}', "line 1: answer must be text or a number, not list ['1']"),
        ('{"problem": "q", "answer": true}', "line 1: answer must be text or a number, not bool True"),
        ('{"problem": "q", "answer": NaN}', "line 1: answer is nan"),
        ('{"problem": "q", "answer": "work ####  "}', "line 1: answer is empty"),
        ("[" * 100_000, "line 1: "),
        ("", "no problems in it"),
    ],
)
def test_bad_rows_name_the_line(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    assert expected in error_of(str(path))


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'{"problem": "\xff"}')
    assert "line 1: not UTF-8 (byte 13)" in error_of(str(tmp_path / "p.jsonl"))
    (tmp_path / "p.json").write_text('{"problem": "q", "answer": "1"}')
    assert "must hold a list of rows" in error_of(str(tmp_path / "p.json"))
    (tmp_path / "p.parquet").write_text("not parquet")
    assert "not a readable Parquet file" in error_of(str(tmp_path / "p.parquet"))
    (tmp_path / "p.txt").write_text("q")
    assert "unknown file type; use .jsonl, .json, .parquet" in error_of(str(tmp_path / "p.txt"))
    assert "is a directory" in error_of(str(tmp_path))
    assert "no such file" in error_of(str(tmp_path / "absent.jsonl"))


def test_limit_keeps_the_first_and_reads_no_further(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"problem": "q", "answer": "1"}\nnot json')
    assert len(load_problems(str(path), limit=1)) == 1
    assert "limit=0: must be at least 1" in error_of(str(path), limit=0)


# Hugging Face datasets


def fake_datasets(monkeypatch: pytest.MonkeyPatch, outcome: object) -> list[tuple[object, ...]]:
    calls: list[tuple[object, ...]] = []

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> object:
        calls.append((name, config, split, revision))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    module = ModuleType("datasets")
    module.__dict__["load_dataset"] = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_datasets(monkeypatch, [{"question": "q", "answer": "#### 4"}])
    assert load_problems("openai/gsm8k:config=main,split=train") == [
        Problem("openai-gsm8k-0", "q", "4", {"source": "openai/gsm8k", "solution": "#### 4"})
    ]
    assert calls == [("openai/gsm8k", "main", "train", None)]


def test_hub_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_datasets(monkeypatch, ConnectionError("no\nroute"))
    assert "could not be loaded: no route; check the id and the network" in error_of("a/b")
    assert "unknown option 'splt' (did you mean 'split'?)" in error_of("a/b:splt=test")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in error_of("a/b")
