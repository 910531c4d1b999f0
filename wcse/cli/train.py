"""``wcse train``: fine-tune a model on training data and keep the best checkpoint."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from wcse.cli.arguments import numbers, words
from wcse.cli.command import Arguments, Command, Options

if TYPE_CHECKING:
    from wcse.train.trainers import StepReport


def train(options: Options) -> int:
    """Train and say which checkpoint was kept."""
    from transformers.utils import logging

    from wcse.train.config import TrainConfig
    from wcse.train.train import train as run

    options = dict(options)
    quiet = options.pop("quiet", False)
    config = TrainConfig.parse(options)
    logging.disable_progress_bar()
    result = run(config, _Line(quiet=quiet))
    for reason, count in result.left_out.items():
        print(f"wcse: left out {count} rows: {reason}", file=sys.stderr)
    for index, seen in enumerate(result.checkpoints):
        losses = ", ".join(f"{task} loss {loss:.4f}" for task, loss in seen["loss"].items())
        accuracy = "" if seen["accuracy"] is None else f", accuracy {seen['accuracy']:.1%}"
        at = f" at rate {seen['learning_rate']:g}" if len(config.learning_rate) > 1 else ""
        kept = " (kept)" if index == result.best else ""
        print(f"step {seen['step']}/{result.steps}{at}: {losses}{accuracy}{kept}")
    print(f"{result.used} of {result.rows} rows; model: {result.folder}")
    return 0


class _Line:
    """A line of progress every few seconds."""

    def __init__(self, *, quiet: bool, interval: float = 5.0) -> None:
        self._quiet = quiet
        self._interval = interval
        self._written = time.monotonic()

    def __call__(self, report: StepReport) -> None:
        now = time.monotonic()
        if not self._quiet and now - self._written >= self._interval:
            self._written = now
            losses = ", ".join(f"{task} {loss:.4f}" for task, loss in report.losses.items())
            print(f"wcse: step {report.step}/{report.steps}: {losses}", file=sys.stderr)


_OPTIONS: Arguments = (
    ("model", {"metavar": "P", "help": "where to start: folder, embedded name or hub id"}),
    ("data", {"metavar": "FILE", "help": "rows (.jsonl, .parquet), or a folder of wcse synth"}),
    ("out", {"metavar": "DIR", "help": "folder for the trained model"}),
    ("objective", {"metavar": "O", "help": "sft, label or step_by_step (default sft)"}),
    ("samplers", {"type": words, "metavar": "S,S2", "help": "only rows of these samplers of wcse synth"}),
    ("share", {"type": float, "metavar": "S", "help": "share of the problems (default 1.0)"}),
    ("max-steps", {"type": int, "metavar": "K", "help": "optimiser steps; 0 goes by epochs (default 0)"}),
    ("num-train-epochs", {"type": float, "metavar": "E", "help": "passes over the data (default 2.0)"}),
    ("batch-size", {"type": int, "metavar": "B", "help": "rows of a step (default 16)"}),
    (
        "learning-rate",
        {
            "type": numbers(float),
            "metavar": "L,L2",
            "help": "peak rate; validation chooses (default 0.0001)",
        },
    ),
    ("warmup-ratio", {"type": float, "metavar": "W", "help": "share of rising rate (default 0.05)"}),
    ("weight-decay", {"type": float, "metavar": "W", "help": "AdamW's (default 0.0)"}),
    ("max-length", {"type": int, "metavar": "K", "help": "longer rows are left out (default 1024)"}),
    ("alpha", {"type": float, "metavar": "A", "help": "weight of the label, step_by_step (default 0.5)"}),
    (
        "lora-rank",
        {"type": int, "metavar": "R", "help": "LoRA adapters of this rank; 0 trains all (default 0)"},
    ),
    ("checkpoints", {"type": int, "metavar": "C", "help": "validation looks (default 5)"}),
    ("validation", {"metavar": "SPEC", "help": "problems to choose the checkpoint by"}),
    ("validation-limit", {"type": int, "metavar": "K", "help": "only the first K validation problems"}),
    (
        "max-new-tokens",
        {"type": int, "metavar": "K", "help": "most tokens of a validation answer (default 256)"},
    ),
    ("seed", {"type": int, "metavar": "S", "help": "seed of order and adapters (default 42)"}),
    ("threads", {"type": int, "metavar": "T", "help": "CPU threads"}),
    ("quiet", {"action": "store_true", "help": "no progress lines"}),
)

COMMANDS = (
    Command(
        "train",
        "fine-tune a model on training data and keep the best checkpoint",
        train,
        _OPTIONS,
        needs=("model", "data", "out"),
    ),
)
