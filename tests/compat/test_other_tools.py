"""its_hub, distilabel and TRL with our adapters."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from wcse import zoo

QUESTION = [{"role": "user", "content": "Calculate 17 + 25."}]


def test_its_hub_self_consistency() -> None:
    pytest.importorskip("its_hub")
    from its_hub.algorithms import SelfConsistency

    from wcse.adapters.its_hub_model import WcseLanguageModel

    model = WcseLanguageModel("tiny-wc", kv_memory=0.1)
    try:
        reply = asyncio.run(SelfConsistency().ainfer(model, QUESTION, budget=4))
        assert isinstance(reply["content"], str) and reply["content"]
        go_on = [*QUESTION, {"role": "assistant", "content": "17 + 25 ="}]
        both = asyncio.run(model.agenerate([QUESTION, go_on], stop="\n\n", temperature=[0.0, 0.5]))
        assert len(both) == 2 and all("\n\n" not in reply["content"] for reply in both)
    finally:
        model.close()


def test_distilabel_task() -> None:
    pytest.importorskip("distilabel")
    from distilabel.steps.tasks import TextGeneration

    from wcse.adapters.distilabel_llm import WcseLLM

    task = TextGeneration(
        llm=WcseLLM(model="tiny-wc", kv_memory=0.1, generation_kwargs={"max_new_tokens": 8}),
        num_generations=3,
    )
    task.load()
    rows = next(task.process([{"instruction": "Calculate 1 + 2."}, {"instruction": "Calculate 3 + 4."}]))
    task.unload()
    assert len(rows) == 6 and all(isinstance(row["generation"], str) for row in rows)
    spent = rows[0]["distilabel_metadata"]["statistics_text_generation_0"]
    assert spent["output_tokens"] and spent["input_tokens"]


def test_trl_grpo_two_steps(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from wcse.adapters.trl_rollout import TrlRollout

    folder = str(zoo.path("tiny-wc"))
    heard: list[dict[str, Any]] = []

    def reward(completions: list[Any], **fields: Any) -> list[float]:
        heard.append(fields)
        return [
            float(len(str(c)) % 7) + (scores[-1] or 0.0)
            for c, scores in zip(completions, fields["step_scores"], strict=True)
        ]

    rows = [{"prompt": [{"role": "user", "content": f"Calculate {a} + 5."}]} for a in range(8)]
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        processing_class=AutoTokenizer.from_pretrained(folder),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=24,
            learning_rate=1e-3,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list(rows),
        rollout_func=TrlRollout(folder, prm="shared", kv_memory=0.1),
    )
    before = trainer.rollout_func.engine.model.decoder
    trainer.train()
    assert len(heard) == 2 and all(len(fields["node_path"]) == 4 for fields in heard)
    assert trainer.rollout_func.engine.model.decoder is not before, "the second step used the first's weights"
