"""The training loop: AdamW over padded batches of a transformers model, causal or encoder-decoder, on the CPU.

A step's loss is the weighted sum over tasks of the mean over the task's target tokens in the step (not over rows
or micro-batches), so label and rationale keep their weights however long they are (arXiv 2305.02301, eq. 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
import torch.nn.functional as F

from wcse.train.config import TrainConfig
from wcse.train.rows import LABEL, RATIONALE, SFT, Item

IGNORED = -100

Group = tuple[Item, ...]
"""The items of one row."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step: its loss by task, and the learning rate."""

    step: int
    steps: int
    losses: Mapping[str, float]
    learning_rate: float


def task_weights(config: TrainConfig) -> dict[str, float]:
    """How much each task's mean loss counts."""
    return {SFT: 1.0, LABEL: config.alpha, RATIONALE: 1.0 - config.alpha}


def total_steps(config: TrainConfig, rows: int) -> int:
    """Optimiser steps of a run."""
    return config.max_steps or max(1, math.ceil(config.num_train_epochs * rows / config.batch_size))


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero; ``step`` counts from 0."""
    warm = round(config.warmup_ratio * steps)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def batches(groups: Sequence[Group], size: int, steps: int, seed: int) -> Iterator[list[Item]]:
    """``steps`` batches of ``size`` rows: every row once an epoch, in an order of the seed's, like lengths together."""
    rng, made = Random(seed), 0
    while made < steps:
        order = sorted(groups, key=lambda group: (max(map(len, group)) // 32, rng.random()))
        chunks = [order[i : i + size] for i in range(0, len(order), size)]
        rng.shuffle(chunks)
        yield from ([item for group in chunk for item in group] for chunk in chunks[: steps - made])
        made += len(chunks)


def collate_causal(items: Sequence[Item], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded ids, attention mask, and targets aligned with the logits that predict them; each [rows, width]."""
    width = max(len(item) for item in items)
    ids = torch.full((len(items), width), pad)
    mask = torch.zeros((len(items), width), dtype=torch.long)
    targets = torch.full((len(items), width), IGNORED)
    for row, item in enumerate(items):
        ids[row, : len(item)] = torch.tensor(item.prompt + item.target)
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
        ids, mask, targets = collate_seq2seq(items, pad)
        logits = model(input_ids=ids, attention_mask=mask, labels=targets.clamp(min=0)).logits
    else:
        ids, mask, targets = collate_causal(items, pad)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    losses = {}
    for task in dict.fromkeys(item.task for item in items):
        mine = torch.tensor([item.task == task for item in items])[:, None] & (targets != IGNORED)
        losses[task] = F.cross_entropy(logits[mine].float(), targets[mine])
    return losses


def train_steps(
    model: Any,
    groups: Sequence[Group],
    config: TrainConfig,
    pad: int,
    on_step: Callable[[StepReport], None],
) -> None:
    """Train in place. ``on_step`` hears every optimiser step, after it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    steps, weights = total_steps(config, len(groups)), task_weights(config)
    for step, batch in enumerate(batches(groups, config.batch_size, steps, config.seed)):
        model.train()  # validation may have put it into evaluation
        rate = learning_rate(config, step, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = batch_losses(model, batch, pad)
        total = torch.stack([weights[task] * loss for task, loss in losses.items()]).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        on_step(StepReport(step + 1, steps, {task: loss.item() for task, loss in losses.items()}, rate))
