"""All options of a fine-tuning run. Knows no model and no file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from wcse.recipe import Options, runtime_only


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else value


Rates = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_listed), Field(min_length=1)]
"""Learning rates; one alone is a tuple of one."""


class TrainConfig(Options):
    """Build it with ``TrainConfig.parse``. Names are those of TRL's and transformers' configs where they have one."""

    model: str = Field(
        description="model to start from: a Hugging Face folder, an embedded name or a hub id", min_length=1
    )
    data: str = Field(
        description="training rows: a .jsonl or .parquet file, or a folder of wcse synth", min_length=1
    )
    objective: Literal["sft", "label", "step_by_step"] = Field(
        "sft",
        description="sft writes solutions; label answers only; step_by_step learns label and rationale as two tasks",
    )
    samplers: tuple[str, ...] = Field(
        (), description="only rows of these samplers of wcse synth; none takes all"
    )
    share: float = Field(1.0, description="share of the problems to train on", gt=0, le=1)
    max_steps: int = Field(0, description="optimiser steps; 0 goes by epochs", ge=0)
    num_train_epochs: float = Field(2.0, description="passes over the data, where max_steps is 0", gt=0)
    batch_size: int = Field(16, description="rows of an optimiser step", ge=1)
    learning_rate: Rates = Field(
        (1e-4,), description="peak, cosine to zero; of several, validation keeps the best checkpoint of all"
    )
    warmup_ratio: float = Field(0.05, description="share of the steps with a rising rate", ge=0, lt=1)
    weight_decay: float = Field(0.0, description="AdamW's", ge=0)
    max_grad_norm: float = Field(1.0, description="gradients are clipped to this norm", gt=0)
    max_length: int = Field(1024, description="longer rows are left out and counted", ge=8)
    alpha: float = Field(
        0.5, description="step_by_step: weight of the label's loss against the rationale's", ge=0, le=1
    )
    label_prefix: str = Field(
        "predict: ", description="label, step_by_step: before the question, for the label"
    )
    rationale_prefix: str = Field(
        "explain: ", description="step_by_step: before the question, for the rationale"
    )
    lora_rank: int = Field(
        0, description="rank of LoRA adapters (needs peft), merged at the end; 0 trains all", ge=0
    )
    checkpoints: int = Field(5, description="times that validation looks; the best checkpoint is kept", ge=1)
    validation: str | None = Field(
        None, description="problems to select the checkpoint by; none takes the last"
    )
    validation_limit: int | None = Field(None, description="only the first validation problems", ge=1)
    max_new_tokens: int = Field(256, description="most tokens of a validation answer", ge=1)
    seed: int = Field(42, description="seed of order and adapters", ge=0, lt=2**63)

    out: str = runtime_only(..., "folder for the trained model", min_length=1)
    threads: int | None = runtime_only(None, "CPU threads", ge=1)

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (
            "max_steps" in self.model_fields_set
            and self.max_steps
            and "num_train_epochs" in self.model_fields_set
        ):
            raise ValueError(
                f"max_steps={self.max_steps} and num_train_epochs={self.num_train_epochs}: give one"
            )
        return self

    @model_validator(mode="after")
    def _rates_are_chosen(self) -> TrainConfig:
        if len(self.learning_rate) > 1 and self.validation is None:
            raise ValueError(
                f"learning_rate={list(self.learning_rate)}: to choose one, give validation problems"
            )
        return self
