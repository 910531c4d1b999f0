"""Spans of tokens and their keys and values: a decoder over its own KV tree.

A runner puts tokens of spans (``spans``) through the decoder in one batch and returns hidden states; policy and
verifier each have one. It knows nothing of sampling, scoring, search or text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakSet, ref

import numpy as np
import torch

from wcse import _core
from wcse.engine.graphs import StepGraphs
from wcse.engine.lanes import Lane
from wcse.engine.memory import Memory
from wcse.engine.spans import PAGE, Span, pages
from wcse.models.decoder import Batch, Decoder
from wcse.models.kv_pool import KVPool
from wcse.types import WcseError

PROMPT_BLOCK = (
    64  # prompts are stored in spans of 64 tokens, the kernel's block: a hit never moves the block grid
)


class KVMemoryError(WcseError):
    """The keys and values of a single path do not fit in the memory given."""


class KVMemoryHeld(KVMemoryError):
    """They would, but other models' running work, which ends by itself, holds the memory."""


REPLAN = 64
"""Tokens after which a plan is made anew although no row came or went: it keeps the old lists of pages that grew."""


@dataclass(slots=True)
class Lead:
    """Rows of one new token each, in numbers: tree nodes, tokens and slots, int32 [R], and their table's version."""

    nodes: np.ndarray
    tokens: np.ndarray
    slots: np.ndarray
    version: int


@dataclass(slots=True)
class Planned:
    """A plan and where the tokens of a batch stand in it: ``rows`` int64 [tokens], ``out`` of the states wanted."""

    plan: _core.Plan
    rows: np.ndarray
    out: torch.Tensor
    version: int | None  # of the rows' table, where there is nothing else in the batch
    age: int = 0


@dataclass
class Work:
    """The batch under construction: first ``lead``, then the last ``counts[i]`` stored tokens of ``spans[i]``."""

    lead: Lead | None = None
    spans: list[Span] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    slots: list[np.ndarray] = field(default_factory=list)
    tokens: int = 0

    def put(self, span: Span, count: int, slots: np.ndarray) -> None:
        """Add new tokens of a span; a span that got its first part a moment ago gets the rest."""
        self.tokens += count
        if self.spans and self.spans[-1] is span:
            self.counts[-1] += count
            self.slots[-1] = np.concatenate([self.slots[-1], slots])
            return
        self.spans.append(span)
        self.counts.append(count)
        self.slots.append(slots)


class Worker(Protocol):
    """Work that goes on over several steps of a runner."""

    def standing(self) -> list[Span]:
        """The spans that it stands on."""

    def suspend(self) -> bool:
        """Stop a piece of it, to go on later; False: there is none."""


