"""Fine-tuning on tiny random models: it learns, masks, weighs, selects, and leaves a folder the engine can load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from wcse import cli
from wcse.train.config import TrainConfig
from wcse.train.evaluate import evaluate
from wcse.train.rows import Item, load_items, read_rows, share_of
from wcse.train.tasks import IGNORED, batch_losses, collate_causal, collate_seq2seq, task_weights
from wcse.train.train import REPORT, load_student, train
from wcse.train.trainers import total_steps
from wcse.types import Problem, WcseError


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("student"), num_hidden_layers=1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = []
    for index in range(8):
        question, answer = f"What is {index} + 1?", str(index + 1)
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"\\boxed{{{answer}}}"},
        ]
        row = {"problem_id": f"p{index}", "messages": turns, "input": question, "label": answer}
        rows.append(row | {"rationale": f"Add 1 to {index} and get {answer}."})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(student: Path, data: Path, **options: Any) -> TrainConfig:
    given = {"model": str(student), "data": str(data), "out": str(data.parent / "out"), "threads": 1}
    return TrainConfig.parse(given | options)


def test_it_learns_and_the_engine_loads_what_it_leaves(student: Path, data: Path) -> None:
    reports: list[Any] = []
    result = train(config(student, data, max_steps=60, batch_size=8, learning_rate=3e-3), reports.append)
    assert len(reports) == 60 and reports[-1].losses["sft"] < 0.05 * reports[0].losses["sft"]
    problems = [Problem(f"p{i}", f"What is {i} + 1?", str(i + 1)) for i in range(8)]
    score = evaluate(result.folder, problems, max_tokens=24, samples=4, threads=1)
    assert score.greedy >= 0.75 and score.right.count(True) == round(score.greedy * 8)
    assert score.low < score.greedy and set(score.maj_at) == {1, 4}
    facts = json.loads((result.folder / REPORT).read_text())
    assert facts["config"]["max_steps"] == 60 and len(facts["checkpoints"]) == 5
    assert not result.folder.with_name("out.now").exists()


def test_the_same_seed_trains_the_same_weights(student: Path, data: Path, tmp_path: Path) -> None:
    def weights(name: str, **options: Any) -> bytes:
        result = train(config(student, data, out=str(tmp_path / name), max_steps=3, checkpoints=1, **options))
        return (result.folder / "model.safetensors").read_bytes()

    assert weights("a") == weights("b") != weights("c", seed=7, batch_size=3)


def test_the_best_checkpoint_is_kept(student: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([0.2, 0.6, 0.6, 0.1])
    seen: list[bytes] = []

    def scripted(folder: Path, *_: Any, **__: Any) -> Any:
        seen.append((folder / "model.safetensors").read_bytes())
        return type("Score", (), {"greedy": next(accuracies)})

    monkeypatch.setattr("wcse.train.train.evaluate", scripted)
    problems = data.with_name("v.jsonl")
    problems.write_text('{"problem": "What is 20 + 1?", "answer": "21"}\n')
    result = train(config(student, data, max_steps=4, checkpoints=4, batch_size=4, validation=str(problems)))
    assert result.best == 1 and (result.folder / "model.safetensors").read_bytes() == seen[1]
    assert [look["step"] for look in result.checkpoints] == [1, 2, 3, 4]


def test_only_the_target_is_learned() -> None:
    items = [Item((5, 6, 7), (8, 9), "sft"), Item((5,), (6, 7, 8, 2), "sft")]
    ids, mask, targets = collate_causal(items, pad=0)
    assert ids.tolist() == [[5, 6, 7, 8, 9], [5, 6, 7, 8, 2]] and mask.sum() == 10
    assert targets.tolist() == [[IGNORED, IGNORED, 8, 9, IGNORED], [6, 7, 8, 2, IGNORED]]
    ids, mask, targets = collate_seq2seq(items, pad=0)
    assert ids.tolist() == [[5, 6, 7], [5, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert targets.tolist() == [[8, 9, IGNORED, IGNORED], [6, 7, 8, 2]]


def test_a_tasks_loss_is_its_own_mean_whatever_else_is_in_the_batch(student: Path) -> None:
    model, _ = load_student(student)
    model.eval()
    label, rationale = Item((5, 6), (7, 2), "label"), Item((5, 9), tuple(range(10, 40)), "rationale")
    with torch.no_grad():
        together = batch_losses(model, [label, rationale], pad=0)
        alone = {item.task: batch_losses(model, [item], pad=0)[item.task] for item in (label, rationale)}
    for task, loss in together.items():
        torch.testing.assert_close(loss, alone[task])
    assert task_weights(TrainConfig.parse({"model": "m", "data": "d", "out": "o", "alpha": 0.3})) == {
        "sft": 1.0,
        "label": 0.3,
        "rationale": 0.7,
    }


def test_step_by_step_puts_both_tasks_of_a_row_into_one_step(student: Path, data: Path) -> None:
    _, tokenizer = load_student(student)
    both = config(student, data, objective="step_by_step")
    loaded = load_items(both, tokenizer, seq2seq=False, context=512)
    assert [[item.task for item in group] for group in loaded.groups] == [["label", "rationale"]] * 8
    texts = [tokenizer.decode(item.prompt) for item in loaded.groups[3]]
    assert "predict: What is 3 + 1?" in texts[0] and "explain: What is 3 + 1?" in texts[1]
    plain = load_items(config(student, data, objective="label"), tokenizer, seq2seq=False, context=512)
    assert [group[0] for group in plain.groups] == [group[0] for group in loaded.groups] and len(
        plain.groups[0]
    ) == 1
    reports: list[Any] = []
    train(config(student, data, objective="step_by_step", max_steps=2), reports.append)
    assert set(reports[0].losses) == {"label", "rationale"}


def test_encoder_decoder_students_train(data: Path, tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path / "t5"
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 2, "vocab_size": 384}
    torch.manual_seed(0)
    settings = T5Config(**shape, decoder_start_token_id=0, eos_token_id=0, pad_token_id=0)
    T5ForConditionalGeneration(settings).save_pretrained(folder)
    tiny_models.wrap(tiny_models.byte_level()).save_pretrained(folder)
    problems = tmp_path / "v.jsonl"
    problems.write_text('{"problem": "What is 20 + 1?", "answer": "21"}\n')
    reports: list[Any] = []
    options = {
        "objective": "step_by_step",
        "max_steps": 12,
        "learning_rate": 0.01,
        "validation": str(problems),
    }
    result = train(config(folder, data, checkpoints=2, max_new_tokens=8, **options), reports.append)
    assert reports[-1].losses["label"] < reports[0].losses["label"] and len(result.checkpoints) == 2
    assert (result.folder / "tokenizer.json").is_file()


def test_lora_trains_adapters_and_leaves_an_ordinary_folder(student: Path, data: Path) -> None:
    pytest.importorskip("peft")
    result = train(config(student, data, lora_rank=4, max_steps=4, checkpoints=2, learning_rate=0.01))
    model, _ = load_student(result.folder)
    base, _ = load_student(student)
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, base.get_parameter(name))]
    assert moved and all("proj" in name for name in moved)


def test_shares_of_the_data_are_nested_and_by_problem() -> None:
    rows = [{"problem_id": f"p{index // 2}", "n": index} for index in range(40)]
    eighth, half = share_of(rows, 0.125, 1), share_of(rows, 0.5, 1)
    assert len(half) == 20 and all(row in half for row in eighth) and len(eighth) == 4
    assert share_of(rows, 1.0, 1) == rows and share_of(rows, 0.5, 2) != half


def test_rates_and_steps(student: Path, data: Path) -> None:
    plan = TrainConfig.parse({"model": "m", "data": "d", "out": "o"})
    assert total_steps(plan, 40) == 5
    for objective in ("sft", "step_by_step"):  # two trainers, one schedule
        reports: list[Any] = []
        options = {"objective": objective, "learning_rate": 1e-3, "warmup_ratio": 0.2, "max_steps": 10}
        result = train(config(student, data, out=str(data.parent / objective), **options), reports.append)
        rates = [report.learning_rate for report in reports]
        assert rates[0] == pytest.approx(5e-4) and max(rates) == rates[1] == pytest.approx(1e-3)
        assert rates[5] == pytest.approx(5e-4) and rates[-1] == 0.0 and result.steps == 10


def test_rows_that_cannot_be_used_are_counted(student: Path, data: Path) -> None:
    long = {"prompt": "What?", "completion": "apples " * 400}
    data.write_text(data.read_text() + json.dumps(long) + "\n" + '{"text": "a"}\n')
    result = train(config(student, data, max_steps=1, max_length=100))
    assert (result.rows, result.used) == (10, 8)
    assert result.left_out == {
        "longer than 100 tokens": 1,
        "row without messages, or prompt and completion": 1,
    }


def test_mistakes_are_named(
    student: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "completion": "b"}\n{oops\n')
    done = tmp_path / "done"
    done.mkdir()
    (done / REPORT).write_text("{}")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"data": empty}, "no rows; loosen the filters"),
        ({"data": broken}, "broken.jsonl line 2: not valid JSON"),
        ({"data": tmp_path / "none.jsonl"}, "cannot be read"),
        ({"data": tmp_path}, "no sft-*.parquet in it"),
        ({"data": data, "out": done}, "holds a trained model"),
        ({"data": data, "max-length": 8}, "no row can be used: longer than 8 tokens (8)"),
        ({"data": data, "objective": "rl"}, "objective='rl'"),
        ({"data": data, "max-steps": 3, "num-train-epochs": 2}, "give one"),
        ({"data": data, "model": tmp_path / "x.gguf"}, "no such file or folder"),
        (
            {"data": data, "learning-rate": 1e30, "max-steps": 9},
            "the loss is not a number; lower learning_rate",
        ),
    ]
    leak = tmp_path / "leak.jsonl"
    leak.write_text(
        '{"problem": "What is 1 + 1?", "answer": "2"}\n{"problem": "What is 70 + 1?", "answer": "71"}\n'
    )
    cases.append(({"data": data, "validation": leak}, "1 of its problems are in the training data"))
    for options, message in cases:
        given = {"model": student, "out": tmp_path / "out", "threads": 1} | options
        assert cli.main(["train", *(f"--{name}={value}" for name, value in given.items())]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("wcse: error: ") and message in last, last
    with pytest.raises(WcseError, match="cannot be loaded"):
        load_student(tmp_path)
    assert read_rows(data, "sft")


def test_the_command_prints_its_checkpoints(
    student: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        "model": student,
        "data": data,
        "out": data.parent / "m",
        "max-steps": 2,
        "checkpoints": 2,
        "threads": 1,
    }
    assert cli.main(["train", *(f"--{name}={value}" for name, value in given.items())]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0].startswith("step 1/2: sft loss ")
        and lines[1].endswith("(kept)")
        and "8 of 8 rows" in lines[2]
    )
