"""From hidden states to vectors, class probabilities and similarities, under vLLM's task names."""

from __future__ import annotations

import torch

from wcse.models.load import LoadedModel
from wcse.types import WcseError

POOLING_TASKS = ("token_embed", "embed", "token_classify", "classify")


def pool(model: LoadedModel, states: torch.Tensor, task: str) -> torch.Tensor:
    """What ``task`` makes of final-norm hidden states [tokens, hidden size].

    Raises:
        WcseError: the model has no linear score head for the task.
    """
    if task == "token_embed":
        return states
    if task == "embed":
        return torch.nn.functional.normalize(states[-1], dim=0)
    rows = states[-1:] if task == "classify" else states
    tensors = model.extra_tensors()
    weight = tensors.get("score.weight")
    if weight is None:
        raise WcseError(
            f"pooling_task={task!r}: {model.name} has no linear score head (score.weight); use 'token_embed' or 'embed'"
        )
    bias = tensors.get("score.bias")
    logits = torch.nn.functional.linear(rows, weight.float(), None if bias is None else bias.float())
    probabilities = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(-1)
    return probabilities[0] if task == "classify" else probabilities


def similarity(left: torch.Tensor, right: torch.Tensor) -> float:
    """Cosine of the last rows of two texts' hidden states."""
    return float(torch.nn.functional.cosine_similarity(left[-1], right[-1], dim=0))
