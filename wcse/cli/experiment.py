"""``wcse experiment ...``: studies that run end to end and print their tables."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from wcse.cli.arguments import numbers, prices, yes_or_no
from wcse.cli.command import Arguments, Command, Options


def paper(options: Options) -> int:
    """Weak against strong data at equal cost, proven by fine-tuning."""
    from transformers.utils import logging

    from wcse.train.experiment import PaperConfig, run_paper

    options = dict(options)
    quiet = options.pop("quiet", False)
    logging.disable_progress_bar()
    config = PaperConfig.parse(options)

    def say(line: str) -> None:
        if not quiet:
            print(f"wcse: {line}", file=sys.stderr)

    results = run_paper(config, say)
    print(_text(results))
    for run in results["runs"]:
        spent = f"{run['wall_seconds'] / 60:.1f} minutes, {run['cpu_seconds'] / 60:.1f} of CPU time"
        say(f"{run['cells']} cells with {run['workers']} workers from {run['started']}: {spent}")
    return 0


def _text(results: Mapping[str, Any]) -> str:
    from wcse.synth.card import costs_table, measures_tables, table

    parts = []
    for n, measures in results["data"].items():
        says = "\n".join(balance["says"] for balance in measures["match"]["balances"])
        parts.append(f"## Data, {n} samples of se a problem\n\n{costs_table(measures)}\n{says}\n")
        parts.append(measures_tables(measures))
    parts.append("## Students: greedy accuracy on the test problems, mean over seeds (± standard error)\n")
    head = (
        "set-up",
        "budget",
        "base",
        "on wc data",
        "on se data",
        "wc - se (95 %)",
        "rates wc : se",
        "maj@k wc : se",
    )
    rows = [
        (
            row["setup"],
            row["budget"],
            f"{row['base']:.1%}",
            _mean(row["wc"], row["wc_error"]),
            _mean(row["se"], row["se_error"]),
            _difference(row),
            f"{_rates(row['wc_rates'])} : {_rates(row['se_rates'])}",
            ", ".join(f"{k}: {v:.1%} : {row['se_maj'][k]:.1%}" for k, v in row["wc_maj"].items()),
        )
        for row in results["matrix"]
    ]
    parts.append(table(head, rows))
    if results["step_by_step"]:
        parts.append("## Distilling Step-by-Step: accuracy by share of the data\n")
        lines = [
            (
                f"{row['share']:.1%}",
                _mean(row["label"], row["label_error"]),
                _mean(row["step_by_step"], row["step_by_step_error"]),
                _difference(row),
                f"{_rates(row['label_rates'])} : {_rates(row['step_by_step_rates'])}",
            )
            for row in results["step_by_step"]
        ]
        shares = ("data", "label only", "label and rationale", "difference (95 %)", "rates")
        parts.append(table(shares, lines))
    return "\n".join(parts)


def _mean(value: float, error: float | None) -> str:
    return f"{value:.1%}" if error is None else f"{value:.1%} ± {error:.1%}"


def _rates(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)


def _difference(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['difference']:+.1%} ({low:+.1%} .. {high:+.1%})"


_PAPER: Arguments = (
    ("wc", {"metavar": "P", "help": "weak, cheap model"}),
    ("se", {"metavar": "P", "help": "strong, expensive model"}),
    ("distil", {"metavar": "P", "help": "third model, student of both (default: none)"}),
    (
        "distil-layers",
        {"type": numbers(int), "metavar": "I,I2", "help": "only these layers of it (default: all)"},
    ),
    ("problems", {"metavar": "SPEC", "help": "problems to sample on"}),
    ("validation", {"metavar": "SPEC", "help": "problems that choose rates and checkpoints"}),
    ("test", {"metavar": "SPEC", "help": "problems of the final scores"}),
    ("match", {"metavar": "M", "help": "flops, params, money, seconds or samples (default flops)"}),
    ("wc-price", {"type": prices, "metavar": "IN,OUT", "help": "for the match money"}),
    ("se-price", {"type": prices, "metavar": "IN,OUT", "help": "for the match money"}),
    (
        "budgets",
        {"type": numbers(int), "metavar": "N,N2", "help": "samples per problem of se (default 1,10)"},
    ),
    (
        "steps",
        {
            "type": numbers(int),
            "metavar": "K,K2",
            "help": "optimiser steps at each budget (default 40,80)",
        },
    ),
    ("temperature", {"type": float, "metavar": "T", "help": "of the samplers (default 0.8)"}),
    ("max-tokens", {"type": int, "metavar": "K", "help": "most tokens of a solution (default 256)"}),
    (
        "learning-rate",
        {
            "type": numbers(float),
            "metavar": "L,L2",
            "help": "peaks; validation chooses on the first seed (default 0.00005,0.0002,0.0008)",
        },
    ),
    ("batch-size", {"type": int, "metavar": "B", "help": "rows of a step (default 8)"}),
    ("checkpoints", {"type": int, "metavar": "C", "help": "validation looks (default 2)"}),
    ("seeds", {"type": int, "metavar": "S", "help": "training runs of each cell (default 3)"}),
    ("samples", {"type": int, "metavar": "K", "help": "samples per test problem for maj@k (default 4)"}),
    ("step-by-step", {"type": yes_or_no, "metavar": "YES", "help": "also label against label and rationale"}),
    ("out", {"metavar": "DIR", "help": "directory of the experiment; the same command goes on there"}),
    ("keep-students", {"action": "store_true", "help": "leave the trained students in its cells/"}),
    ("workers", {"type": int, "metavar": "W", "help": "processes that sample and train at once (default 1)"}),
    ("threads", {"type": int, "metavar": "T", "help": "CPU threads of a worker"}),
    ("quiet", {"action": "store_true", "help": "no progress lines"}),
)

COMMANDS = (
    Command(
        "experiment wcse-paper",
        "weak against strong training data at equal cost, proven by fine-tuning students",
        paper,
        _PAPER,
        needs=("wc", "se", "out"),
    ),
)
