"""Heads that turn a hidden state into a step's score. Knows nothing of models, formats or search.

Only the rows at step ends ever reach a head, and a head has one or two outputs: no logits over the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from wcse.kernels import ops
from wcse.types import WcseError


@dataclass(frozen=True)
class Head:
    """Linear layers with ReLU between them, then a link to a probability.

    Args:
        layers: (weight [out, in], bias [out] or None) of each linear layer, fp32. The last one has two outputs
            (bad, good), read as softmax, or a single one, read as sigmoid.
    """

    layers: Sequence[tuple[torch.Tensor, torch.Tensor | None]]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores in [0, 1] of hidden states [rows, hidden size] after the final norm.

        Two outputs z0, z1 give softmax(z)[1] = sigmoid(z1 - z0), which never underflows to a wrong rank.
        Each row is computed by itself (sum over the last axis), so a score does not depend on its batch.
        """
        if not hidden.is_cpu:
            return self._on_device(hidden)
        x = hidden.float()
        for i, (weight, bias) in enumerate(self.layers):
            x = (x[:, None, :] * weight).sum(-1)
            if bias is not None:
                x = x + bias
            if i + 1 < len(self.layers):
                x = torch.relu(x)
        return torch.sigmoid(x[:, 1] - x[:, 0] if x.shape[1] == 2 else x[:, 0])

    def _on_device(self, hidden: torch.Tensor) -> torch.Tensor:
        """The same by a GEMM and one kernel; the head's layers must lie where the hidden states are."""
        *first, (weight, bias) = self.layers
        x, relu = hidden, False
        for w, b in first:
            x = F.linear(torch.relu(x) if relu else x, w.to(x.dtype), None if b is None else b.to(x.dtype))
            relu = True
        rows = torch.arange(len(x), dtype=torch.int32, device=x.device)
        return ops.score_rows(x, rows, weight, bias, relu=relu)

    def to(self, device: torch.device) -> Head:
        """The head with its layers on a device."""
        return Head([(w.to(device), None if b is None else b.to(device)) for w, b in self.layers])


def head_from_tensors(tensors: Mapping[str, torch.Tensor], hidden_size: int, *, source: str) -> Head:
    """The classification head among a checkpoint's extra tensors.

    Accepts ``score.weight`` (token classification, also under ``classifier``), ``v_head.summary.weight`` and a
    two-layer ``score.0`` / ``score.2``.

    Raises:
        WcseError: no head, or one whose sizes do not fit.
    """
    for names in (("score.0", "score.2"), ("score",), ("classifier",), ("v_head.summary",)):
        if all(f"{name}.weight" in tensors for name in names):
            layers = [(tensors[f"{n}.weight"].float(), _bias(tensors, n)) for n in names]
            break
    else:
        raise WcseError(
            f"prm={source!r}: no classification head among its tensors ({', '.join(sorted(tensors)) or 'none'}); "
            "give a token-classification model (score.weight), or name a prm_family that reads language-model columns"
        )
    size = hidden_size
    for weight, _ in layers:
        if weight.shape[1] != size:
            raise WcseError(f"prm={source!r}: head weight is {tuple(weight.shape)}, expected [*, {size}]")
        size = weight.shape[0]
    if size not in (1, 2):
        raise WcseError(
            f"prm={source!r}: its head has {size} outputs; a PRM has 1 or 2 (is this a causal or a general classifier?)"
        )
    return Head(layers)


def _bias(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor | None:
    bias = tensors.get(f"{name}.bias")
    return None if bias is None else bias.float()
