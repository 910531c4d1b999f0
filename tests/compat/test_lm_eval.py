"""lm-eval itself, with our model and with its own on the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from wcse import zoo
from wcse.adapters.lm_eval_model import WcseLM

TEXTS = ["Anna has 12 apples and buys 7 more.", "17 + 25 = 42", "The answer is \\boxed{9}."]


@pytest.fixture(scope="module")
def ours() -> WcseLM:
    return WcseLM("tiny-wc", kv_memory=0.1)


@pytest.fixture(scope="module")
def theirs() -> Any:
    return HFLM(pretrained=str(zoo.path("tiny-wc")), dtype=torch.float32, device="cpu", batch_size=1)


def instances(kind: str, arguments: list[Any]) -> list[Instance]:
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


def test_loglikelihoods_equal_hflm(ours: WcseLM, theirs: Any) -> None:
    pairs = [(a, " " + b) for a in TEXTS for b in TEXTS] + [("", TEXTS[0]), (TEXTS[0] + "  ", "x")]
    pairs.append(("apples " * 600, " and so on"))
    requests = instances("loglikelihood", pairs)
    for mine, other in zip(ours.loglikelihood(requests), theirs.loglikelihood(requests), strict=True):
        assert mine[0] == pytest.approx(other[0], abs=1e-4) and mine[1] == other[1]


def test_rolling_loglikelihoods_equal_hflm(ours: WcseLM, theirs: Any) -> None:
    requests = instances("loglikelihood_rolling", [(text,) for text in TEXTS])
    mine, other = ours.loglikelihood_rolling(requests), theirs.loglikelihood_rolling(requests)
    assert mine == pytest.approx(other, abs=1e-4)


def test_greedy_generation_equals_hflm(ours: WcseLM, theirs: Any) -> None:
    options = {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False}
    requests = instances("generate_until", [("Calculate 17 + 25.", options), ("1 + 1 =", options)])
    assert ours.generate_until(requests) == theirs.generate_until(requests)


def test_repeats_become_one_prompt(ours: WcseLM) -> None:
    options = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    one = instances("generate_until", [("Calculate 17 + 25.", options)])[0]
    before = ours.llm.engine.runner.computed
    texts = ours.generate_until([one] * 8)
    prompt = len(ours.tok_encode("Calculate 17 + 25."))
    assert len(texts) == 8
    assert ours.llm.engine.runner.computed - before <= prompt + 8 * 12


def test_simple_evaluate_with_repeats_and_our_filter(tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    rows = [{"q": f"Calculate {a} + {b}.", "a": str(a + b)} for a, b in ((17, 25), (3, 4))]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(
        f"""
task: wcse_sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}, cache_dir: {tmp_path}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
repeats: 4
generation_kwargs: {{until: ["<|none|>"], max_gen_toks: 40, do_sample: true, temperature: 0.7}}
filter_list:
  - name: vote
    filter:
      - function: wcse_majority
      - function: regex
        regex_pattern: "boxed.([0-9]+)"
      - function: take_first
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(
        model="wcse",
        model_args={"pretrained": "tiny-wc", "kv_memory": 0.1},
        tasks=["wcse_sums"],
        task_manager=manager,
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    assert found["results"]["wcse_sums"]["exact_match,vote"] in (0.5, 1.0)
    assert all(len(sample["resps"][0]) == 4 for sample in found["samples"]["wcse_sums"])


def test_tasks_are_held_out_sets_of_the_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from wcse import cli

    rows = [{"q": f"Calculate {a} + {b}.", "a": str(a + b)} for a, b in ((17, 25), (3, 4), (5, 9))]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    problems = tmp_path / "home.jsonl"
    problems.write_text('{"problem": "Calculate 12 + 4.", "answer": "16"}\n')
    (tmp_path / "task.yaml").write_text(
        f"""
task: audit_sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}, cache_dir: {tmp_path}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: ["{{{{a}}}}", "nothing"]
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""
    )
    given = ["audit", "--base=tiny-wc", "--student=tiny-wc", "--teacher=tiny-wc", f"--in-domain={problems}"]
    out = tmp_path / "audit.json"
    more = ["--max-tokens=40", "--tasks=audit_sums", f"--include-path={tmp_path}", f"--out={out}", "--quiet"]
    assert cli.main([*given, *more]) == 0
    assert "| audit_sums | 3 |" in capsys.readouterr().out
    found = json.loads(out.read_text())["students"]["tiny-wc"]["sets"]["audit_sums"]
    assert found["problems"] == 3 and found["difference"] == 0
    assert cli.main([*given, "--tasks=no_such_task", "--quiet"]) == 2
    assert "lm-eval has no such task" in capsys.readouterr().err
