"""Readers: what a verifier makes of the rows that it reads. Know spans and decoders, not queues or formats.

A reader puts a batch of spans through a runner and gives one number for each span that is now whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import torch

from wcse.engine.runner import Runner, Work
from wcse.engine.spans import Span
from wcse.kernels.copies import join_rows
from wcse.reward.head import Head
from wcse.types import Node


class Reader(Protocol):
    """Runs a batch. ``whole`` are the spans of it whose value is wanted, all of them stored to their end.

    They are read for ``nodes``, each after those above it.
    """

    def __call__(
        self, runner: Runner, work: Work, whole: Sequence[Span], nodes: Sequence[Node]
    ) -> list[float]: ...


@dataclass(frozen=True)
class HeadReader:
    """A head on the hidden state at a span's last token; no other row reaches it."""

    head: Head

    def __call__(
        self, runner: Runner, work: Work, whole: Sequence[Span], nodes: Sequence[Node]
    ) -> list[float]:
        hidden = runner.run(work)
        at = {span: i for i, span in enumerate(work.spans)}
        return self.head.score_nodes(hidden, nodes, [at[span] for span in whole]) if whole else []


@dataclass(slots=True)
class _Tally:
    """Log-probability of the first ``counted`` tokens of a span, given all before it."""

    total: float = 0.0
    counted: int = 0
    state: torch.Tensor | None = None  # hidden state of the last counted token, which predicts the next


class LogprobReader:
    """The log-probability of all tokens from the end of the prompt to the end of a span.

    Sums are kept with the spans, so a token is counted once even when its keys and values are evicted and made
    again. Only the rows that predict new tokens meet the vocabulary, a few at a time.
    """

    def __init__(self) -> None:
        self._tallies: WeakKeyDictionary[Span, _Tally] = WeakKeyDictionary()

    def __call__(
        self, runner: Runner, work: Work, whole: Sequence[Span], nodes: Sequence[Node]
    ) -> list[float]:
        hidden = runner.run(work, every_row=True)
        parts: list[tuple[_Tally, int]] = []
        rows: list[torch.Tensor] = []
        tokens: list[int] = []
        begin = 0
        for span, count in zip(work.spans, work.counts, strict=True):
            states, first = hidden[begin : begin + count], span.n_kv - count
            begin += count
            tally = self._tally(span)
            new = first + count - tally.counted
            if new <= 0:
                continue
            if not span.prompt:
                assert tally.state is not None
                rows += [tally.state[None], states[tally.counted - first : -1]]
                tokens += span.tokens[tally.counted : first + count]
                parts.append((tally, new))
            tally.counted += new
            tally.state = states[-1].clone()
        if tokens:
            logprobs = runner.decoder.logprobs(
                join_rows(rows), torch.tensor(tokens, dtype=torch.int32)
            ).tolist()
            begin = 0
            for tally, new in parts:
                for logprob in logprobs[begin : begin + new]:  # in order, however the span was cut
                    tally.total += logprob
                begin += new
        return [sum(self._tallies[s].total for s in span.lineage() if not s.prompt) for span in whole]

    def _tally(self, span: Span) -> _Tally:
        if span not in self._tallies:
            above = self._tallies.get(span.parent) if span.parent is not None else None
            self._tallies[span] = _Tally(state=above.state if above else None)
        return self._tallies[span]
