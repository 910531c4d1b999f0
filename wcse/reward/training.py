"""Training of verifiers on labelled steps: a head on the policy's own states, or a token classifier.

What is trained is what a scorer reads: ids and read positions come from ``layout``, the same code that runs in a
search. The loss is the cross-entropy between a step's label, 0 to 1, and its score, summed over the read positions
and divided by their number in the whole batch, so cutting a batch into parts changes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from wcse.engine.llm import pages_in
from wcse.engine.runner import Runner, Span
from wcse.models.load import LoadedModel
from wcse.reward.families import FAMILIES, Family
from wcse.reward.layout import Layout
from wcse.types import WcseError

CLASSIFIER = FAMILIES["token_classification"]
"""The family that ``train_classifier`` trains for."""

VALIDATION_SHARE = 0.1
HEAD_UNITS = 256
FEATURE_TOKENS = 2048  # of one batch of the policy


@dataclass(frozen=True)
class Row:
    """A solution as token ids with the positions that are read and their labels.

    The first ``prompt`` ids are the problem; rows of one ``group`` belong to one problem.
    """

    ids: list[int]
    reads: list[int]
    labels: list[float]
    prompt: int
    group: str


def read_records(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSON Lines or Parquet file in TRL's columns: ``prompt``, ``completions``, ``labels``.

    Raises:
        WcseError: it cannot be read, or a row lacks a column or has another number of labels than of steps.
    """
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_table(path, columns=["prompt", "completions", "labels"]).to_pylist()
        else:
            rows = [
                json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
            ]
    except (OSError, ValueError) as error:
        raise WcseError(
            f"{path}: cannot be read ({error}); give labelled steps as .jsonl or .parquet"
        ) from None
    for number, row in enumerate(rows, 1):
        if not {"prompt", "completions", "labels"} <= row.keys() or len(row["completions"]) != len(
            row["labels"]
        ):
            raise WcseError(
                f"{path}, row {number}: needs prompt, completions and as many labels as completions"
            )
    return rows


def usable(label: float | None) -> bool:
    """Whether a step has a label: None, NaN and negative numbers (-100) stand for none."""
    return label is not None and not math.isnan(label) and label >= 0


