"""The summary as a plain-text table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wcse.report.plots import short

_HEAD = (
    "strategy",
    "accuracy",
    "95 % interval",
    "any right",
    "policy tokens",
    "reused",
    "PRM tokens",
    "reused",
    "sharing",
    "seconds",
)


def summary_table(summary: Mapping[str, Any]) -> str:
    """One row a strategy; token counts are totals of what was computed, "reused" is what the tree saved."""
    rows = [_row(name, numbers) for name, numbers in summary["strategies"].items()]
    return align([_HEAD, *_one_sample(summary), *rows])


def _one_sample(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The mean accuracy of one sample, where several were drawn: what a search has to beat."""
    for numbers in summary["strategies"].values():
        if numbers["pass@1"] is not None and numbers["solutions"] > numbers["problems"]:
            interval = f"{numbers['pass@1_low']:.1%} - {numbers['pass@1_high']:.1%}"
            return [("one sample (pass@1)", f"{numbers['pass@1']:.1%}", interval, *[""] * (len(_HEAD) - 3))]
    return []


def _row(name: str, numbers: Mapping[str, Any]) -> tuple[str, ...]:
    graded = numbers["accuracy"] is not None
    return (
        name,
        f"{numbers['accuracy']:.1%}" if graded else "not graded",
        f"{numbers['accuracy_low']:.1%} - {numbers['accuracy_high']:.1%}" if graded else "",
        f"{numbers['coverage']:.1%}" if graded else "",
        short(numbers["policy_tokens_computed"]),
        short(numbers["policy_tokens_reused"]),
        short(numbers["prm_tokens_computed"]),
        short(numbers["prm_tokens_reused"]),
        f"{numbers['sharing_factor']:.1f}x",
        f"{numbers['seconds']:.1f}",
    )


def align(rows: Sequence[Sequence[str]]) -> str:
    """The rows as columns, the first of them left-aligned, with a rule below the first row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
