"""Labelled steps as rows of token ids, and the training of a head on a policy's own states.

What is trained is what a scorer reads: ids and read positions come from ``layout``, the same code that runs in a
search. Whole models are trained in ``finetuning``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from wcse.engine.runner import Runner
from wcse.engine.spans import Span
from wcse.models.load import LoadedModel
from wcse.reward.families import Family
from wcse.reward.layout import Layout
from wcse.types import WcseError

VALIDATION_SHARE = 0.1
HEAD_UNITS = 256
FEATURE_TOKENS = 2048  # of one batch of the policy


@dataclass(frozen=True)
class Row:
    """A solution as token ids with the positions that are read and their labels.

    The first ``prompt`` ids are the problem; rows of one ``group`` belong to one problem. ``base`` holds log p
    of the path up to each read position under the reference of an implicit model.
    """

    ids: list[int]
    reads: list[int]
    labels: list[float]
    prompt: int
    group: str
    base: list[float] = field(default_factory=list)


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
        if not _labelled(row):
            raise WcseError(
                f"{path}, row {number}: needs prompt, completions and as many labels as completions"
            )
    return rows


def _labelled(row: Any) -> bool:
    if not isinstance(row, dict) or not {"prompt", "completions", "labels"} <= row.keys():
        return False
    steps, labels = row["completions"], row["labels"]
    return isinstance(steps, list) and isinstance(labels, list) and len(steps) == len(labels)


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
    runner = Runner(model.decoder, num_pages=(FEATURE_TOKENS + longest) // 8)
    parts: list[Tensor] = []
    todo = list(reversed(rows))
    while todo:
        batch: list[tuple[Row, Span]] = []
        work = runner.begin()
        while todo and (not batch or work.tokens + len(todo[-1].ids) <= FEATURE_TOKENS):
            row = todo.pop()
            span = Span(None, row.ids)
            if not runner.store(work, span, len(row.ids)):
                raise RuntimeError("the pages are counted for the longest row and one batch")
            batch.append((row, span))
        hidden = runner.run(work, every_row=True)
        begin = 0
        for row, span in batch:
            parts.append(hidden[begin : begin + len(row.ids)][row.reads])
            begin += len(row.ids)
            runner.release(span)
    return torch.cat(parts)


def train_head(features: Tensor, labels: Tensor, *, epochs: float, seed: int) -> nn.Sequential:
    """Two layers from a state to one logit. Half the inner units are dropped: labels are few and noisy.

    Args:
        features: float32 [reads, hidden size].
        labels: float32 [reads], 0 to 1.
        epochs: passes, in batches of 256.

    Raises:
        WcseError: no passes.
    """
    if not epochs > 0:
        raise WcseError(f"epochs={epochs:g}: must be positive")
    torch.manual_seed(seed)
    head = nn.Sequential(
        nn.Linear(features.shape[1], HEAD_UNITS),
        nn.Sequential(nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(HEAD_UNITS, 1),
    )
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.3)
    steps = max(1, int(epochs * len(labels)) // 256)
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
