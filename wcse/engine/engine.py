"""The engine: one loop, ``schedule -> run -> sample -> settle``, that grows nodes token by token.

It owns the policy model and its KV tree, batches every row that wants a token whatever problem it belongs to,
and calls back when a node has ended. It knows nothing of strategies, verifiers, answers or files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from weakref import WeakKeyDictionary, finalize, ref

import numpy as np
import torch

from wcse import _core
from wcse.engine.device_loop import Round, Started
from wcse.engine.draw import Top, draw_parts
from wcse.engine.endings import cut, finish_of, to_look_at
from wcse.engine.growth import Growth, Root, Row
from wcse.engine.memory import Memory
from wcse.engine.params import SamplingParams, StepRule
from wcse.engine.rounds import Rounds
from wcse.engine.rules import make_rules
from wcse.engine.runner import Runner, Work
from wcse.engine.schedule import Schedule
from wcse.engine.spans import Span, pages
from wcse.kernels.copies import join_rows, take_rows
from wcse.models.decoder import Decoder
from wcse.models.load import LoadedModel
from wcse.rng import node_key
from wcse.tokens import decode, token_bytes
from wcse.types import Finish, Node, WcseError

ROUND_TOKENS = 8
"""Tokens that rows write on a GPU before the host looks at them."""


class Engine:
    """Grows nodes with ``model``.

    Args:
        model: the policy.
        max_rows: most rows that decode at once (``max_num_seqs`` elsewhere).
        num_pages: pages of 16 tokens for keys and values.
        memory: the budget for them instead, shared with the other models in it.
        round_tokens: tokens that rows write before the host looks at them; above 1 only where the decoder is dense
            (``Decoder.dense``). The same tokens come out.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        max_rows: int = 256,
        num_pages: int = 8192,
        memory: Memory | None = None,
        round_tokens: int | None = None,
    ) -> None:
        self.model = model
        self.runner = Runner(model.decoder, num_pages=num_pages, memory=memory)
        self.schedule = Schedule(self.runner)
        self.runner.worker = ref(self.schedule)
        self.max_rows = max_rows
        self.reused = 0  # prefix tokens found in the tree instead of computed, all problems
        self.measure: Callable[[torch.Tensor], torch.Tensor] | None = None
        """From logits [rows, vocabulary] to a number a row; ``measured`` keeps one for each token of a node."""
        self.measured: WeakKeyDictionary[Node, tuple[float, ...]] = WeakKeyDictionary()
        self.table = token_bytes(model.tokenizer, size=model.spec.vocab_size)  # models pad their vocabulary
        self.matcher = _core.TextMatcher(self.table)
        self._growing: deque[Growth] = deque()
        self._spans: WeakKeyDictionary[Node, Span] = WeakKeyDictionary()
        self._dead: deque[Span] = deque()
        self._unused: deque[int] = deque()  # patterns of roots that nobody holds
        self._scores = model.decoder.score_memory()
        if round_tokens is None:
            round_tokens = ROUND_TOKENS if model.decoder.device.type == "cuda" else 1
        self.rounds = Rounds(self, tokens=round_tokens) if round_tokens > 1 else None
        self._started: tuple[list[Row], Started] | None = None  # the round that the device works on

    # -- requests ----------------------------------------------------------------------------------------

    def open(
        self,
        tokens: list[int],
        *,
        seed: int,
        problem: str,
        params: SamplingParams,
        rule: StepRule,
        tenant: str = "",
    ) -> Root:
        """Register a prompt. Prompts of different tenants share no keys and values.

        Raises:
            WcseError: the prompt does not fit in the model's context, or the parameters do not fit the model.
        """
        if len(tokens) >= self.model.context:
            raise WcseError(
                f"problem {problem!r}: the prompt has {len(tokens)} tokens and the model's context is "
                f"{self.model.context}; shorten the prompt or use a model with a longer context"
            )
        node = Node(None, (), tuple(tokens), decode(self.table, tokens))
        model = self.model
        rules = make_rules(params, tokens, model.tokenizer, model.eos_ids, model.spec.vocab_size)
        pattern = self.matcher.pattern(rule.delimiter.encode(), [text.encode() for text in params.stop])
        root = Root(node, seed, problem, params, rule, pattern, rules)
        finalize(root, self._unused.append, pattern)
        span, matched = self.runner.prompt(tokens, tenant=tenant)
        self._reuse(root, matched)
        self._spans[node] = span
        finalize(node, self._dead.extend, reversed(span.lineage()))
        return root

    def plant(self, root: Root, parent: Node, tokens: list[int]) -> Node:
        """A node of given tokens below another, to be filled or grown from; it is not part of any search."""
        node = Node(parent, (*parent.path, -1), tuple(tokens), decode(self.table, tokens), Finish.DELIM)
        span = Span(self._spans[parent], tokens)
        span.closed = True
        self._spans[node] = span
        finalize(node, self._dead.append, span)
        return node

    def grow(self, growth: Growth) -> None:
        """Queue a growth. Children start as soon as the node's keys and values are there."""
        self.fill(growth.root, growth.node, lambda _: self._growing.append(growth))

    def fill(self, root: Root, node: Node, done: Callable[[torch.Tensor], None]) -> None:
        """Call ``done`` with the hidden state [hidden size] after the last token of ``node``."""
        self.schedule.fill(root, node, self._spans[node], done)

    @property
    def rows(self) -> list[Row]:
        """The rows that are being written."""
        return self.schedule.rows

    @property
    def busy(self) -> bool:
        """Whether any work is left."""
        return bool(self.rows or self.schedule.fills or self._growing)

    @property
    def demand(self) -> int:
        """Rows that run or could run now, prompts being read included."""
        return len(self.rows) + len(self.schedule.fills) + sum(g.n - g.born for g in self._growing)

    # -- the loop ----------------------------------------------------------------------------------------

    def step(self) -> None:
        """Advance every row by one token, or by several on a device, and read waiting prompts.

        Raises:
            KVMemoryError: one path alone does not fit in the KV memory.
        """
        if self.begin():
            self.finish()

    def begin(self) -> bool:
        """Begin a step. True: the device writes tokens, until ``finish`` takes them; other models may work meanwhile.
        False: the step is over.
        """
        self.reclaim()
        work = self.runner.begin()
        with self.runner.lane.entered():
            if self.rounds is not None and self._steady() and self._round_possible(self.rounds):
                self._started = self.rows, self.rounds.start(self.rows)
                return True
            self._run(work)
        return False

    def finish(self) -> None:
        """End the step that ``begin`` left to the device."""
        assert self._started is not None and self.rounds is not None
        (rows, started), self._started = self._started, None
        with self.runner.lane.entered():
            rows, found = self.rounds.finish(rows, started)
            if rows:
                self._settle_round(rows, found)

    def _run(self, work: Work) -> None:
        fills = self.schedule.put(work)
        hidden = self.runner.run(work)
        ahead = len(self.rows)
        at = {span: ahead + i for i, span in enumerate(work.spans)}
        for fill in fills:
            fill.done(hidden[at[fill.span]])
        # Rows that were suspended and read again stand behind the others, as their spans do in the batch.
        resumed = [at[row.span] for row in self.rows[ahead:]]
        states = hidden[:ahead] if not resumed else take_rows(hidden, [*range(ahead), *resumed])
        for i in np.flatnonzero(self.schedule.table.numbers["rolling"]).tolist():
            self._roll(i, states[i])
        self._sample(states)

    def _round_possible(self, rounds: Rounds) -> bool:
        self.schedule.table.sync_all()
        return rounds.possible(self.rows)

    def _steady(self) -> bool:
        """Whether nothing waits that could join the rows."""
        return not self.schedule.fills and (not self._growing or len(self.rows) >= self.max_rows)

    # -- sample ------------------------------------------------------------------------------------------

    def _births(self) -> list[tuple[Row, torch.Tensor]]:
        """New rows for waiting growths, as many as the batch and the memory hold."""
        born: list[tuple[Row, torch.Tensor]] = []
        room = self.runner.room - self.schedule.pages_needed()
        while self._growing:
            growth = self._growing[0]
            count = len(self.rows) + len(born)
            if count >= self.max_rows or (count and room < 2 * (len(born) + 1)):
                break
            parent = self._spans[growth.node]
            if parent.hidden is None or self.runner.missing(parent):  # evicted while it waited
                parent.hidden = None
                self._growing.popleft()
                self.grow(growth)
                continue
            child = growth.first + growth.born
            root = growth.root
            length = parent.depth - len(root.node.token_ids)
            slot = self.matcher.open(root.pattern)
            row = Row(
                growth, growth.born, growth.node, (*growth.node.path, child), Span(parent), slot, length
            )
            if growth.most is not None:
                row.most = length + growth.most
            if root.rules:
                row.guide = root.rules.guide(growth.node.completion_ids)
            self._start(row)
            self._reuse(root, parent.depth)
            born.append((row, parent.hidden))
            growth.born += 1
            if growth.born == growth.n:
                self._growing.popleft()
        return born

    def _start(self, row: Row) -> None:
        """Set the row's random key and limits for a new node."""
        root = row.root
        row.key = node_key(root.seed, root.problem, row.path)
        left = min(root.params.most_tokens - row.length, self.model.context - row.span.start)
        if row.most is not None:
            left = min(left, row.most - row.length)
        row.limit = min(left, root.rule.max_tokens or left)

    def _sample(self, states: torch.Tensor) -> None:
        """Draw the next token of every row from its state, and the first of new ones."""
        births = self._births()
        table, before = self.schedule.table, len(self.rows)
        sources: dict[int, int] = {}
        stack = [states]
        born: list[int] = []
        for _, state in births:
            if id(state) not in sources:
                sources[id(state)] = before + len(sources)
                stack.append(state[None])
            born.append(sources[id(state)])
        table.add([row for row, _ in births])
        if not table.rows:
            return
        index = np.concatenate([np.arange(before, dtype=np.int32), np.array(born, np.int32)])
        values: list[float] = []
        parts = self._logits(join_rows(stack) if births else states, values)
        tokens, logprobs, tops = draw_parts(parts, index, table.draws(), backend=self.model.decoder.backend)
        if self.measure is not None:
            for row, i in zip(table.rows, index.tolist(), strict=True):
                row.measures.append(values[i])
        table.append(tokens, logprobs)
        flags = self.matcher.advance(table.numbers["slot"].copy(), np.maximum(tokens, 0))
        self._look(flags, tops)

    def _logits(self, states: torch.Tensor, values: list[float]) -> Iterator[torch.Tensor]:
        """Scores of every token: some rows at a time, where they lie in memory that the next ones use again.

        ``values`` gets the measure of each row.
        """
        size = len(states) if self._scores is None else len(self._scores)
        for part in states.split(size):
            logits = self.model.decoder.logits(part, self._scores)
            if self.measure is not None:
                values += self.measure(logits).tolist()
            yield logits

    # -- settle ------------------------------------------------------------------------------------------

    def _settle_round(self, rows: list[Row], found: Round) -> None:
        """Settle what a round wrote, whose tokens are in the spans already; only the last one of a row can end it."""
        counts = found.counts
        slots = np.repeat(np.fromiter((row.slot for row in rows), np.int32, len(rows)), counts)
        tokens = np.concatenate([found.tokens[:n, i] for i, n in enumerate(counts)])
        flags = self.matcher.advance(slots, np.maximum(tokens, 0))
        last = counts.cumsum() - 1
        ends, flags[last] = flags[last], 0
        if flags.any():
            raise RuntimeError(
                "a row went on after its delimiter or stop string; the device's tables are wrong"
            )
        for i, (row, n) in enumerate(zip(rows, counts.tolist(), strict=True)):
            row.root.account.computed += n
            tokens_of, logprobs_of = found.tokens[:n, i].tolist(), found.logprobs[:n, i].tolist()
            row.logprobs += logprobs_of
            if row.growth.on_token is not None:
                for token, logprob in zip(tokens_of[:-1], logprobs_of[:-1], strict=True):
                    row.growth.on_token(row.child, token, logprob, None)
        self.schedule.table.reload()
        self._look(ends, {})

    def _look(self, flags: np.ndarray, tops: dict[int, Top]) -> None:
        """Tell of the last token of the rows of which somebody hears, and end the nodes that are complete."""
        table, eos = self.schedule.table, self.model.eos_ids
        looked = to_look_at(table.numbers, flags, eos).tolist()
        drawn = [(i, table.sync(i)) for i in looked]  # before anybody hears of them, who may abort some
        ended: list[tuple[Row, Finish]] = []
        for i, row in drawn:
            token, flag = row.span.tokens[-1], int(flags[i])
            if row.guide is not None and token >= 0:
                row.guide.advance(token)
            if row.growth.on_token is not None and token >= 0:
                row.growth.on_token(row.child, token, row.logprobs[-1], tops.get(i))
            finish = finish_of(row, token, flag, eos, self.model.context)
            if finish is not None:
                ended.append((row, finish))
        gone = {row for row, finish in ended if self._end(row, finish)}
        if gone:
            table.remove(gone)
        table.roll({row for row, _ in ended if row.rolling})

    def _end(self, row: Row, finish: Finish) -> bool:
        """Make the node and tell who asked. Returns whether the row leaves the batch."""
        span, growth = row.span, row.growth
        reason = None
        if finish is Finish.EOS:
            reason, gone = cut(row, self.model.eos_ids, self.matcher, self.table)
            if gone:
                self.runner.release(span)
        if finish is Finish.ERROR:
            del span.tokens[-1], row.logprobs[-1]
        span.closed, span.tick = True, self.runner.memory.tick
        text = decode(self.table, span.tokens)
        node = Node(row.parent, row.path, tuple(span.tokens), text, finish, tuple(row.logprobs), None, reason)
        if row.measures:
            self.measured[node] = tuple(row.measures[: len(span.tokens)])  # cut as the tokens were
        self._spans[node] = span
        finalize(node, self._dead.append, span)
        rolls = growth.to_end and node.live
        if rolls:
            row.parent, row.rolling = node, True
            self.schedule.listeners[span] = []
        else:
            self.matcher.close(row.slot)
        growth.on_node(node)
        if not rolls:
            growth.on_end(row.child, node)
            if not node.live and span not in self.schedule.listeners:
                self.runner.release(span)
        return not rolls

    def _roll(self, index: int, hidden: torch.Tensor) -> None:
        """The closed step of a row is stored: go on with its child 0 in the same row."""
        row = self.schedule.table.sync(index)
        closed = row.span
        self.schedule.filled(closed, hidden)
        row.path = (*row.path, 0)
        row.length += len(closed.tokens)
        row.span, row.logprobs, row.measures, row.rolling = Span(closed), [], [], False
        self.matcher.new_step(row.slot)
        self._start(row)
        self.schedule.table.restart(index)

    def _reuse(self, root: Root, tokens: int) -> None:
        root.account.reused += tokens
        self.reused += tokens

    def stop(self, root: Root) -> None:
        """Its time is over: every row of it ends with its next token."""
        root.stopped = True
        self.schedule.table.watch(root)

    # -- ends of lives -----------------------------------------------------------------------------------

    def abort(self, root: Root) -> None:
        """Stop all work for a root and free what it holds; nobody hears of it. Other roots do not notice."""
        for row in self.schedule.forget(root):
            self.matcher.close(row.slot)
        self._growing = deque(growth for growth in self._growing if growth.root is not root)

    def reset(self) -> None:
        """Forget all work and everything stored. For a step that broke off: nothing it touched can be trusted."""
        for root in {row.root for row in self.rows} | {fill.root for fill in self.schedule.fills}:
            self.abort(root)
        self._growing.clear()
        self.schedule.listeners.clear()
        self.runner.reset()
        self.reclaim()

    def swap(self, decoder: Decoder) -> None:
        """Go on with other weights of the same shape, as between two steps of training.

        Raises:
            WcseError: work is running, or the model is of another shape.
        """
        if self.busy:
            raise WcseError("weights: work is running; swap them between two requests")
        if decoder.spec != self.model.spec:
            raise WcseError("weights: they are of a model of another shape; load it as a model of its own")
        self.reclaim()
        self.runner.reset()
        self.runner.use(decoder)
        self.model = replace(self.model, decoder=decoder)
        self._scores = decoder.score_memory()
        if self.rounds is not None:
            self.rounds = Rounds(self, tokens=self.rounds.tokens)

    def reclaim(self) -> None:
        """Give back the memory of nodes that nobody holds; prompts stay cached until it is needed."""
        while self._dead:
            span = self._dead.popleft()
            self.runner.release(span, cache=span.prompt)
        while self._unused:
            self.matcher.release(self._unused.popleft())

    def census(self) -> dict[Root, tuple[int, int]]:
        """Pages behind the running rows of each problem: in the tree, and with one cache per sequence."""
        shared: dict[Root, int] = {}
        alone: dict[Root, int] = {}
        seen = {row.span for row in self.rows}
        counts = self.schedule.table.numbers["count"].tolist()  # spans of rows lag behind
        for row, count in zip(self.rows, counts, strict=True):
            root = row.root
            alone[root] = alone.get(root, 0) + pages(row.span.start + count)
            shared[root] = shared.get(root, 0) + pages(count)
            span = row.span.parent
            while span is not None and span not in seen:
                seen.add(span)
                shared[root] += pages(len(span.tokens))
                span = span.parent
        return {root: (shared[root], alone[root]) for root in alone}
