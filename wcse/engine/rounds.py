"""Rounds of several tokens in an engine's rows, for decoders on a device: when they may run, and what they bring.

A round stops a row exactly where the engine would end its node: the device follows the same delimiters, stop strings
and ids. What it cannot follow (rules on logits, likeliest tokens, measures, prompts to read) is done token by token.
While the device writes, the round after is planned and its lists are sent, as if all rows went on; where they do not,
or pages moved, it is planned again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from wcse.engine.ahead import Places, foresee, settle_ahead, store_ahead
from wcse.engine.device_loop import DeviceLoop, Prepared, Round, RoundRows, Started
from wcse.engine.machines import Ends, Machines
from wcse.engine.spans import pages

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
        self.foreseen = 0  # those of them that were planned while the one before ran
        self._next: tuple[Places, Prepared] | None = None
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
        places, prepared = self._places(rows)
        given = RoundRows(
            tokens=last,
            slots=places.slots,
            counters=counts,
            left=limits - counts,
            keys=np.fromiter((row.key for row in rows), np.uint64, len(rows)).view(np.int64),
            temperature=np.asarray(heat, np.float32),
            top_k=np.fromiter((p.top_k for p in params), np.int32, len(rows)),
            top_p=np.fromiter((p.top_p for p in params), np.float32, len(rows)),
            min_p=np.fromiter((p.min_p for p in params), np.float32, len(rows)),
            machines=np.asarray(states, np.int32),
        )
        return self._loop.start(prepared, given, self.machines.table, count=self.tokens)

    def _places(self, rows: Sequence[Row]) -> tuple[Places, Prepared]:
        """Where the round's tokens go; foreseen, or planned now."""
        runner, spans = self.engine.runner, [row.span for row in rows]
        (foreseen, prepared), self._next = self._next or (None, None), None
        places = store_ahead(runner, spans, self.tokens, foreseen=foreseen)
        if prepared is not None and places is foreseen:
            self.foreseen += 1
            return places, prepared
        return places, self._loop.prepare(places.plan, places.ahead, count=self.tokens)

    def _foresee(self, rows: Sequence[Row]) -> None:
        """Plan the next round, unless a row will have ended by then."""
        if any(row.span.kv < 0 or row.limit - len(row.span.tokens) <= self.tokens for row in rows):
            return
        places = foresee(self.engine.runner, [row.span for row in rows], self.tokens)
        if places is not None:
            prepared = self._loop.foresee(places.plan, places.ahead, count=self.tokens)
            self._next = None if prepared is None else (places, prepared)

    def finish(self, rows: Sequence[Row], started: Started) -> tuple[list[Row], Round]:
        """The rows that nobody aborted meanwhile, and what the round wrote in them.

        Keys and values of all but each last token are stored.
        """
        self._foresee(rows)
        found, alive = started.wait(), [i for i, row in enumerate(rows) if row.span.kv >= 0]
        rows, found = [rows[i] for i in alive], found.take(alive)
        written = [found.tokens[:n, i].tolist() for i, n in enumerate(found.counts)]
        settle_ahead(self.engine.runner, [row.span for row in rows], self.tokens, written)
        self.done += 1
        return rows, found

    def _ends(self, row: Row) -> Ends:
        root = row.growth.root
        params, ids = root.params, frozenset(root.params.stop_token_ids)
        if not params.ignore_eos:
            ids |= self.engine.model.eos_ids
        return Ends(root.rule.delimiter, tuple(params.stop), ids, root.pattern)
