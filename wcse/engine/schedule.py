"""Who is in the next batch: rows that run, and spans that wait to be read. Both live within the KV memory.

Rows go on as long as memory lasts; then idle spans are dropped, and last the newest rows are suspended and read again
later. Knows spans and rows, nothing of sampling or of how a node ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import torch

from wcse.engine.growth import Fill, Root, Row
from wcse.engine.runner import KVMemoryError, Runner, Work
from wcse.engine.spans import PAGE, Span
from wcse.engine.table import RowTable
from wcse.types import Node

FILL_TOKENS = 1024  # most prompt and recomputed tokens per step, so that decoding rows are not held up


class Schedule:
    """The rows and fills of one engine; the ``Worker`` of its runner.

    Attributes:
        table: what is written.
        fills: what waits to be read, in this order.
        listeners: by span who hears of its hidden state. Rows that go on below their own node wait here too.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.table = RowTable()
        self.fills: deque[Fill] = deque()
        self.listeners: dict[Span, list[Callable[[torch.Tensor], None]]] = {}

    @property
    def rows(self) -> list[Row]:
        """What is written, oldest first."""
        return self.table.rows

    # -- what waits --------------------------------------------------------------------------------------

    def fill(self, root: Root, node: Node, span: Span, done: Callable[[torch.Tensor], None]) -> None:
        """Call ``done`` with the hidden state [hidden size] after the last token of the node's span."""
        if span.hidden is not None:
            done(span.hidden)
        elif span in self.listeners:
            self.listeners[span].append(done)
        else:
            self.listeners[span] = [done]
            self.fills.append(
                Fill(span, root, lambda hidden: self.filled(span, hidden, live=node.live), node)
            )

    def filled(self, span: Span, hidden: torch.Tensor, *, live: bool = True) -> None:
        """Keep the hidden state after the span's last token and tell who waits for it."""
        span.hidden = hidden.clone()
        for done in self.listeners.pop(span):
            done(span.hidden)
        if not live:
            self.runner.release(span)

    # -- the next batch ----------------------------------------------------------------------------------

    def put(self, work: Work) -> list[Fill]:
        """Put the rows' last tokens and, within the budget, waiting fills into the batch; returns whole fills.

        Raises:
            KVMemoryError: one path alone does not fit in the KV memory.
        """
        self._make_room()
        self._put_rows(work)
        fills: list[Fill] = []
        most = len(self.rows) + FILL_TOKENS
        while self.fills and work.tokens < most:
            fill, before = self.fills[0], work.tokens
            if fill.resumes and work.tokens and self.runner.room < self._comfort(fill):
                break
            whole = self.runner.store(work, fill.span, most - before)
            fill.root.account.computed += work.tokens - before
            if not whole:
                if work.tokens == before and not self._relieve(work, fill):
                    break
                continue
            fills.append(self.fills.popleft())
        return fills

    def _put_rows(self, work: Work) -> None:
        """The last token of every row."""
        table, numbers = self.table, self.table.numbers
        if not table.rows:
            return
        for i in np.flatnonzero(numbers["node"] < 0):
            numbers["node"][i] = self.runner.attach(table.rows[i].span)
        self.runner.store_rows(work, numbers["node"], numbers["last"], numbers["stored"], table.version)
        numbers["stored"] += 1
        for node in numbers["node"][numbers["rolling"]].tolist():
            self.runner.tree.seal(node)
        table.charge()

    def _comfort(self, fill: Fill) -> int:
        """Pages to have before a suspended row comes back, so that it is not suspended again at once."""
        return self.runner.missing(fill.span) // PAGE + 2 * (len(self.rows) + 1)

    def _relieve(self, work: Work, fill: Fill) -> bool:
        """Free memory for a fill that got none; False when it must wait for running rows."""
        missing = self.runner.missing(fill.span)
        need = min(missing, FILL_TOKENS) // PAGE + 2
        busy = self.standing() + work.spans + [fill.span]
        if self.runner.evict_idle(need, busy):
            return True
        if work.tokens:
            return False
        if self.runner.room > 0 or self.runner.memory.seize(self.runner, need, busy):
            return True
        if self.runner.memory.waits(self.runner):
            return False
        raise KVMemoryError(
            f"KV memory: problem {fill.root.problem!r} needs {missing} more tokens on one path and no page is "
            f"left of {self.runner.tree.stats()['total']}; give more memory (kv_memory) or lower max_tokens"
        )

    def _make_room(self) -> None:
        """Free a page for every row that needs one: idle spans go first, then the newest rows are suspended."""
        need = self.pages_needed()
        if need <= self.runner.room or self.runner.evict_idle(need, self.standing()):
            return
        while len(self.rows) > 1 and need > self.runner.room:
            self.suspend()
            need = self.pages_needed()
            self.runner.evict_idle(need, self.standing())
        memory = self.runner.memory
        if need > self.runner.room and not memory.seize(self.runner, need, self.standing()):
            if memory.waits(self.runner):
                self.suspend()
                return
            raise KVMemoryError(
                f"KV memory: one path of {self.rows[0].span.depth} tokens does not fit in "
                f"{self.runner.tree.stats()['total']} pages; give more memory (kv_memory) or lower max_tokens"
            )

    def pages_needed(self) -> int:
        """Pages that the rows' next tokens open."""
        return int(np.count_nonzero(self.table.numbers["stored"] % PAGE == 0))

    # -- rows that leave ---------------------------------------------------------------------------------

    def standing(self) -> list[Span]:
        """The rows' spans."""
        return [row.span for row in self.rows]

    def suspend(self) -> bool:
        """Take the newest row out of the batch, if there is one; it is read again when there is room."""
        if not self.rows:
            return False
        row = self.table.sync(len(self.rows) - 1)
        self.table.remove({row})
        self.runner.release(row.span)
        self.fills.appendleft(
            Fill(row.span, row.root, lambda _: self.table.add([row]), row.parent, resumes=row)
        )
        return True

    def forget(self, root: Root) -> list[Row]:
        """Drop all that runs or waits for a root and what it stored. Returns the rows among it."""
        rows = [row for row in self.rows if row.root is root]
        fills = [fill for fill in self.fills if fill.root is root]
        self.table.remove(set(rows))
        self.fills = deque(fill for fill in self.fills if fill.root is not root)
        for span in [*(row.span for row in rows), *(fill.span for fill in fills)]:
            self.listeners.pop(span, None)
            self.runner.release(span)
        return rows + [fill.resumes for fill in fills if fill.resumes]
