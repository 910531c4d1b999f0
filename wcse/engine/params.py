"""Sampling parameters under vLLM's names, validated as vLLM does. Knows nothing of models or batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wcse.types import WcseError


def _check(ok: bool, name: str, value: object, fix: str) -> None:
    if not ok:
        raise WcseError(f"{name}={value!r}: {fix}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request is sampled.

    Args:
        n: completions per prompt.
        temperature: 0 takes the most likely token; otherwise logits are divided by it.
        top_p: keep the smallest set of tokens whose probability reaches it, in (0, 1].
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        min_p: drop tokens less likely than this share of the most likely one, in [0, 1].
        max_tokens: cap on the tokens of one completion.
        stop: strings that end the completion; text, ids and logprobs are cut together before the string.
        stop_token_ids: token ids that end the completion besides the model's own.
        ignore_eos: go on after the end-of-sequence token.
        seed: overrides the engine's seed for this request.
        logprobs: return the log-probability of each sampled token (0 or 1; more is not offered).

    Raises:
        WcseError: a value is out of range; the message names field, value and fix.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 256
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        _check(isinstance(self.n, int) and self.n >= 1, "n", self.n, "give an integer of at least 1")
        good = isinstance(self.temperature, int | float) and math.isfinite(self.temperature)
        _check(
            good and 0 <= self.temperature <= 2, "temperature", self.temperature, "give a number in [0, 2]"
        )
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "give a number in (0, 1]")
        _check(
            isinstance(self.top_k, int) and self.top_k >= -1, "top_k", self.top_k, "give -1, 0 (off) or more"
        )
        _check(0 <= self.min_p <= 1, "min_p", self.min_p, "give a number in [0, 1]")
        _check(
            isinstance(self.max_tokens, int) and self.max_tokens >= 1,
            "max_tokens",
            self.max_tokens,
            "give an integer of at least 1",
        )
        _check(all(isinstance(s, str) and s for s in self.stop), "stop", self.stop, "give non-empty strings")
        _check(
            self.logprobs in (None, 0, 1),
            "logprobs",
            self.logprobs,
            "only the sampled token's log-probability is offered: give None, 0 or 1",
        )


@dataclass(frozen=True, slots=True)
class StepRule:
    """Where a step ends: at ``delimiter`` (empty: never) or after ``max_tokens`` tokens (0: no cap)."""

    delimiter: str = "\n\n"
    max_tokens: int = 0


WHOLE = StepRule(delimiter="")
"""A completion is one step."""
