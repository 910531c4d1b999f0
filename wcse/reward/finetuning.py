"""Training of whole models on labelled steps: a token classifier, or an implicit reward model.

Both are trained through transformers (and peft, for LoRA) on what a scorer reads: rows come from ``layout``, the same
code that runs in a search. The loss is the cross-entropy between a step's label, 0 to 1, and its score, summed over
the read positions and divided by their number in the whole batch, so cutting a batch into parts changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wcse.models.load import find_model
from wcse.reward.families import FAMILIES
from wcse.reward.layout import Layout
from wcse.reward.training import Row, labels_of
from wcse.types import WcseError

CLASSIFIER = FAMILIES["token_classification"]
"""The family that ``train_classifier`` trains for."""

IMPLICIT = FAMILIES["implicit"]
"""The family that ``train_implicit`` trains for."""

PART_TOKENS = 4096  # of one forward and backward pass, padding included

Logits = Callable[[Any, Sequence[Row], Tensor, Tensor], Tensor]
"""From (model, rows, padded ids, mask) to the logits of the scores at all read positions in turn."""


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """Settings of a training; the defaults are of TRL's recipes.

    Args:
        epochs, lr, batch, warmup: passes, peak learning rate, solutions a step, share of steps to the peak.
        lora_rank: of adapters that are trained and merged; 0 trains every weight.
        bf16: matrices are multiplied in bfloat16 (autocast).
    """

    epochs: float = 1.0
    lr: float = 1e-5
    batch: int = 32
    warmup: float = 0.05
    seed: int = 0
    lora_rank: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        if (
            self.epochs <= 0
            or self.lr <= 0
            or self.batch < 1
            or not 0 <= self.warmup < 1
            or self.lora_rank < 0
        ):
            raise WcseError(
                f"{self}: epochs, lr and batch must be positive, warmup in [0, 1), lora_rank not negative"
            )


@dataclass(frozen=True)
class Ratio:
    """How an implicit reward model is read: sigmoid(bias + beta * log-ratio to the model ``reference``)."""

    reference: str
    beta: float
    bias: float = 0.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise WcseError(f"beta={self.beta}: must be positive")


Hear = Callable[[int, int, float], None]
"""Hears (steps done, steps in all, loss)."""


def train_classifier(
    start: Path,
    rows: Sequence[Row],
    layout: Layout,
    settings: Finetuning,
    out: Path,
    hear: Hear = lambda *_: None,
) -> None:
    """Train a token classifier from the model in ``start`` and write it to ``out``, ready for ``load_prm``.

    Raises:
        WcseError: no rows, or LoRA was asked for without the package peft.
    """
    from transformers import AutoModelForTokenClassification

    torch.manual_seed(settings.seed)
    model = AutoModelForTokenClassification.from_pretrained(start, num_labels=2, dtype=torch.float32)
    model = _trained(model, "TOKEN_CLS", rows, layout, settings, classifier_logits, hear)
    _write(model, start, layout, out, {})


def train_implicit(
    start: Path,
    ratio: Ratio,
    rows: Sequence[Row],
    layout: Layout,
    settings: Finetuning,
    out: Path,
    hear: Hear = lambda *_: None,
) -> None:
    """Train an implicit reward model (arXiv 2412.01981) from the language model in ``start``, as above.

    The reference reads every row once before the training begins, so that the two models are never in memory
    together.

    Raises:
        WcseError: as ``train_classifier``, or the reference cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    rows = with_reference(rows, ratio, layout)
    torch.manual_seed(settings.seed)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    model = _trained(model, "CAUSAL_LM", rows, layout, settings, partial(ratio_logits, ratio), hear)
    _write(model, start, layout, out, {"reference": ratio.reference, "beta": ratio.beta, "bias": ratio.bias})


# -- what is trained -------------------------------------------------------------------------------------


def classifier_logits(model: Any, rows: Sequence[Row], ids: Tensor, mask: Tensor) -> Tensor:
    """Good minus bad of the two labels."""
    logits = model(input_ids=ids, attention_mask=mask).logits.float()
    return torch.cat(
        [part[row.reads, 1] - part[row.reads, 0] for part, row in zip(logits, rows, strict=True)]
    )


def ratio_logits(ratio: Ratio, model: Any, rows: Sequence[Row], ids: Tensor, mask: Tensor) -> Tensor:
    """Bias plus beta times the log-ratio of all tokens from the end of the prompt to the read position."""
    base = torch.tensor([value for row in rows for value in row.base])
    return ratio.bias + ratio.beta * (path_logprobs(model, rows, ids, mask) - base)


