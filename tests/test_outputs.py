"""Outputs: derived from the journal alone, with columns that notebooks know and curves that agree with votes."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import sample_runs

from wcse.data.curves import (
    SampleSet,
    accuracy_curves,
    argmax_wins,
    majority_wins,
    subsets,
    weighted_wins,
)
from wcse.data.disk import Disk
from wcse.data.journal import Journal
from wcse.data.outputs import Outputs, write_outputs
from wcse.data.record import NodeRecord, SolutionRecord, SolveRecord
from wcse.data.tables import clean, subset_sizes
from wcse.metrics import best_of_k, pass_at_k, wilson
from wcse.types import Problem, WcseError
from wcse.votes import SELECTORS


def outputs_of(folder: Path, records: list[SolveRecord], **options: object) -> Outputs:
    with Journal.open(folder, sample_runs.header(**options)) as journal:
        for record in records:
            journal.append(record)
    return write_outputs(folder)


# tables


def test_solutions_have_search_and_learns_columns(tmp_path: Path) -> None:
    records = sample_runs.run(problems=2)
    outputs_of(tmp_path, records)
    rows = pq.read_table(tmp_path / "solutions.parquet").to_pylist()
    assert [(row["id"], row["strategy"]) for row in rows] == [record.key for record in records]
    row, record = next((r, s) for r, s in zip(rows, records, strict=True) if s.strategy == "best_of_n")
    assert row["problem"] == record.problem.prompt and row["answer"] == record.problem.answer
    assert len(row["completions"]) == len(row["scores"]) == len(row["completion_tokens"]) == 8
    assert row["completions"][0] == "".join(step.text for step in record.steps((0, 0, 0)))
    assert row["scores"][0] == [step.score for step in record.steps((0, 0, 0))]
    assert row["agg_scores"] == [scores[-1] for scores in row["scores"]]
    assert row["pred"] == row["completions"][int(np.argmax(row["agg_scores"]))]
    assert {f"pred_{name}@{n}" for name in ("weighted", "maj", "naive") for n in (1, 2, 4, 8)} <= row.keys()
    for name, selector in (("weighted", "weighted"), ("maj", "majority"), ("naive", "argmax")):
        assert row[f"pred_{name}@8"] == f"\\boxed{{{record.selectors[selector].answer}}}"
        assert row[f"pred_{name}@1"] == f"\\boxed{{{record.solutions[0].answer}}}"


def test_survivors_of_a_search_are_no_smaller_search(tmp_path: Path) -> None:
    outputs_of(
        tmp_path, [sample_runs.record(strategy="beam_search"), sample_runs.record(strategy="majority")]
    )
    majority, beam = pq.read_table(tmp_path / "solutions.parquet").to_pylist()
    assert beam["pred_weighted@8"] and beam["pred_weighted@4"] is None
    assert majority["pred_maj@4"] and majority["pred_weighted@4"] is None  # no verifier, no weights


def test_nodes_form_the_tree_again(tmp_path: Path) -> None:
    record = sample_runs.record(strategy="dvts")
    outputs_of(tmp_path, [record])
    rows = {row["node_id"]: row for row in pq.read_table(tmp_path / "nodes.parquet").to_pylist()}
    assert sorted(rows) == list(range(1, len(record.nodes) + 1))
    for row in rows.values():
        parent = rows.get(row["parent_id"])
        assert (parent is None) == (row["depth"] == 1)
        assert row["tok_start"] == (parent["tok_end"] if parent else 0)
        assert row["tok_end"] - row["tok_start"] == len(row["token_ids"])
        if parent:
            assert parent["node_id"] < row["node_id"] and parent["depth"] + 1 == row["depth"]
    texts = sorted(row["text"] for row in rows.values())
    assert texts == sorted(node.text for node in record.nodes)


@pytest.mark.parametrize(
    ("n", "sizes"),
    [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16]), (17, [1, 2, 4, 8, 16, 17])],
)
def test_subset_sizes(n: int, sizes: list[int]) -> None:
    assert subset_sizes(n) == sizes


def test_clean_replaces_only_lone_surrogates() -> None:
    assert clean("a\U0001f600\x00\u2028b") == "a\U0001f600\x00\u2028b"
    assert clean("a\ud800b\udfff") == "a\ufffdb\ufffd"
    assert clean(None) is None


def test_poison_rows_reach_every_output(tmp_path: Path) -> None:
    text = "\ud800 </script><!-- {{index}} \x00 \u2028 " + "\n" * 1000
    node = NodeRecord((0,), None, (1,), text, "error", None, None)
    dead = SolutionRecord((0,), None, None, None, False)
    base = sample_runs.record()
    poison = replace(
        base,
        problem=Problem(text, text, text, {"x": text}),
        nodes=(node,),
        solutions=(dead,),
        selectors={},
        answer=None,
        correct=False,
    )
    nothing = {"nodes": (), "solutions": (), "selectors": {}, "answer": None, "correct": None}
    empty = replace(base, problem=Problem("empty", "q"), **nothing)
    outputs = outputs_of(tmp_path, [poison, empty, base])
    assert pq.read_table(tmp_path / "solutions.parquet").num_rows == 3
    numbers = outputs.summary["strategies"]["best_of_n"]
    assert (numbers["problems"], numbers["graded"], numbers["no_answer"]) == (3, 2, 2)


# summary


def test_summary_counts_and_sums(tmp_path: Path) -> None:
    records = sample_runs.run(problems=3)
    outputs = outputs_of(tmp_path, records)
    assert json.loads((tmp_path / "summary.json").read_text()) == outputs.summary
    assert list(outputs.summary["strategies"]) == list(sample_runs.ALL)
    for name, numbers in outputs.summary["strategies"].items():
        mine = [record for record in records if record.strategy == name]
        correct = sum(record.correct is True for record in mine)
        assert numbers["accuracy"] == correct / 3
        assert (numbers["accuracy_low"], numbers["accuracy_high"]) == wilson(correct, 3)
        assert numbers["policy_tokens_computed"] == sum(record.ledger.policy_computed for record in mine)
        assert numbers["prm_tokens_reused"] == sum(record.ledger.prm_reused for record in mine)
        assert numbers["kv_pages_peak"] == 5 and numbers["seconds"] == 1.5
    best = outputs.summary["strategies"]["best_of_n"]
    right = [sum(bool(s.correct) for s in r.solutions) for r in records if r.strategy == "best_of_n"]
    assert best["pass@1"] == pytest.approx(sum(right) / 24)
    assert best["pass@n"] == best["coverage"] == sum(c > 0 for c in right) / 3
    beam = outputs.summary["strategies"]["beam_search"]
    assert beam["pass@1"] is None and beam["coverage"] is not None
    assert set(outputs.summary["curves"]) == {"majority", "best_of_n", "weighted_best_of_n"}


def test_problems_without_gold_are_not_graded(tmp_path: Path) -> None:
    record = sample_runs.record()
    blind = replace(record, problem=replace(record.problem, answer=None), correct=None)
    outputs = outputs_of(tmp_path, [blind])
    numbers = outputs.summary["strategies"]["best_of_n"]
    assert numbers["accuracy"] is None and numbers["accuracy_low"] is None and numbers["graded"] == 0
    assert outputs.summary["curves"] == {}


def test_undecided_counts_as_wrong_and_is_shown(tmp_path: Path) -> None:
    record = replace(sample_runs.record(), correct=None, verdict="undecided")
    numbers = outputs_of(tmp_path, [record]).summary["strategies"]["best_of_n"]
    assert (numbers["accuracy"], numbers["undecided"]) == (0.0, 1)


def test_outputs_are_the_same_bytes_whatever_finished_first(tmp_path: Path) -> None:
    records = sample_runs.run(problems=3)
    shuffled = records[:]
    random.Random(0).shuffle(shuffled)
    names = ("solutions.parquet", "nodes.parquet", "summary.json", "report.html")
    written = []
    for folder, order in ((tmp_path / "a", records), (tmp_path / "b", shuffled)):
        outputs_of(folder, order)
        written.append([(folder / name).read_bytes() for name in names])
    assert written[0] == written[1]
    write_outputs(tmp_path / "a")
    assert [(tmp_path / "a" / name).read_bytes() for name in names] == written[0]


def test_a_run_without_records_has_outputs(tmp_path: Path) -> None:
    outputs = outputs_of(tmp_path, [])
    assert outputs.summary["strategies"] == {} and outputs.report.stat().st_size > 1000


def test_failed_outputs_leave_the_old_ones_and_say_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs_of(tmp_path, sample_runs.run(problems=1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(self: Disk, fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Disk, "fsync", full)
    with pytest.raises(WcseError, match=r"No space left on device; the journal is intact: .*wcse report"):
        write_outputs(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(WcseError, match=r"no journal.tsv in it"):
        write_outputs(tmp_path / "nowhere")


# curves


def messy_record(rng: random.Random, n: int) -> SolveRecord:
    """Samples with unfinished ones, missing answers, equal and broken scores."""
    nodes, solutions = [], []
    for i in range(n):
        finish = "eos" if rng.random() < 0.8 else "path_cap"
        answer_class = rng.choice([None, 0, 1, 2]) if finish == "eos" else None
        agg = rng.choice([None, 0.25, 0.5, 0.5, rng.random()]) if finish == "eos" else None
        agg = 0.125 if finish == "eos" and agg is None else agg
        nodes.append(NodeRecord((i,), None, (1,), "x", finish, 0.0, agg))
        correct = answer_class == 1
        solutions.append(
            SolutionRecord((i,), None if answer_class is None else "x", answer_class, agg, correct)
        )
    return replace(sample_runs.record(), nodes=tuple(nodes), solutions=tuple(solutions))


def test_subset_votes_equal_the_votes_on_that_subset() -> None:
    rng = random.Random(3)
    wins = {"argmax": argmax_wins, "majority": majority_wins, "weighted": weighted_wins}
    for _ in range(60):
        record = messy_record(rng, rng.randrange(1, 7))
        samples, ballots = SampleSet.of(record), record.ballots()
        for size in range(1, samples.n + 1):
            chosen = list(itertools.combinations(range(samples.n), size))
            masks = subsets(samples, size, np.random.default_rng(0))
            assert len(masks) == len(chosen)
            for name, function in wins.items():
                expected = []
                for members in chosen:
                    best = SELECTORS[name]([ballots[i] for i in members])
                    expected.append(best is not None and bool(record.solutions[members[best]].correct))
                assert function(samples, masks).tolist() == expected, (name, size)


def test_curves_meet_the_exact_metrics() -> None:
    rng = random.Random(5)
    scores = [rng.random() for _ in range(6)]
    marks = [rng.random() < 0.5 for _ in range(6)]
    nodes = tuple(NodeRecord((i,), None, (1,), "x", "eos", 0.0, s) for i, s in enumerate(scores))
    solutions = tuple(
        SolutionRecord((i,), str(i), 0 if mark else i + 1, s, mark)
        for i, (s, mark) in enumerate(zip(scores, marks, strict=True))
    )
    samples = SampleSet.of(replace(sample_runs.record(), nodes=nodes, solutions=solutions))
    curves = accuracy_curves([samples], range(1, 7), seed=0)
    for k in range(1, 7):
        assert curves["pass"][k - 1] == pytest.approx(pass_at_k(6, sum(marks), k))
        assert curves["argmax"][k - 1] == pytest.approx(best_of_k(scores, marks, k))


def test_drawn_subsets_are_seeded_and_near_the_exact_value() -> None:
    rng = random.Random(7)
    record = messy_record(rng, 24)
    samples = SampleSet.of(record)
    masks = subsets(samples, 8, np.random.default_rng(1))
    assert masks.shape == (512, 24) and (masks.sum(axis=1) == 8).all()
    assert (masks == subsets(samples, 8, np.random.default_rng(1))).all()
    share = pass_at_k(24, int(samples.correct.sum()), 8)
    drawn = (masks & samples.correct).any(axis=1).mean()
    assert abs(drawn - share) < 4 * math.sqrt(share * (1 - share) / len(masks)) + 1e-9


def test_a_curve_ends_at_the_vote_of_the_whole_run(tmp_path: Path) -> None:
    summary = outputs_of(tmp_path, sample_runs.run(problems=5)).summary
    for name in ("best_of_n", "weighted_best_of_n"):
        for selector in ("majority", "weighted", "argmax"):
            last = summary["curves"][name][selector][-1]
            assert last == pytest.approx(summary["strategies"][name]["selectors"][selector])
