"""Rounds of several tokens in an engine's rows, for decoders on a device: when they may run, and what they bring.

A round stops a row exactly where the engine would end its node: the device follows the same delimiters, stop strings
and ids. What it cannot follow (rules on logits, likeliest tokens, measures, prompts to read) is done token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from wcse.engine.device_loop import DeviceLoop, Round, RoundRows, Started
from wcse.engine.machines import Ends, Machines
from wcse.engine.runner import pages

if TYPE_CHECKING:
    from wcse.engine.engine import Engine
    from wcse.engine.growth import Row


class Rounds:
    """Args:
    engine: whose rows they are; its decoder is a dense one.
    tokens: most tokens of a row in one round.
    """

    def __init__(self, engine: Engine, *, tokens: int) -> None:
        self.engine = engine
        self.tokens = tokens
        self.done = 0  # rounds so far
        self.machines = Machines(engine.matcher, engine.model.spec.vocab_size, engine.model.decoder.device)
        runner = engine.runner
        self._loop = DeviceLoop(engine.model.decoder, runner.pool, tokens=tokens, lane=runner.lane)

    def possible(self, rows: Sequence[Row]) -> bool:
        """Whether these rows can write several tokens without the host, and memory holds them."""
        engine = self.engine
        if not rows or engine.measure is not None:
            return False
        for row in rows:
            root, listened = row.growth.root, row.growth.on_token is not None
            if row.guide is not None or row.rolling or root.stopped:
                return False
            if listened and root.params.logprobs is not None:
                return False
        if not self.machines.know({self._ends(row) for row in rows}):
            return False
        spans = [row.span for row in rows]
        need = sum(pages(span.n_kv + self.tokens) - pages(span.n_kv) for span in spans)
        return need <= engine.runner.room

    def start(self, rows: Sequence[Row]) -> Started:
        """Have tokens written in all rows; ``finish`` brings them."""
        spans = [row.span for row in rows]
        counts = np.fromiter((len(span.tokens) for span in spans), np.int32, len(spans))
        last = np.fromiter((span.tokens[-1] for span in spans), np.int64, len(spans))
        params = [row.growth.root.params for row in rows]
        heat = [0.0 if row.growth.greedy else p.temperature for row, p in zip(rows, params, strict=True)]
        states = [self.machines.states(self._ends(row), row.slot) for row in rows]
        limits = np.fromiter((row.limit for row in rows), np.int32, len(rows))
        plan, slots, ahead = self.engine.runner.store_ahead(spans, self.tokens)
        given = RoundRows(
            tokens=last,
            slots=slots,
            counters=counts,
            left=limits - counts,
            keys=np.fromiter((row.key for row in rows), np.uint64, len(rows)).view(np.int64),
            temperature=np.asarray(heat, np.float32),
            top_k=np.fromiter((p.top_k for p in params), np.int32, len(rows)),
            top_p=np.fromiter((p.top_p for p in params), np.float32, len(rows)),
            min_p=np.fromiter((p.min_p for p in params), np.float32, len(rows)),
            machines=np.asarray(states, np.int32),
        )
        return self._loop.start(plan, given, ahead, self.machines.table, count=self.tokens)

    def finish(self, rows: Sequence[Row], started: Started) -> Round:
        """What a round wrote in its rows; keys and values of all but each last token are stored."""
        found, spans = started.wait(), [row.span for row in rows]
        written = [found.tokens[:n, i].tolist() for i, n in enumerate(found.counts)]
        self.engine.runner.settle_ahead(spans, self.tokens, written)
        self.done += 1
        return found

    def _ends(self, row: Row) -> Ends:
        root = row.growth.root
        params, ids = root.params, frozenset(root.params.stop_token_ids)
        if not params.ignore_eos:
            ids |= self.engine.model.eos_ids
        return Ends(root.rule.delimiter, tuple(params.stop), ids, root.pattern)