def path_logprobs(model: Any, rows: Sequence[Row], ids: Tensor, mask: Tensor) -> Tensor:
    """log p(solution up to each read position | problem), in turn."""
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    chosen = -F.cross_entropy(logits.transpose(1, 2).float(), ids[:, 1:], reduction="none")
    return torch.cat(
        [
            part[row.prompt - 1 :].cumsum(0)[[r - row.prompt for r in row.reads]]
            for part, row in zip(chosen, rows, strict=True)
        ]
    )


def with_reference(rows: Sequence[Row], ratio: Ratio, layout: Layout) -> list[Row]:
    """The rows with the reference's log-probabilities."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(find_model(ratio.reference), dtype=torch.float32).eval()
    found: dict[int, Row] = {}
    with torch.inference_mode():
        for part in _parts(rows):
            values = iter(path_logprobs(model, part, *padded(part, _pad(layout))).tolist())
            for row in part:
                found[id(row)] = replace(row, base=[next(values) for _ in row.reads])
    return [found[id(row)] for row in rows]


# -- the loop --------------------------------------------------------------------------------------------


def step_loss(model: Any, rows: Sequence[Row], logits: Logits, pad: int, total: int) -> Tensor:
    """The rows' share of the batch's loss: cross-entropy at the read positions, over ``total`` of them."""
    z = logits(model, rows, *padded(rows, pad))
    return F.binary_cross_entropy_with_logits(z, labels_of(rows), reduction="sum") / total


def padded(rows: Sequence[Row], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask [rows, longest], padded on the right."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [pad] * (width - len(row.ids)) for row in rows])
    return ids, torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])


def _trained(
    model: Any,
    task: str,
    rows: Sequence[Row],
    layout: Layout,
    settings: Finetuning,
    logits: Logits,
    hear: Hear,
) -> Any:
    """The model after the training, adapters merged."""
    if not rows:
        raise WcseError("no labelled step is left to train on; see the messages above")
    trained = _with_lora(model, task, settings.lora_rank) if settings.lora_rank else model
    trained.train()
    for module in trained.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    _fit(trained, rows, settings, logits, _pad(layout), hear)
    return trained.merge_and_unload() if settings.lora_rank else trained


def _fit(model: Any, rows: Sequence[Row], settings: Finetuning, logits: Logits, pad: int, hear: Hear) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=0.0)
    steps = max(1, round(settings.epochs * len(rows) / settings.batch))
    warm = max(1, round(settings.warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))
    )
    batches = _batches(rows, settings.batch, Random(settings.seed))
    for step, batch in zip(range(steps), batches, strict=False):
        total = sum(len(row.reads) for row in batch)
        optimizer.zero_grad()
        sum_ = 0.0
        for part in _parts(batch):
            with torch.autocast("cpu", dtype=torch.bfloat16) if settings.bf16 else nullcontext():
                loss = step_loss(model, part, logits, pad, total)
            loss.backward()
            sum_ += loss.item()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        hear(step + 1, steps, sum_)


def _batches(rows: Sequence[Row], size: int, rng: Random) -> Iterator[list[Row]]:
    """Batches in random order, pass after pass."""
    while True:
        order = rng.sample(list(rows), len(rows))
        yield from (order[i : i + size] for i in range(0, len(order), size))


def _parts(batch: Sequence[Row], tokens: int = PART_TOKENS) -> Iterator[list[Row]]:
    """The batch in parts of like lengths that fit in memory."""
    part: list[Row] = []
    for row in sorted(batch, key=lambda row: len(row.ids)):
        if part and (len(part) + 1) * len(row.ids) > tokens:
            yield part
            part = []
        part.append(row)
    yield part


def _with_lora(model: Any, task: str, rank: int) -> Any:
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError:
        raise WcseError(
            f"lora_rank={rank}: needs the package peft; pip install peft, or train every weight"
        ) from None
    return get_peft_model(model, LoraConfig(task_type=TaskType(task), r=rank, lora_alpha=2 * rank))


def _pad(layout: Layout) -> int:
    return layout.tokenizer.pad_token_id or 0


def _write(model: Any, start: Path, layout: Layout, out: Path, extras: dict[str, Any]) -> None:
    """A folder that ``load_prm`` reads, its numbers of the type that the start's were."""
    from transformers import AutoConfig

    model.config.wcse = {
        "family": layout.family.name,
        "separator": layout.family.separator if layout.separator is None else layout.separator,
        "default_agg": layout.family.agg,
    } | extras
    model.to(AutoConfig.from_pretrained(start).dtype or torch.float32).save_pretrained(out)
    layout.tokenizer.save_pretrained(out)
