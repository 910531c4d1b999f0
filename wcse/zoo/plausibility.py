"""Dense lessons for the separate verifier: how plausible a stronger policy finds every token of a solution.

Labels of steps are few and noisy, and mostly say which problems are hard. A stronger policy's probabilities say
token by token where a solution goes wrong. A verifier that starts from that policy, with layers on top, can
compare each token with the prediction that the layers below made for it. Only targets of auxiliary heads are
made here; the verifier's score is trained on labels alone (``train_prm``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .tiny_llama import TinyLlama


@dataclass(frozen=True)
class Reading:
    """One solution twice: as the verifier reads it and as the policy wrote it. The last ``written`` ids of both
    are the same tokens, but for the end token, which the verifier reads as a separator."""

    ids: list[int]
    reads: list[int]
    labels: list[float]
    policy_ids: list[int]
    written: int


def deepen(model: TinyLlama, layers: int) -> TinyLlama:
    """The model with ``layers`` more on top that begin as the identity."""
    config = replace(model.config, num_hidden_layers=model.config.num_hidden_layers + layers)
    deeper = TinyLlama(config)
    deeper.load_state_dict(model.state_dict(), strict=False)
    old = set(model.state_dict())
    for name, weight in deeper.named_parameters():
        if name not in old and name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(weight)
    return deeper


def padded(rows: Sequence[list[int]], pad: int) -> Tensor:
    """Right-padded ids [rows, longest]."""
    width = max(map(len, rows))
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows])


@torch.no_grad()
def token_plausibility(teacher: TinyLlama, batch: Sequence[Reading], pad: int) -> list[Tensor]:
    """For each solution, log(p(token) / p(likeliest token)) of its written tokens, at most 0."""
    ids = padded([reading.policy_ids for reading in batch], pad)
    states = teacher.hidden(ids)
    out = []
    for row, reading in enumerate(batch):
        end = len(reading.policy_ids)
        begin = end - reading.written
        logits = teacher.logits(states[row, begin - 1 : end - 1]).float()
        chosen = logits.gather(1, ids[row, begin:end, None])[:, 0]
        out.append(chosen - logits.max(dim=1).values)
    return out