def split_records(records: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and validation rows; all rows of a problem fall on one side."""
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for record in records:
        share = int(sha256(record["prompt"].encode()).hexdigest()[:8], 16) / 2**32
        sides[share < VALIDATION_SHARE].append(record)
    return sides


def stream_layout(tokenizer: Any, separator: str) -> Layout:
    """The policy's own stream: chat, steps and separators as one text, the end token after the last step."""
    record = Family(
        name="policy stream",
        prompt=("{chat_before}{problem}{chat_between}",),
        close=("{sep}",),
        end=(tokenizer.eos_token or "",),
        separator=separator,
    )
    return Layout(record, tokenizer, source="the policy")


def encode_records(layout: Layout, records: Sequence[dict[str, Any]], context: int) -> tuple[list[Row], int]:
    """Rows with at least one label, and how many records were left out.

    Solutions longer than ``context`` lose whole steps from their end; a text that the layout refuses and one without
    a label left are left out.
    """
    rows: list[Row] = []
    for record in records:
        steps = [step.strip() for step in record["completions"]]
        with suppress(WcseError):  # counted as left out, like a row without labels
            row = _encode(layout, record, steps, context)
            if row.reads:
                rows.append(row)
    return rows, len(records) - len(rows)


def _encode(layout: Layout, record: dict[str, Any], steps: Sequence[str], context: int) -> Row:
    problem, complete = record["prompt"], record.get("complete", True)
    row = Row([], [], [], len(layout.prefix(problem)), problem)
    for i, label in enumerate(record["labels"]):
        reading = layout.read(problem, steps[: i + 1], ended=complete and i + 1 == len(steps))
        if reading.read >= context or reading.ids[: len(row.ids)] != row.ids:
            break  # too long, or the tokenizer merged over the seam
        row.ids[:] = reading.ids
        if usable(label):
            row.reads.append(reading.read)
            row.labels.append(float(label))
    return row


def labels_of(rows: Sequence[Row]) -> Tensor:
    """All labels in turn, float32."""
    return torch.tensor([label for row in rows for label in row.labels])


# -- a head on the policy's states -----------------------------------------------------------------------


def features_of(model: LoadedModel, rows: Sequence[Row]) -> Tensor:
    """Final-norm states [reads, hidden size] of all read positions in turn, computed by our own decoder."""
    longest = max(len(row.ids) for row in rows)
    runner = Runner(model.decoder, num_pages=max((FEATURE_TOKENS + longest) // 8, pages_in(model, 0.05)))
    parts: list[Tensor] = []
    todo = list(reversed(rows))
    while todo:
        batch: list[tuple[Row, Span]] = []
        work = runner.begin()
        while todo and (not batch or work.tokens + len(todo[-1].ids) <= FEATURE_TOKENS):
            row = todo.pop()
            span = Span(None, row.ids)
            assert runner.store(work, span, len(row.ids))
            batch.append((row, span))
        hidden = runner.run(work, every_row=True)
        begin = 0
        for row, span in batch:
            parts.append(hidden[begin : begin + len(row.ids)][row.reads])
            begin += len(row.ids)
            runner.release(span)
    return torch.cat(parts)


def train_head(features: Tensor, labels: Tensor, *, epochs: int, seed: int) -> nn.Sequential:
    """Two layers from a state to one logit. Half the inner units are dropped: labels are few and noisy."""
    torch.manual_seed(seed)
    head = nn.Sequential(
        nn.Linear(features.shape[1], HEAD_UNITS),
        nn.Sequential(nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(HEAD_UNITS, 1),
    )
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.3)
    steps = max(1, epochs * len(labels) // 256)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (256,))
        loss = F.binary_cross_entropy_with_logits(head(features[chosen]).squeeze(1), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.eval()


def save_head(head: nn.Sequential, path: Path, *, default_agg: str = "last") -> None:
    """Write the head as ``load.load_shared_head`` reads it."""
    tensors = {f"score.{name}": p.detach().contiguous() for name, p in head.named_parameters()}
    save_file(tensors, path, metadata={"default_agg": default_agg, "read": "last token of a step"})


# -- a token classifier ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ClassifierTraining:
    """Settings of a token classifier's training; the defaults are of TRL's recipes."""

    epochs: float = 1.0
    lr: float = 1e-5
    batch: int = 32
    warmup: float = 0.05
    seed: int = 0
    lora_rank: int = 0  # 0 trains every weight

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


def step_loss(model: Any, rows: Sequence[Row], pad: int, total: int) -> Tensor:
    """The rows' share of the batch's loss: cross-entropy at the read positions, over ``total`` of them."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [pad] * (width - len(row.ids)) for row in rows])
    mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
    logits = model(input_ids=ids, attention_mask=mask).logits.float()
    z = torch.cat([(part[row.reads, 1] - part[row.reads, 0]) for part, row in zip(logits, rows, strict=True)])
    return F.binary_cross_entropy_with_logits(z, labels_of(rows), reduction="sum") / total


def train_classifier(
    start: Path, rows: Sequence[Row], layout: Layout, settings: ClassifierTraining, out: Path
) -> None:
    """Train a token classifier from the model in ``start`` and write it to ``out``, ready for ``load_prm``.

    Raises:
        WcseError: no rows, or LoRA was asked for without the package peft.
    """
    from transformers import AutoModelForTokenClassification

    if not rows:
        raise WcseError("no labelled step is left to train on; see the messages above")
    torch.manual_seed(settings.seed)
    model = AutoModelForTokenClassification.from_pretrained(start, num_labels=2, dtype=torch.float32)
    trained = _with_lora(model, settings.lora_rank) if settings.lora_rank else model
    trained.train()
    for module in trained.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    _fit(trained, rows, settings, pad=layout.tokenizer.pad_token_id or 0)
    model = trained.merge_and_unload() if settings.lora_rank else trained
    model.config.wcse = {
        "family": layout.family.name,
        "separator": layout.family.separator if layout.separator is None else layout.separator,
        "default_agg": layout.family.agg,
    }
    model.save_pretrained(out)
    layout.tokenizer.save_pretrained(out)


def _fit(model: Any, rows: Sequence[Row], settings: ClassifierTraining, *, pad: int) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=0.0)
    steps = max(1, round(settings.epochs * len(rows) / settings.batch))
    warm = max(1, round(settings.warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))
    )
    for _, batch in zip(range(steps), _batches(rows, settings.batch, Random(settings.seed)), strict=False):
        total = sum(len(row.reads) for row in batch)
        optimizer.zero_grad()
        for part in _parts(batch):
            step_loss(model, part, pad, total).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()


def _batches(rows: Sequence[Row], size: int, rng: Random) -> Iterator[list[Row]]:
    """Batches in random order, pass after pass."""
    while True:
        order = rng.sample(list(rows), len(rows))
        yield from (order[i : i + size] for i in range(0, len(order), size))


def _parts(batch: Sequence[Row], tokens: int = 4096) -> Iterator[list[Row]]:
    """The batch in parts of like lengths that fit in memory."""
    part: list[Row] = []
    for row in sorted(batch, key=lambda row: len(row.ids)):
        if part and (len(part) + 1) * len(row.ids) > tokens:
            yield part
            part = []
        part.append(row)
    yield part


def _with_lora(model: Any, rank: int) -> Any:
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError:
        raise WcseError(
            f"lora_rank={rank}: needs the package peft; pip install peft, or train every weight"
        ) from None
    return get_peft_model(model, LoraConfig(task_type=TaskType.TOKEN_CLS, r=rank, lora_alpha=2 * rank))
