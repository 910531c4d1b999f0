"""The policy's own uncertainty as a verifier: no second model, no token read, nothing stored but one number a token.

Scores are unbounded and larger is surer: the mean over a step's tokens of a measure of the distribution that each
was drawn from, at temperature 1. Adding a measure is one entry of ``MEASURES``. Knows nothing of formats or heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from wcse.engine.driver import Done
from wcse.engine.engine import Engine
from wcse.engine.growth import Account, Root
from wcse.flops import ModelCost
from wcse.reward.scorer import blank
from wcse.types import Node, WcseError

Measure = Callable[[torch.Tensor], torch.Tensor]
"""From logits [rows, vocabulary] to one number a row."""


def negative_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Sum of p log p, in nats."""
    logprobs = logits.log_softmax(-1)
    return (logprobs.exp() * logprobs.clamp(min=-1e4)).sum(-1)  # a probability of 0 adds 0, not NaN


def self_certainty(logits: torch.Tensor) -> torch.Tensor:
    """KL divergence from the uniform distribution to p, in nats (arXiv 2502.18581)."""
    return -logits.log_softmax(-1).mean(-1) - math.log(logits.shape[-1])


MEASURES: dict[str, Measure | None] = {
    "mean_logprob": None,  # of the drawn tokens themselves, which every node carries anyway
    "entropy": negative_entropy,
    "self_certainty": self_certainty,
}


class PolicyScorer:
    """Scores a step by how sure the policy was of its tokens.

    Raises:
        WcseError: no such measure.
    """

    default_agg = "mean"
    bounded = False
    cost: ModelCost | None = None
    waiting = 0

    def __init__(self, engine: Engine, measure: str) -> None:
        if measure not in MEASURES:
            raise WcseError(f"prm='policy:{measure}': unknown measure; known: {', '.join(MEASURES)}")
        self.engine = engine
        engine.measure = MEASURES[measure]

    def submit(self, root: Root, problem: str, node: Node, done: Done) -> None:
        """Scores at once; a step without tokens of its own scores NaN."""
        if blank(node):
            done(None)
            return
        values = node.logprobs if self.engine.measure is None else self.engine.measured.get(node, ())
        done(math.fsum(values) / len(values) if values else math.nan)

    def step(self) -> None:
        """Nothing ever waits."""

    def account(self, root: Root) -> Account:
        """Always empty: nothing is read twice."""
        return Account()

    def abort(self, root: Root) -> None:
        """Nothing is queued."""

    def reset(self) -> None:
        """Nothing is queued, and nothing of its own is stored."""
