"""A process reward model in transformers, as search-and-learn runs one: token classification, whole sequences.

For the sides whose environment has transformers. It knows nothing of policies or searches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

BATCH = 16  # sequences that the full scoring reads at once


class Verifier:
    """A token-classification model; a step ends in the separator, where its score is read."""

    def __init__(self, path: str, dtype: torch.dtype) -> None:
        self.model = AutoModelForTokenClassification.from_pretrained(path, dtype=dtype).eval()
        self.separator = AutoTokenizer.from_pretrained(path).encode("\n\n", add_special_tokens=False)

    def closed(self, steps: torch.Tensor) -> torch.Tensor:
        """Steps [n, tokens] with the separator behind them."""
        return torch.cat([steps, torch.tensor([self.separator] * len(steps))], dim=1)

    def full(self, paths: torch.Tensor, on_batch: Callable[[], None]) -> list[float]:
        """Scores after the last token of whole paths [n, tokens], read from their beginnings."""
        logits = []
        for part in paths.split(BATCH):
            logits.append(self.model(part, use_cache=False).logits[:, -1])
            on_batch()
        return good(torch.cat(logits))


def good(logits: torch.Tensor) -> list[float]:
    """Probabilities [n] of the second of two classes."""
    return list(logits.float().softmax(-1)[:, 1].tolist())
