"""How good step scores are against labels: ranking, calibration. Knows nothing of models or files."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def auc(scores: Tensor, labels: Tensor) -> float:
    """The chance that a good step (label above one half) scores above a bad one; ties count half.

    NaN where all labels are of one kind. ``scores`` and ``labels`` are [steps].
    """
    good, bad = scores[labels > 0.5], scores[labels <= 0.5].sort().values
    if len(good) == 0 or len(bad) == 0:
        return math.nan
    below, upto = torch.searchsorted(bad, good), torch.searchsorted(bad, good, right=True)
    return float((below + upto).double().mean() / (2 * len(bad)))


def calibration_error(scores: Tensor, labels: Tensor, bins: int = 10) -> float:
    """Expected calibration error of probabilities over equal-width bins."""
    bucket = (scores * bins).long().clamp(max=bins - 1)
    gaps = [(scores[bucket == b].sum() - labels[bucket == b].sum()).abs() for b in range(bins)]
    return float(torch.stack(gaps).sum() / len(scores))


def within_group_auc(groups: Sequence[str], scores: Tensor, labels: Tensor) -> float:
    """The AUC between the members of one group, averaged over the groups that have both kinds; NaN if none has."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    values = [auc(scores[group], labels[group]) for group in members.values()]
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan


def summary(scores: Tensor, labels: Tensor, counts: Sequence[int], groups: Sequence[str]) -> dict[str, float]:
    """What a model card reports.

    Args:
        scores, labels: of all steps of all solutions in turn.
        counts: steps of each solution.
        groups: the problem of each solution.
    """
    ends = torch.tensor(counts).cumsum(0) - 1
    return {
        "steps": len(labels),
        "mean_label": round(float(labels.mean()), 4),
        "auc": round(auc(scores, labels), 4),
        "within_problem_auc": round(within_group_auc(groups, scores[ends], labels[ends]), 4),
        "accuracy": round(float(((scores > 0.5) == (labels > 0.5)).double().mean()), 4),
        "ece": round(calibration_error(scores, labels), 4),
    }
