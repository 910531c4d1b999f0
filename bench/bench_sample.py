"""The sampler beside torch's sort-based top-p and multinomial: 256 draws of 151,936 logits, top-p 0.95.

"flat" logits are normal, so that most of the vocabulary counts; "peaked" ones fall off as a language model's do.
Floor: one read of the logits.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timing import versus

from wcse.kernels import ops

VOCAB = 151_936
TOP_P = 0.95


def top_p_multinomial(logits: torch.Tensor) -> torch.Tensor:
    """What vLLM's torch sampler does: sort, cumulate, mask, scatter back, draw."""
    ordered, ids = logits.sort(dim=-1)
    keep = ordered.softmax(-1).cumsum(-1) > 1 - TOP_P
    keep[:, -1] = True
    masked = torch.empty_like(logits).scatter_(-1, ids, ordered.masked_fill(~keep, -float("inf")))
    return torch.multinomial(masked.softmax(-1), 1)


def make_logits(kind: str, draws: int) -> torch.Tensor:
    logits = torch.randn(draws, VOCAB, generator=torch.Generator().manual_seed(0))
    if kind == "flat":
        return logits
    rank = torch.arange(1, VOCAB + 1).log()  # about Zipf with exponent 1.5, noisy, in scattered ids
    return logits + (-1.5 * rank)[torch.randperm(VOCAB, generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize("threads", [1, 2], ids=["1thread", "2threads"])
@pytest.mark.parametrize("kind", ["flat", "peaked"])
def test_top_p(benchmark: Any, kind: str, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    draws = 4 if benchmark.disabled else 256
    logits = make_logits(kind, draws)
    index = torch.arange(draws, dtype=torch.int32)
    ones, zeros = torch.ones(draws), torch.zeros(draws)
    args = (
        index,
        ones,
        torch.zeros_like(index),
        ones * TOP_P,
        zeros,
        torch.arange(draws),
        torch.zeros_like(index),
    )

    def ours() -> torch.Tensor:
        return ops.sample(logits, *args)[0]

    def torch_top_p() -> torch.Tensor:
        return top_p_multinomial(logits)

    with torch.inference_mode():
        assert bool((ours() >= 0).all())
        # A weight, its sum and a comparison for every logit, which is read once.
        versus(benchmark, ours, torch_top_p, flops=3.0 * logits.numel(), bytes=logits.nbytes, rounds=1)
    torch.set_num_threads(before)
