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
from wcse.engine.runner import KVMemoryError, Work
from wcse.engine.spans import Span
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
    counted: int = 0  # tokens of the span whose states were taken in
    begun: bool = False  # its first token was predicted, from the state after the context

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
        if total - (not states) > self.engine.model.context:  # the last token is predicted, not read
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
        stuck = False
        for reading in list(self._queue):
            span, before = self._span(reading), work.tokens
            above = span.parent
            if above is not None and above in work.spans:
                continue  # the state after its context is known when this batch has run
            first = above if above is not None and above.hidden is None else span
            whole = first is span and not span.tokens  # a single token: the context's state predicts it
            whole = whole or runner.store(work, first, READ_TOKENS - before)
            if first is span:
                touched.append(reading)
            if not whole:
                stuck = work.tokens == 0
                break
            if first is span:
                finished.append(reading)
        if stuck and not finished:
            if self._make_room(self._queue[0]):
                self.step()
            return
        with runner.lane.entered():
            self._run(work, touched)
        for reading in finished:
            self._queue.remove(reading)
            self._drop(reading)
        for reading in finished:
            reading.done(reading)

    def _run(self, work: Work, touched: list[Reading]) -> None:
        states = self.engine.runner.run(work, every_row=True)
        rows_of: dict[Span, torch.Tensor] = {}
        begin = 0
        for span, count in zip(work.spans, work.counts, strict=True):
            rows_of[span] = states[begin : begin + count]
            begin += count
        wanted: list[tuple[Reading, torch.Tensor]] = []
        for reading in touched:
            assert reading.span is not None
            wanted += self._take(reading, rows_of.pop(reading.span, None))
        for span, rows in rows_of.items():  # contexts
            if span.n_kv == len(span.tokens):
                span.hidden = rows[-1].clone()
        for begin in range(0, len(wanted), TOP_ROWS):
            self._predict(wanted[begin : begin + TOP_ROWS])

    def _take(self, reading: Reading, rows: torch.Tensor | None) -> list[tuple[Reading, torch.Tensor]]:
        """The new states of a reading that predict one of its tokens each; those seen before are skipped."""
        span, found = reading.span, []
        assert span is not None
        if not reading.begun and not reading.states:
            assert span.parent is not None and span.parent.hidden is not None
            found.append((reading, span.parent.hidden))
        reading.begun = True
        if rows is None:
            return found
        new = rows[max(0, reading.counted - (span.n_kv - len(rows))) :]
        reading.counted += len(new)
        if reading.states:
            reading.hidden.append(new.clone().cpu())
            return found
        return found + [(reading, row) for row in new]

    def _predict(self, wanted: list[tuple[Reading, torch.Tensor]]) -> None:
        logits = self.engine.model.decoder.logits(torch.stack([state for _, state in wanted]))
        # Each row predicts the token that its reading has not got yet; a reading may have several rows here.
        ahead: dict[Reading, int] = {}
        tokens = []
        for reading, _ in wanted:
            tokens.append(reading.tokens[len(reading.tops) + ahead.get(reading, 0)])
            ahead[reading] = ahead.get(reading, 0) + 1
        tops = top_logprobs(logits, tokens, [reading.top for reading, _ in wanted])
        for (reading, _), top in zip(wanted, tops, strict=True):
            reading.tops.append(top)

    def _span(self, reading: Reading) -> Span:
        if reading.span is None:
            parent = None
            if reading.context:
                parent = self._contexts.get(reading.context)
                if parent is None:
                    parent = Span(None, reading.context)
                    parent.closed = True
                    self._contexts[reading.context] = parent
            reading.span = Span(parent, reading.tokens if reading.states else reading.tokens[:-1])
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
