"""Judges of reasoning: is a solution with the right answer also right on the way?

``steps`` and ``worked`` are exact where steps are calculations, ``prm`` is a threshold on the verifier's
scores, ``human`` reads labels from a CSV file. The rate of wrong reasoning among right answers is the
false-positive rate of Bansal et al. (arXiv 2408.16737, section 4).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

from wcse.names import suggest
from wcse.synth.record import Sample
from wcse.synth.steps import Reasoning, check_steps, check_worked
from wcse.types import Problem, WcseError

Judge = Callable[[Problem, Sample], Reasoning]

Labels = Mapping[tuple[str, str, int, int], Reasoning]
"""Human labels by sample key."""

LABEL_COLUMNS = ("problem", "sampler", "block", "index", "label")
_LABELS = {"right": Reasoning.RIGHT, "wrong": Reasoning.WRONG, "unknown": Reasoning.UNKNOWN}


def by_steps(problem: Problem, sample: Sample) -> Reasoning:
    """``wcse.synth.steps.check_steps``."""
    return check_steps(problem, sample.text, sample.answer)


def by_worked(problem: Problem, sample: Sample) -> Reasoning:
    """``wcse.synth.steps.check_worked``."""
    return check_worked(problem, sample.text)


def by_verifier(threshold: float) -> Judge:
    """Wrong when some step scores below ``threshold``; unknown without scores."""

    def judge(problem: Problem, sample: Sample) -> Reasoning:
        scores = [score for score in sample.step_scores if score is not None]
        if not scores:
            return Reasoning.UNKNOWN
        return Reasoning.RIGHT if min(scores) >= threshold else Reasoning.WRONG

    return judge


def by_labels(labels: Labels) -> Judge:
    """What a person said; unknown where nobody did."""

    def judge(problem: Problem, sample: Sample) -> Reasoning:
        return labels.get(sample.key, Reasoning.UNKNOWN)

    return judge


def read_labels(path: str | Path) -> dict[tuple[str, str, int, int], Reasoning]:
    """Labels from a CSV file with the columns problem, sampler, block, index, label (right, wrong, unknown).

    Raises:
        WcseError: it cannot be read, or a row is not understood; the message names the line.
    """
    labels: dict[tuple[str, str, int, int], Reasoning] = {}
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [name for name in LABEL_COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise WcseError(
                    f"labels {str(path)!r}: no column {', '.join(missing)}; needs {', '.join(LABEL_COLUMNS)}"
                )
            for row in rows:
                key, label = _label(row, f"labels {str(path)!r} line {rows.line_num}")
                labels[key] = label
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise WcseError(f"labels {str(path)!r}: cannot be read: {error}") from error
    return labels


def _label(row: Mapping[str, str | None], where: str) -> tuple[tuple[str, str, int, int], Reasoning]:
    word = (row["label"] or "").strip().lower()
    if word not in _LABELS:
        raise WcseError(f"{where}: label {word!r}{suggest(word, _LABELS)}; use {', '.join(_LABELS)}")
    try:
        key = (row["problem"] or "", row["sampler"] or "", int(row["block"] or ""), int(row["index"] or ""))
    except ValueError:
        raise WcseError(f"{where}: block and index must be whole numbers") from None
    return key, _LABELS[word]
