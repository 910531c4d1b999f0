"""Training files: their columns, their identity, their seals; what a changed option leaves and replaces."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import synth_runs

from wcse.data.disk import Disk
from wcse.synth.exports import FORMATS, rationale_of
from wcse.synth.outputs import Derived, read_synth, write_synth
from wcse.synth.recipe import EXPORTS, SynthRecipe
from wcse.synth.record import Failure, SynthRecord, by_problem
from wcse.synth.run import synthesize
from wcse.synth.shards import Shards
from wcse.synth.steps import Reasoning
from wcse.types import Problem, WcseError

ALL = {"export": EXPORTS}


def derive(folder: Path, recipe: SynthRecipe, todo: list[Problem] | None = None, **options: Any) -> Derived:
    todo = todo or synth_runs.problems(12)
    with synth_runs.open_journal(folder, recipe, todo) as journal:
        totals, balances = synthesize(
            recipe, todo, journal, synth_runs.FakeExecutor(recipe), synth_runs.SIZES
        )
    return write_synth(folder, recipe, totals, balances, synth_runs.SIZES, **options)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = pq.read_table(folder / "data" / f"{name}-00000.parquet").to_pylist()
    lines = [json.loads(line) for line in (folder / "data" / f"{name}-00000.jsonl").open(encoding="utf-8")]
    assert table == lines
    return table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    derive(path, synth_runs.recipe(**ALL))
    return path


def test_every_format_is_known_and_written(folder: Path) -> None:
    assert set(FORMATS) == set(EXPORTS)
    for name in EXPORTS:
        found = rows(folder, name)
        assert found and len({row["id"] for row in found}) == len(found), name


def test_contents_of_the_formats(folder: Path) -> None:
    answers = {p.id: p.answer for p in synth_runs.problems(12)}
    for row in rows(folder, "sft"):
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        assert f"\\boxed{{{answers[row['problem_id']]}}}" in row["messages"][-1]["content"]
    for row in rows(folder, "dpo"):
        gold = f"\\boxed{{{answers[row['problem_id']]}}}"
        assert gold in row["chosen"][0]["content"] and gold not in row["rejected"][0]["content"]
    for row in rows(folder, "kto"):
        assert row["label"] == (f"\\boxed{{{answers[row['problem_id']]}}}" in row["completion"][0]["content"])
    for row in rows(folder, "prm"):
        assert len(row["labels"]) == len(row["completions"]) == 2
        right = answers[row["problem_id"]] in row["completions"][-1]
        assert row["labels"] == [right, right]
    assert [row["answer"] for row in rows(folder, "grpo")] == list(answers.values())
    for row in rows(folder, "rationale"):
        assert row["label"] == answers[row["problem_id"]] and "boxed" not in row["rationale"]
    assert {row["sampler"] for row in rows(folder, "prompt_completion")} == {"wc", "se"}


def test_a_rationale_of_one_step_is_the_step() -> None:
    assert rationale_of(("a\n\n", "b\n\n", "c")) == "a\n\nb" and rationale_of(("only",)) == "only"


def test_the_same_run_gives_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    recipe, todo = synth_runs.recipe(**ALL), synth_runs.problems(12)
    first = derive(tmp_path / "a", recipe)
    with synth_runs.open_journal(tmp_path / "b", recipe, todo) as journal:
        shuffled = synth_runs.FakeExecutor(recipe, order=7)
        totals, balances = synthesize(recipe, todo, journal, shuffled, synth_runs.SIZES)
    second = write_synth(tmp_path / "b", recipe, totals, balances, synth_runs.SIZES)
    assert first.digest == second.digest and first.measures == second.measures
    for name in ("manifest.json", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_other_filters_and_formats_are_derived_from_the_same_samples(tmp_path: Path) -> None:
    derive(tmp_path, synth_runs.recipe(export=["sft"], rows_per_shard=10))
    before = (tmp_path / "journal.tsv").read_bytes()
    assert len(list((tmp_path / "data").glob("sft-*.parquet"))) > 2
    again = derive(
        tmp_path, synth_runs.recipe(export=["sft"], filters={"answer": "none", "max_per_problem": 1})
    )
    assert (tmp_path / "journal.tsv").read_bytes() == before
    assert [path.name for path in sorted((tmp_path / "data").iterdir())] == [
        "sft-00000.jsonl",
        "sft-00000.parquet",
    ]
    assert again.measures["exports"] == {"sft": 24}


def test_failures_are_rows_with_a_kind_and_leave_the_measures(tmp_path: Path) -> None:
    recipe, todo = synth_runs.recipe(), synth_runs.problems(8)
    bad = Problem("bad", "\ud800 broken \udfff", "1")

    class Executor(synth_runs.FakeExecutor):
        def run(self, tasks: Any, on_record: Any) -> None:
            for unit, problem in [task for task in tasks if task[1].id == "bad"]:
                on_record(SynthRecord(unit, problem, failure=Failure("prompt", "surrogates")))
            super().run([task for task in tasks if task[1].id != "bad"], on_record)

    everything = [*todo, bad]
    with synth_runs.open_journal(tmp_path, recipe, everything) as journal:
        totals, balances = synthesize(recipe, everything, journal, Executor(recipe), synth_runs.SIZES)
    derived = write_synth(
        tmp_path, recipe, totals, balances, synth_runs.SIZES, bad_rows=["x.jsonl line 3: not valid JSON"]
    )
    assert totals.failures == 1  # the weak sampler spends nothing on what the reference cannot do
    assert derived.measures["errors"] == {"bad_row": 1, "prompt": 1} and derived.measures["problems"] == 8
    lines = [json.loads(line) for line in (tmp_path / "errors.jsonl").open()]
    assert lines[0]["message"] == "x.jsonl line 3: not valid JSON"
    assert (lines[1]["kind"], lines[1]["problem"], lines[1]["sampler"]) == ("prompt", "bad", "se")
    groups = {group.problem.id: group for group in by_problem(read_synth(tmp_path))}
    assert groups["bad"].failures and groups["bad"].problem == bad


def test_the_card_says_what_it_is(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    for part in (
        "| se | `strong` | 300 | not stated |",
        "match held: wc",
        "config_name: dpo",
        "False positives",
    ):
        assert part in card


def test_the_report_shows_both_curves_and_every_table(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 2 and "samples of the reference" in text and "<script" not in text
    assert "unsafe-inline" not in text and "style-src 'sha256-" in text
    for part in ("match held: wc", "coverage</th>", "At equal samples", "called wrong"):
        assert part in text


def test_a_models_verdicts_are_a_judge_of_their_own(tmp_path: Path) -> None:
    labels = {("p0", "se", 0, index): Reasoning.WRONG for index in range(3)}
    derived = derive(tmp_path, synth_runs.recipe(), judged=labels)
    rate = derived.measures["samplers"]["se"]["false_positives"]["model"]
    assert rate["rate"] == 1.0 and 0 < rate["judged"] <= 3 and rate["unknown"] > 0


class _Full(Disk):
    def __init__(self, at: int) -> None:
        self.left = at

    def fsync(self, fd: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_whole_shards_only(tmp_path: Path) -> None:
    schema = FORMATS["prompt_completion"].schema
    row = {"id": "1", "problem_id": "p", "sampler": "wc", "prompt": "a", "completion": "b"}
    shards = Shards(tmp_path, "x", schema, 2, _Full(4))  # a file is one sync
    with pytest.raises(OSError, match="No space"):
        for _ in range(9):
            shards.add(row)
    assert {path.name for path in tmp_path.iterdir()} <= {
        f"x-0000{i}.{s}" for i in (0, 1) for s in ("parquet", "jsonl")
    }
    for path in tmp_path.glob("*.parquet"):
        assert pq.read_table(path).num_rows == 2


def test_an_unwritable_output_is_one_line_and_says_how_to_go_on(tmp_path: Path) -> None:
    recipe = synth_runs.recipe()
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(WcseError, match=r"the outputs cannot be written: .* the journal is intact"):
        derive(tmp_path, recipe)
