"""Labels by rollouts, and training on them: what is trained is what is read, and it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from wcse import zoo
from wcse.answers import Verdict, extract_answer, is_correct
from wcse.cli import main
from wcse.engine.engine import Engine
from wcse.models.load import load_model
from wcse.reward.families import FAMILIES
from wcse.reward.finetuning import (
    CLASSIFIER,
    Finetuning,
    classifier_logits,
    path_logprobs,
    step_loss,
    train_classifier,
)
from wcse.reward.layout import Layout
from wcse.reward.load import load_prm
from wcse.reward.quality import auc, calibration_error, within_group_auc
from wcse.reward.rollouts import Labelling, label_problems
from wcse.reward.scorer import ImplicitPRM
from wcse.reward.text import score_many
from wcse.reward.training import (
    encode_records,
    features_of,
    read_records,
    split_records,
    stream_layout,
)
from wcse.types import Problem, WcseError

PROBLEMS = [Problem("a", "Calculate 17 + 25.", "42"), Problem("b", "Calculate 3 + 4 + 5.", "12")]
RECORDS: list[dict[str, Any]] = [
    {
        "prompt": f"{n} apples",
        "completions": ["First add 12", "The answer is 19"],
        "labels": [n % 2, 1 - n % 2],
    }
    for n in range(8)
]


def rows(rows_at_once: int, **options: Any) -> list[dict[str, Any]]:
    engine = Engine(load_model("tiny-wc"), max_rows=rows_at_once, num_pages=2048)
    labelling = Labelling(**({"trajectories": 2, "rollouts": 3, "max_tokens": 128, "seed": 3} | options))
    found = list(label_problems(engine, PROBLEMS, labelling, source="tiny-wc"))
    return sorted(found, key=lambda row: (row["problem_id"], row["completions"]))


def test_labels_are_shares_of_right_rollouts_whatever_the_batch() -> None:
    found = rows(64)
    assert found == rows(3)
    assert found
    golds = {problem.prompt: problem.answer for problem in PROBLEMS}
    for row in found:
        assert len(row["completions"]) == len(row["labels"]) == len(row["k"]) == len(row["interval"])
        assert row["k"] == [3] * (len(row["k"]) - 1) + [1]
        assert row["labels"] == [hits / k for hits, k in zip(row["hits"], row["k"], strict=True)]
        answer = extract_answer("\n\n".join(row["completions"]))
        assert row["labels"][-1] == (is_correct(answer, golds[row["prompt"]]) is Verdict.EQUAL)
        assert all(
            low <= label <= high for label, (low, high) in zip(row["labels"], row["interval"], strict=True)
        )


def test_hard_labels_end_at_the_first_error() -> None:
    soft = {tuple(row["completions"]): row for row in rows(64)}
    for row in rows(64, kind="hard"):
        assert all(isinstance(label, bool) for label in row["labels"])
        assert all(row["labels"][:-1])
        whole = next(v for k, v in soft.items() if k[: len(row["hits"])] == tuple(row["completions"]))
        assert whole["hits"][: len(row["hits"])] == row["hits"]
        assert row["complete"] == (len(row["hits"]) == len(whole["hits"]))


def test_what_cannot_be_labelled_is_refused() -> None:
    with pytest.raises(WcseError, match="rollouts=0: give at least 1"):
        Labelling(rollouts=0)
    with pytest.raises(WcseError, match="kind='odd'"):
        Labelling(kind="odd")  # type: ignore[arg-type]
    engine = Engine(load_model("tiny-wc"), num_pages=256)
    with pytest.raises(WcseError, match="problem 'x' has no answer"):
        list(label_problems(engine, [Problem("x", "?")], Labelling()))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("start"))


def test_the_loss_does_not_depend_on_the_parts_of_a_batch(start: Path) -> None:
    layout = Layout(CLASSIFIER, load_model(start).tokenizer)
    encoded, dropped = encode_records(layout, RECORDS, 512)
    assert dropped == 0
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_pretrained(start, num_labels=2, dtype=torch.float32)
    total = sum(len(row.reads) for row in encoded)
    with torch.no_grad():
        whole = step_loss(model, encoded, classifier_logits, 0, total)
        parts = sum(step_loss(model, [row], classifier_logits, 0, total) for row in encoded)
    torch.testing.assert_close(parts, whole)


def test_a_classifier_learns_eight_rows_and_is_read_as_it_was_trained(start: Path, tmp_path: Path) -> None:
    layout = Layout(CLASSIFIER, load_model(start).tokenizer)
    encoded, _ = encode_records(layout, RECORDS, 512)
    settings = Finetuning(epochs=60, lr=3e-3, batch=8, warmup=0.1)
    train_classifier(start, encoded, layout, settings, tmp_path)
    prm = load_prm(str(tmp_path), kv_memory=0.05)
    assert (prm.layout.family.name, prm.default_agg) == ("token_classification", "last")
    scores = torch.tensor(
        [s for row in score_many(prm, [(r["prompt"], r["completions"]) for r in RECORDS]) for s in row]
    )
    labels = torch.tensor([float(label) for record in RECORDS for label in record["labels"]])
    assert auc(scores, labels) == 1.0
    model = AutoModelForTokenClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        for row, mine in zip(encoded, scores.view(-1, 2), strict=True):
            expected = model(torch.tensor([row.ids])).logits[0, row.reads].softmax(-1)[:, 1]
            torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("lora", [0, 8])
def test_an_implicit_model_learns_eight_rows_and_is_read_as_it_was_trained(
    start: Path, tmp_path: Path, lora: int
) -> None:
    labels = tmp_path / "labels.jsonl"
    labels.write_text("\n".join(map(json.dumps, RECORDS)))
    out = tmp_path / "prm"
    command = ["prm", "train", str(labels), "--kind", "implicit", "--model", str(start), "--out", str(out)]
    assert main(command) == 2  # no reference
    options = ["--reference", str(start), "--beta", "0.5", "--bias", "0.2", "--epochs", "60", "--lr", "3e-3"]
    assert main([*command, *options, "--batch", "8", "--lora-rank", str(lora)]) == 0
    prm = load_prm(str(out), kv_memory=0.05)
    assert isinstance(prm, ImplicitPRM)
    assert (prm.layout.family.name, prm.beta, prm.bias) == ("implicit", 0.5, 0.2)
    found = list(score_many(prm, [(r["prompt"], r["completions"]) for r in RECORDS]))
    taught, _ = split_records(RECORDS)
    places = [i for i, record in enumerate(RECORDS) if record in taught]
    scores = torch.tensor([score for i in places for score in found[i]])
    assert auc(scores, torch.tensor([float(x) for i in places for x in RECORDS[i]["labels"]])) == 1.0
    encoded, _ = encode_records(Layout(FAMILIES["implicit"], prm.layout.tokenizer), RECORDS, 512)
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (out, start)]
    with torch.no_grad():
        for row, mine in zip(encoded, found, strict=True):
            ids = torch.tensor([row.ids])
            ours, theirs = (path_logprobs(model, [row], ids, torch.ones_like(ids)) for model in models)
            expected = torch.sigmoid(0.2 + 0.5 * (ours - theirs))
            torch.testing.assert_close(torch.tensor(mine), expected, atol=1e-4, rtol=0)


def test_a_start_that_is_implicit_keeps_its_reference(tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    rows = [
        {
            "prompt": "What is 2 + 3?",
            "completions": ["2 + 3 = 5.", "The answer is \\boxed{5}."],
            "labels": [1, 1],
        }
    ]
    labels.write_text(json.dumps(rows[0]))
    out = tmp_path / "prm"
    command = ["prm", "train", str(labels), "--kind", "implicit", "--model", "tiny-wc-prm", "--bf16"]
    assert main([*command, "--out", str(out)]) == 0
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (zoo.path("tiny-wc-prm"), out))
    assert {key: new["wcse"][key] for key in old["wcse"]} == old["wcse"]
    assert new["dtype"] == "float16"


def test_lora_trains_a_classifier_of_the_same_layout(start: Path, tmp_path: Path) -> None:
    layout = Layout(CLASSIFIER, load_model(start).tokenizer)
    encoded, _ = encode_records(layout, RECORDS, 512)
    train_classifier(start, encoded, layout, Finetuning(epochs=60, lr=1e-2, batch=8, lora_rank=4), tmp_path)
    prm = load_prm(str(tmp_path), kv_memory=0.05)
    scores = [s for row in score_many(prm, [(r["prompt"], r["completions"]) for r in RECORDS]) for s in row]
    labels = torch.tensor([float(label) for record in RECORDS for label in record["labels"]])
    assert auc(torch.tensor(scores), labels) > 0.9


def test_rows_are_cut_by_whole_steps_and_counted(start: Path) -> None:
    layout = Layout(CLASSIFIER, load_model(start).tokenizer)
    (full,), _ = encode_records(layout, RECORDS[:1], 512)
    (cut,), _ = encode_records(layout, RECORDS[:1], len(full.ids) - 1)
    assert (len(full.reads), len(cut.reads)) == (2, 1)
    assert cut.ids == full.ids[: cut.reads[0] + 1]
    nothing = {"prompt": "p", "completions": ["a", "b", "c"], "labels": [None, -100, float("nan")]}
    assert encode_records(layout, [nothing], 512) == ([], 1)
    float_label = {"prompt": "p", "completions": ["a", "b"], "labels": [0.75, None]}
    (row,), _ = encode_records(layout, [float_label], 512)
    assert (row.labels, len(row.reads)) == ([0.75], 1)


def test_features_are_the_states_that_a_search_reads() -> None:
    model = load_model("tiny-wc")
    layout = stream_layout(model.tokenizer, "\n\n")
    records = [
        {"prompt": p.prompt, "completions": ["17 + 25 = 42.", "So \\boxed{42}."], "labels": [1, 1]}
        for p in PROBLEMS
    ]
    encoded, _ = encode_records(layout, records, 512)
    assert all(row.ids[-1] in model.eos_ids for row in encoded)
    together = features_of(model, encoded)
    torch.testing.assert_close(together, torch.cat([features_of(model, [row]) for row in encoded]))
    assert together.shape == (4, model.spec.dim)


def test_label_and_train_from_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = tmp_path / "p.jsonl"
    problems.write_text(
        "\n".join(
            json.dumps({"problem": f"Calculate {a} + {a + 3}.", "answer": str(2 * a + 3)})
            for a in range(2, 14)
        )
    )
    labels, head = tmp_path / "labels.jsonl", tmp_path / "head"
    command = ["prm", "label", "--policy", "tiny-wc", "--problems", str(problems), "--out", str(labels)]
    assert main([*command, "--trajectories", "2", "--rollouts", "2", "--max-tokens", "64"]) == 0
    assert "12 problems" in capsys.readouterr().out
    assert main(["prm", "train", str(labels), "--model", "tiny-wc", "--out", str(head), "--epochs", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kind"] == "head"
    assert (head / "prm_head.safetensors").is_file()
    assert main(["prm", "train", str(labels), "--model", "tiny-wc", "--out", str(head), "--kind", "x"]) == 2
    labels.write_text(json.dumps({"prompt": "p", "completions": ["a"], "labels": []}))
    assert main(["prm", "train", str(labels), "--model", "tiny-wc", "--out", str(head)]) == 2
    assert "as many labels as completions" in capsys.readouterr().err


def test_problems_do_not_fall_on_both_sides() -> None:
    records = [{"prompt": str(n // 3), "completions": [], "labels": []} for n in range(300)]
    train, held = split_records(records)
    assert {r["prompt"] for r in train}.isdisjoint(r["prompt"] for r in held)
    assert 0.02 < len(held) / len(records) < 0.25


def test_parquet_rows_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "x.parquet")
    assert read_records(tmp_path / "x.parquet") == RECORDS


def test_auc_counts_ties_as_half() -> None:
    assert auc(torch.tensor([0.9, 0.1]), torch.tensor([1.0, 0.0])) == 1.0
    assert auc(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])) == 0.5
    assert (
        calibration_error(torch.tensor([0.25, 0.25, 0.25, 0.25]), torch.tensor([0.0, 1.0, 0.0, 0.0])) == 0.0
    )


def test_within_group_auc_compares_members_of_one_group_only() -> None:
    groups, labels = ["easy", "easy", "hard"], torch.tensor([1.0, 0.0, 0.0])
    assert within_group_auc(groups, torch.tensor([0.9, 0.8, 0.95]), labels) == 1.0
    assert within_group_auc(groups, torch.tensor([0.8, 0.9, 0.0]), labels) == 0.0
