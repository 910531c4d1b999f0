"""Several tasks in one step: label and rationale as in Distilling Step-by-Step, for causal and encoder-decoder models.

A step's loss is the weighted sum over tasks of the mean over the task's target tokens in the step (not over rows
or micro-batches), so label and rationale keep their weights however long they are (arXiv 2305.02301, eq. 3). The
loop around it is transformers' ``Trainer``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Trainer, TrainingArguments

from wcse.train.config import TrainConfig
from wcse.train.rows import LABEL, RATIONALE, SFT, Group, Item

IGNORED = -100


def task_weights(config: TrainConfig) -> dict[str, float]:
    """How much each task's mean loss counts."""
    return {SFT: 1.0, LABEL: config.alpha, RATIONALE: 1.0 - config.alpha}


def collate_causal(items: Sequence[Item], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded ids, attention mask, and targets aligned with the logits that predict them; each [rows, width]."""
    width = max(len(item) for item in items)
    ids = torch.full((len(items), width), pad)
    mask = torch.zeros((len(items), width), dtype=torch.long)
    targets = torch.full((len(items), width), IGNORED)
    for row, item in enumerate(items):
        ids[row, : len(item)] = torch.tensor(item.ids)
        mask[row, : len(item)] = 1
        start = len(item.prompt) - 1
        targets[row, start : start + len(item.target)] = torch.tensor(item.target)
    return ids, mask, targets


def collate_seq2seq(items: Sequence[Item], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Encoder ids, their mask, and decoder targets, right-padded."""
    ids = torch.full((len(items), max(len(item.prompt) for item in items)), pad)
    mask = torch.zeros_like(ids)
    targets = torch.full((len(items), max(len(item.target) for item in items)), IGNORED)
    for row, item in enumerate(items):
        ids[row, : len(item.prompt)] = torch.tensor(item.prompt)
        mask[row, : len(item.prompt)] = 1
        targets[row, : len(item.target)] = torch.tensor(item.target)
    return ids, mask, targets


def batch_losses(model: Any, items: Sequence[Item], pad: int) -> dict[str, torch.Tensor]:
    """The mean loss over target tokens of each task in a batch."""
    if model.config.is_encoder_decoder:
        ids, mask, targets = (part.to(model.device) for part in collate_seq2seq(items, pad))
        logits = model(input_ids=ids, attention_mask=mask, labels=targets.clamp(min=0)).logits
    else:
        ids, mask, targets = (part.to(model.device) for part in collate_causal(items, pad))
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    losses = {}
    for task in dict.fromkeys(item.task for item in items):
        rows = torch.tensor([item.task == task for item in items], device=targets.device)
        mine = rows[:, None] & (targets != IGNORED)
        losses[task] = F.cross_entropy(logits[mine].float(), targets[mine])
    return losses


class TaskTrainer(Trainer):
    """``Trainer`` over rows that are one item of each task.

    Attributes:
        losses: of the last step, by task.
    """

    def __init__(
        self, model: Any, groups: Sequence[Group], arguments: TrainingArguments, config: TrainConfig, pad: int
    ) -> None:
        # input_ids: of the longest item, by which the sampler puts rows of like lengths together
        rows = [{"input_ids": max(group, key=len).ids, "items": group} for group in groups]
        super().__init__(model=model, args=arguments, train_dataset=rows, data_collator=_flat)
        self._pad = pad
        self._weights = task_weights(config)
        self.losses: Mapping[str, float] = {}

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """The weighted sum of the tasks' losses."""
        losses = batch_losses(model, inputs["items"], self._pad)
        self.losses = {task: loss.item() for task, loss in losses.items()}
        return torch.stack([self._weights[task] * loss for task, loss in losses.items()]).sum()


def _flat(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Item]]:
    return {"items": [item for row in rows for item in row["items"]]}
