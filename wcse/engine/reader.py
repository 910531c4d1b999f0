"""Reads given texts: log-probabilities of their tokens, or hidden states, beside the rows that are written.

One queue; ``step`` puts one batch of waiting tokens through the decoder, so reading and writing take turns. Equal
contexts are read once. Nothing stays in the KV tree afterwards. Knows nothing of sampling, text or formats.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from wcse.engine.draw import TOP_ROWS, Top, top_logprobs
from wcse.engine.engine import Engine
from wcse.engine.runner import KVMemoryError, Span, Work
from wcse.types import WcseError

READ_TOKENS = 1024  # tokens of one batch


@dataclass(eq=False)
class Reading:
    """One text on its way through the model.

    Args:
        context: token ids that are only read; at least one.
        tokens: ids whose log-probabilities are wanted.
        top: most likely tokens to name beside each; -1: all.
        states: keep the hidden states of ``tokens`` instead of log-probabilities.
        done: hears the finished reading.
    """

    context: tuple[int, ...]
    tokens: tuple[int, ...]
    top: int
    states: bool
    done: Callable[[Reading], None]
    tops: list[Top] = field(default_factory=list)  # one for each of ``tokens``
    hidden: list[torch.Tensor] = field(default_factory=list)  # [tokens of one batch, hidden size] each
    span: Span | None = None
    counted: int = 0
    before: torch.Tensor | None = None  # hidden state before the next token to count

    @property
    def logprobs(self) -> list[float]:
        """Log-probability of each of ``tokens``, given all before it."""
        return [top[token][0] for token, top in zip(self.tokens, self.tops, strict=True)]

    @property
    def greedy(self) -> bool:
        """Each of ``tokens`` is the most likely one."""
        return all(top[token][1] == 1 for token, top in zip(self.tokens, self.tops, strict=True))


class Reader:
    """Reads with an engine's model, in the engine's KV memory."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._queue: deque[Reading] = deque()
        self._contexts: dict[tuple[int, ...], Span] = {}

    def submit(
        self,
        context: Sequence[int],
        tokens: Sequence[int],
        done: Callable[[Reading], None],
        *,
        top: int = 0,
        states: bool = False,
    ) -> Reading:
        """Queue a text.

        Raises:
            WcseError: it is empty or does not fit in the model's context.
        """
        total = len(context) + len(tokens)
        if not tokens or not (context or states):
            raise WcseError("text: it has no tokens to read; give at least a token before those to score")
        if total > self.engine.model.context:
            raise WcseError(
                f"text: it has {total} tokens and the model's context is {self.engine.model.context}; shorten it"
            )
        reading = Reading(tuple(context), tuple(tokens), top, states, done)
        self._queue.append(reading)
        return reading

    def cancel(self, reading: Reading) -> None:
        """Forget a queued reading; nobody hears of it."""
        if reading in self._queue:
            self._queue.remove(reading)
            self._drop(reading)

    def reset(self) -> None:
        """Forget everything queued."""
        for reading in list(self._queue):
            self.cancel(reading)

    @property
    def waiting(self) -> int:
        """Readings that are queued."""
        return len(self._queue)

    def step(self) -> None:
        """Read one batch.

        Raises:
            KVMemoryError: one text alone does not fit in the KV memory.
        """
        runner = self.engine.runner
        work = runner.begin()
        touched: list[Reading] = []
        finished: list[Reading] = []
        for reading in list(self._queue):
            span, before = self._span(reading), work.tokens
            above = span.parent
            if above is not None and above in work.spans:
                continue  # the state after its context is known when this batch has run
            first = above if above is not None and above.hidden is None else span
            whole = runner.store(work, first, READ_TOKENS - before)
            if first is span and work.tokens > before:
                touched.append(reading)
            if not whole:
                break
            if first is span:
                finished.append(reading)
        if not work.tokens and self._queue:
            if self._make_room(self._queue[0]):
                self.step()
            return
        self._run(work, touched)
        for reading in finished:
            self._queue.remove(reading)
            self._drop(reading)
        for reading in finished:
            reading.done(reading)

    def _run(self, work: Work, touched: list[Reading]) -> None:
        states = self.engine.runner.run(work, every_row=True)
        by_span = {reading.span: reading for reading in touched}
        begin = 0
        for span, count in zip(work.spans, work.counts, strict=True):
            rows, begin = states[begin : begin + count], begin + count
            if span in by_span:
                self._count(by_span[span], rows, span.n_kv - count)
            elif span.n_kv == len(span.tokens):
                span.hidden = rows[-1].clone()

    def _count(self, reading: Reading, rows: torch.Tensor, first: int) -> None:
        """Take in the states of tokens ``first ..`` of a reading; those seen before an eviction are skipped."""
        skip = reading.counted - first
        if skip >= len(rows):
            return
        rows = rows[max(skip, 0) :]
        tokens = reading.tokens[reading.counted : reading.counted + len(rows)]
        reading.counted += len(rows)
        if reading.states:
            reading.hidden.append(rows.clone())
            return
        assert reading.span is not None and reading.span.parent is not None
        last = reading.before if reading.before is not None else reading.span.parent.hidden
        assert last is not None
        predicting = torch.cat([last[None], rows[:-1]])
        reading.before = rows[-1].clone()
        for begin in range(0, len(rows), TOP_ROWS):
            logits = self.engine.model.decoder.logits(predicting[begin : begin + TOP_ROWS])
            part = tokens[begin : begin + TOP_ROWS]
            reading.tops += top_logprobs(logits, part, [reading.top] * len(part))

    def _span(self, reading: Reading) -> Span:
        if reading.span is None:
            parent = None
            if reading.context:
                parent = self._contexts.get(reading.context)
                if parent is None:
                    parent = Span(None, reading.context)
                    parent.closed = True
                    self._contexts[reading.context] = parent
            reading.span = Span(parent, reading.tokens)
            reading.span.closed = True
        return reading.span

    def _make_room(self, reading: Reading) -> bool:
        """Evict idle spans for a text that got no page; an error when even that cannot help."""
        runner, span = self.engine.runner, self._span(reading)
        busy = [row.span for row in self.engine.rows]
        need = min(runner.missing(span), READ_TOKENS) // 16 + 2
        if runner.evict_idle(need, [*busy, span]) or runner.room > 0:
            return True
        if busy:
            return False  # rows that are written will end and free their pages
        raise KVMemoryError(
            f"KV memory: a text of {span.depth} tokens does not fit in {runner.tree.stats()['total']} pages; "
            "give more memory (kv_memory) or a shorter text"
        )

    def _drop(self, reading: Reading) -> None:
        """Give back the pages of a text, and those of its context when no other text waits for it."""
        runner = self.engine.runner
        if reading.span is not None:
            runner.release(reading.span)
        if reading.context and not any(other.context == reading.context for other in self._queue):
            parent = self._contexts.pop(reading.context, None)
            if parent is not None:
                runner.release(parent)
