"""The trainer of a run: TRL's ``SFTTrainer`` for solutions, ``TaskTrainer`` for several tasks and encoder-decoders.

Knows neither validation nor files. Optional packages are imported when a run needs them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch

from wcse.train.config import TrainConfig
from wcse.train.rows import SFT, Group
from wcse.types import WcseError


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step: its loss by task, and the learning rate of the next."""

    step: int
    steps: int
    losses: Mapping[str, float]
    learning_rate: float


OnStep = Callable[[StepReport], None]


def total_steps(config: TrainConfig, rows: int) -> int:
    """Optimiser steps of a run."""
    return config.max_steps or max(1, math.ceil(config.num_train_epochs * rows / config.batch_size))


def adapted(model: Any, config: TrainConfig) -> Any:
    """The model itself, or with LoRA adapters on all its linear layers but the output matrix.

    Raises:
        WcseError: peft is not installed.
    """
    if not config.lora_rank:
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise WcseError(f"lora_rank={config.lora_rank} {_NEEDS}") from error
    kind = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    lora = LoraConfig(
        r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules="all-linear", task_type=kind
    )
    return get_peft_model(model, lora)


_NEEDS = "needs an extra package: pip install 'wcse[train]'"


def run_trainer(
    model: Any, tokenizer: Any, groups: Sequence[Group], config: TrainConfig, rate: float, on_step: OnStep
) -> None:
    """Train in place at one of the configuration's learning rates.

    ``on_step`` hears every optimiser step, after it; what it raises ends the run.

    Raises:
        WcseError: trl or accelerate is not installed.
    """
    from transformers import PrinterCallback

    steps = total_steps(config, len(groups))
    plain = config.objective == "sft" and not model.config.is_encoder_decoder
    with TemporaryDirectory(prefix="wcse-train-") as scratch:
        options = _arguments(config, rate, steps, scratch)
        try:
            make = _sft_trainer if plain else _task_trainer
            trainer = make(model, tokenizer, groups, config, options)
        except ImportError as error:
            raise WcseError(f"objective={config.objective} {_NEEDS} ({error})") from error
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_steps_to(on_step, steps, trainer))
        trainer.train()


def _arguments(config: TrainConfig, rate: float, steps: int, scratch: str) -> dict[str, Any]:
    """What both trainers are told. Checkpoints are not theirs: validation decides what is kept."""
    return {
        "output_dir": scratch,
        "max_steps": steps,
        "per_device_train_batch_size": config.batch_size,
        "learning_rate": rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(config.warmup_ratio * steps),
        "weight_decay": config.weight_decay,
        "adam_beta2": 0.98,
        "max_grad_norm": config.max_grad_norm,
        "train_sampling_strategy": "group_by_length",
        "seed": config.seed,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,  # students are fp32
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _task_trainer(
    model: Any, tokenizer: Any, groups: Sequence[Group], config: TrainConfig, options: dict[str, Any]
) -> Any:
    from transformers import TrainingArguments

    from wcse.train.tasks import TaskTrainer

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return TaskTrainer(model, groups, TrainingArguments(**options), config, pad)


def _sft_trainer(
    model: Any, tokenizer: Any, groups: Sequence[Group], config: TrainConfig, options: dict[str, Any]
) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from wcse.train.tasks import IGNORED

    class Reporting(SFTTrainer):
        """Keeps the loss of the last step, as ``TaskTrainer`` does."""

        losses: Mapping[str, float] = {}

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            self.losses = {SFT: loss.item()}
            return loss

    rows = [
        {"input_ids": item.ids, "labels": (*[IGNORED] * len(item.prompt), *item.target)} for (item,) in groups
    ]
    options = options | {"gradient_checkpointing": False, "max_length": None}
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # transformers renames a field that TRL has on by default
        arguments = SFTConfig(**options, dataset_kwargs={"skip_prepare_dataset": True})
    return Reporting(
        model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(rows), args=arguments
    )


def _steps_to(on_step: OnStep, steps: int, trainer: Any) -> Any:
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            rate = kwargs["lr_scheduler"].get_last_lr()[0]
            on_step(StepReport(state.global_step, steps, trainer.losses, rate))

    return Steps()