class Runner:
    """A decoder with a KV tree over pages of ``memory``, which others may share.

    The order of calls in one step is ``begin``, ``store_rows``, any number of ``store``, ``run``.

    Args:
        decoder: the model.
        num_pages: of a memory of its own, where none is given.
        memory: the budget.

    Attributes:
        lane: the queue of its work on a device. All that reads or writes what is stored happens in it.
        worker: what runs, if anything does between two steps; others never evict what it stands on.
        yields: whether it may be suspended for the sake of others; otherwise they wait until it has ended.
        ahead: a device works on places that are owned ahead (``ahead``); meanwhile nothing of it can be suspended.
        moves: how often pages were moved: what was planned before is of no use then.
    """

    def __init__(self, decoder: Decoder, *, num_pages: int = 0, memory: Memory | None = None) -> None:
        self.decoder = decoder
        self.page_bytes = KVPool.page_bytes(decoder.spec, decoder.kv_dtype)
        self.memory = memory or Memory(num_pages * self.page_bytes)
        self.lane = Lane(decoder.device)
        self.pool = self.memory.join(self)
        num_pages = self.pool.num_pages
        self.tree = _core.KVTree(num_pages)
        self.tree.lend(np.arange(num_pages, dtype=np.int32))
        self.use(decoder)
        self.worker: ref[Worker] | None = None
        self.yields = True
        self.ahead = False
        self.moves = 0
        self.computed = 0  # tokens put through the decoder so far
        self.room = num_pages  # pages that can be had although nothing stored is dropped but cached prompts
        self._own = 0  # those of them that need not be granted first
        self._resident: WeakSet[Span] = WeakSet()
        self._tenants: dict[str, int] = {}

    def use(self, decoder: Decoder) -> None:
        """Go on with this decoder; what is stored must come from it, or be forgotten."""
        self.decoder = decoder
        self._planned: Planned | None = None  # the last one that may serve again
        self._graphs = StepGraphs(decoder, self.pool) if decoder.device.type == "cuda" else None

    # -- spans -------------------------------------------------------------------------------------------

    def prompt(self, tokens: Sequence[int], *, tenant: str = "") -> tuple[Span, int]:
        """A chain of closed spans that holds ``tokens``; prefixes that the same tenant stored are reused.

        Returns:
            The last span of the chain, and how many tokens were found in the tree.
        """
        base = self._tenant(tenant)
        found, matched = self.tree.match_prefix(np.asarray(tokens, dtype=np.int32), base)
        if found == base and base:
            self.tree.release(base)  # only what was matched is held
        nodes: list[int] = []
        node = found
        while node != base:
            nodes.append(node)
            node = self.tree.parent(node)
        span: Span | None = None
        for node in reversed(nodes):
            if node != found:
                self.tree.retain(node)
            own = tokens[span.depth if span else 0 :][: self.tree.length(node)]
            span = Span(span, own, prompt=True, base=base)
            span.kv, span.n_kv = node, self.tree.length(node)
            if span.parent is not None:
                span.parent.kids += 1
            self._resident.add(span)
        # Hidden states are not cached: when everything matched, the last block is read again for its own.
        if span is not None and matched == len(tokens):
            parent = span.parent
            self.release(span)
            span, matched = parent, parent.depth if parent else 0
        for begin in range(matched, len(tokens), PROMPT_BLOCK):
            span = Span(span, tokens[begin : begin + PROMPT_BLOCK], prompt=True, base=base)
        if span is None:
            raise WcseError("prompt: it has no tokens; give a problem with text")
        return span, matched

    def _tenant(self, name: str) -> int:
        """The empty tree node below which a tenant's prompts lie: what one tenant stored no other can match."""
        if not name:
            return 0
        if name not in self._tenants:
            node = self.tree.fork(0)
            self.tree.seal(node)
            self._tenants[name] = node
        return self._tenants[name]

    def missing(self, span: Span) -> int:
        """Tokens without keys and values on the path to the end of ``span``."""
        total = 0
        node: Span | None = span
        while node is not None and node.n_kv < len(node.tokens):
            total += len(node.tokens) - node.n_kv
            node = node.parent
        return total

    def release(self, span: Span, *, cache: bool = False) -> None:
        """Give up the span's tree node. With ``cache`` its pages stay until they are needed elsewhere."""
        if span.kv < 0:
            return
        if cache and span.closed and span.n_kv == len(span.tokens):
            self.tree.release(span.kv)
        else:
            self.tree.drop(span.kv)
        span.kv, span.n_kv = -1, 0
        self._resident.discard(span)
        if span.parent is not None:
            span.parent.kids -= 1

    def reset(self) -> None:
        """Forget every stored key and value; spans that are in use are read again."""
        self.ahead = False
        self.settle()
        self._planned = None
        for span in sorted(self._resident, key=lambda s: s.start, reverse=True):
            self.release(span)
            span.hidden = None
        self.tree.evict(self.tree.stats()["total"])
        self.refresh_room()

    def evict_idle(self, need: int, busy: Iterable[Span]) -> bool:
        """Drop spans that no running work stands on, least recently used first, until there is room for ``need``.

        All models that share the memory drop theirs alike; ``busy`` are this runner's.
        """
        return self.memory.evict(self, need, busy)

    def idle(self, busy: Iterable[Span]) -> list[tuple[Runner, Span]]:
        """Spans that may be dropped now: stored, without stored children, not on the way to a busy one."""
        active = set()
        for span in busy:
            node: Span | None = span
            while node is not None and node not in active:
                active.add(node)
                node = node.parent
        return [(self, span) for span in self._resident if span.kids == 0 and span not in active]

    def refresh_room(self) -> int:
        """Count ``room`` again."""
        stats = self.tree.stats()
        self._own = stats["free"] - stats["lent"] + stats["cached"]
        self.room = min(self._own + self.memory.room(self), stats["free"] + stats["cached"])
        return self.room

    def standing(self) -> list[Span]:
        """Spans that running work stands on between two steps."""
        worker = self.worker() if self.worker is not None else None
        return worker.standing() if worker is not None else []

    def suspend(self) -> bool:
        """Stop a piece of that work; False: there is none that may be stopped."""
        worker = self.worker() if self.worker is not None else None
        return worker is not None and self.yields and not self.ahead and worker.suspend()

    # -- pages that come and go --------------------------------------------------------------------------

    def relocate(self, source: np.ndarray, target: np.ndarray) -> None:
        """Move what is in pages of nodes to spare pages, behind all that is queued."""
        with self.lane.entered():
            self.pool.move(source, target)
        self.tree.relocate(source, target)
        self.lane.settle()
        self._planned = None
        self.moves += 1

    # -- one step ----------------------------------------------------------------------------------------

    def begin(self) -> Work:
        """Start a step."""
        self.memory.tick += 1
        self.refresh_room()
        return Work()

    def store(self, work: Work, span: Span, budget: int) -> bool:
        """Add the missing tokens on the path to ``span``, at most ``budget`` of them and as memory allows.

        Returns:
            Whether the whole path is in the batch or stored.
        """
        chain: list[Span] = []
        node: Span | None = span
        while node is not None and (node.n_kv < len(node.tokens) or node.kv < 0):
            chain.append(node)
            node = node.parent
        for part in reversed(chain):
            count = min(len(part.tokens) - part.n_kv, budget, self.room * PAGE + -part.n_kv % PAGE)
            if count <= 0:
                return False
            self.attach(part)
            self.take(part, count)
            new = np.asarray(part.tokens[part.n_kv : part.n_kv + count], dtype=np.int32)
            work.put(part, count, self.tree.extend(part.kv, new))
            part.n_kv += count
            budget -= count
            if part.n_kv < len(part.tokens):
                return False
            if part.closed:
                self.tree.seal(part.kv)
        return True

    def store_rows(
        self, work: Work, nodes: np.ndarray, tokens: np.ndarray, stored: np.ndarray, version: int
    ) -> None:
        """Add the last token of every row; all else on their paths is stored. Memory must suffice.

        Args:
            work: nothing else is in it yet.
            nodes: int32 [R], attached.
            tokens: int32 [R].
            stored: int32 [R], tokens that each node holds.
            version: equal numbers say that these are the rows of the step before.
        """
        self._claim(int(np.count_nonzero(stored % PAGE == 0)))
        nodes, tokens = np.ascontiguousarray(nodes), np.ascontiguousarray(tokens)
        work.lead = Lead(nodes, tokens, np.asarray(self.tree.extend_rows(nodes, tokens)), version)
        work.tokens += len(nodes)

    def store_one(self, work: Work, spans: Sequence[Span]) -> None:
        """Add the last token of every span; all else on their paths is stored. Memory must suffice."""
        if not spans:
            return
        for span in spans:
            self.attach(span)
            self.take(span, 1)
        nodes = np.fromiter((s.kv for s in spans), np.int32, len(spans))
        new = np.fromiter((s.tokens[-1] for s in spans), np.int32, len(spans))
        slots = self.tree.extend_rows(nodes, new)
        for i, span in enumerate(spans):
            work.put(span, 1, slots[i : i + 1])
            span.n_kv += 1
            if span.closed:
                self.tree.seal(span.kv)

    def run(self, work: Work, *, every_row: bool = False) -> torch.Tensor:
        """Put the batch through the decoder.

        Returns:
            Final-norm hidden states: [rows of the lead + spans, hidden size], each after the last new token of its row
            or span; with ``every_row`` [work.tokens, hidden size], after every new token of each in turn.
        """
        if not work.tokens:
            return torch.empty(0, self.decoder.spec.dim, device=self.decoder.device, dtype=self.decoder.dtype)
        planned = self._plan(work, every_row)
        new = [t for s, c in zip(work.spans, work.counts, strict=True) for t in s.tokens[s.n_kv - c : s.n_kv]]
        tokens, slots = np.empty(work.tokens, np.int64), np.empty(work.tokens, np.int32)
        lead = work.lead
        tokens[planned.rows] = new if lead is None else np.concatenate([lead.tokens, np.array(new, np.int32)])
        slots[planned.rows] = np.concatenate(work.slots if lead is None else [lead.slots, *work.slots])
        batch = Batch(
            tokens=torch.from_numpy(tokens),
            positions=torch.from_numpy(np.asarray(planned.plan.positions)),
            slots=torch.from_numpy(slots),
            plan=planned.plan,
            out_rows=planned.out,
        )
        if self._graphs is not None and work.tokens == len(planned.plan.order):
            hidden = self._graphs.forward(batch)
        else:
            hidden = self.decoder.forward(self.decoder.place(batch), self.pool)
        self.settle()
        self.computed += work.tokens
        return hidden

    def settle(self) -> None:
        """Nothing is in flight: what is queued reads no page that is free from now on."""
        self.tree.settle()
        self.lane.settle()

    def _plan(self, work: Work, every_row: bool) -> Planned:
        """The plan of a batch: the last one, a token later, where the same rows go on and nothing else is there."""
        lead, last = work.lead, self._planned
        version = lead.version if lead is not None and not work.spans else None
        if lead is not None and last is not None and last.version == version and last.age < REPLAN:
            last.plan.advance(lead.slots)
            last.age += 1
            return last
        nodes = np.fromiter((s.kv for s in work.spans), np.int32, len(work.spans))
        counts = np.asarray(work.counts, dtype=np.int32)
        if lead is not None:
            nodes = np.concatenate([lead.nodes, nodes])
            counts = np.concatenate([np.ones(len(lead.nodes), np.int32), counts])
        plan = _core.plan(self.tree, nodes, counts)
        starts = np.asarray(plan.row_start)
        rows = np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(work.tokens)
        out = rows if every_row else starts + counts - 1
        planned = Planned(plan, rows, torch.from_numpy(out.astype(np.int64)), version)
        self._planned = planned if version is not None and not every_row else None
        return planned

    def attach(self, span: Span) -> int:
        """Give the span a tree node below its parent's, unless it has one. Returns the node."""
        if span.kv >= 0:
            return span.kv
        span.kv = self.tree.fork(span.parent.kv if span.parent else span.base)
        self._resident.add(span)
        if span.parent is not None:
            span.parent.kids += 1
        return span.kv

    def take(self, span: Span, count: int) -> None:
        """Own the pages that so many more tokens of a span open."""
        self._claim(pages(span.n_kv + count) - pages(span.n_kv))
        span.tick = self.memory.tick

    def _claim(self, need: int) -> None:
        """Use so many pages of ``room``."""
        self.room -= need
        self._own -= need
        if self._own < 0:
            self._own += self.memory.grant(self, -self._own)
