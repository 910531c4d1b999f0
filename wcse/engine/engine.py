"""The engine: one loop, ``schedule -> run -> sample -> settle``, that grows nodes token by token.

It owns the policy model and its KV tree, batches every row that wants a token whatever problem it belongs to,
and calls back when a node has ended. It knows nothing of strategies, verifiers, answers or files.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary, finalize, ref

import numpy as np
import torch

from wcse import _core
from wcse.engine.device_loop import Round
from wcse.engine.draw import Draw, Top, draw
from wcse.engine.machines import DELIMITED, STOPPED
from wcse.engine.memory import Memory
from wcse.engine.params import SamplingParams, StepRule
from wcse.engine.rounds import Rounds
from wcse.engine.rules import Guide, Rules, make_rules
from wcse.engine.runner import PAGE, KVMemoryError, Runner, Span, Work, pages
from wcse.kernels.copies import join_rows, take_rows
from wcse.models.decoder import Decoder
from wcse.models.load import LoadedModel
from wcse.rng import node_key
from wcse.tokens import decode, token_bytes
from wcse.types import Finish, Node, WcseError

FILL_TOKENS = 1024  # most prompt and recomputed tokens per step, so that decoding rows are not held up

ROUND_TOKENS = 8
"""Tokens that rows write on a GPU before the host looks at them."""


@dataclass
class Account:
    """Tokens of one problem: put through a model, and found in its KV tree instead.

    ``asked`` are tokens of a verifier beyond the policy's own: its questions and what it wrote itself. ``flops`` are
    the operations on these.
    """

    computed: int = 0
    reused: int = 0
    asked: int = 0
    flops: float = 0.0


@dataclass(eq=False)
class Root:
    """One problem inside the engine: its prompt, the seed and name of its random numbers, its account."""

    node: Node
    seed: int
    problem: str
    params: SamplingParams
    rule: StepRule
    pattern: int  # delimiter and stop strings, as the text matcher knows them
    rules: Rules | None = None
    account: Account = field(default_factory=Account)
    stopped: bool = False  # its time is over: every row ends with its next token


@dataclass(eq=False)
class Growth:
    """A request to grow ``n`` children of ``node``; ``on_node`` hears of every node, ``on_end`` of each last one.

    ``most`` limits the tokens of each child's whole chain (at least 1; None: no limit).
    ``on_token`` hears (child, token, log-probability, likeliest tokens) of each token as it is drawn, those that
    a stop string cuts off afterwards too.
    """

    root: Root
    node: Node
    n: int
    first: int
    to_end: bool
    greedy: bool
    on_node: Callable[[Node], None]
    on_end: Callable[[int, Node], None]
    most: int | None = None
    on_token: Callable[[int, int, float, Top | None], None] | None = None
    born: int = 0


@dataclass(eq=False)
class Row:
    """A node being written. ``parent`` keeps the nodes above it alive."""

    growth: Growth
    child: int
    parent: Node
    path: tuple[int, ...]
    span: Span
    slot: int
    length: int  # tokens of the solution before this node
    key: int = 0
    limit: int = 0  # tokens of this node at which something ends
    logprobs: list[float] = field(default_factory=list)
    measures: list[float] = field(default_factory=list)
    guide: Guide | None = None
    rolling: bool = False  # the step is closed: the next token starts child 0
    most: int | None = None  # tokens of the solution at which its share of the budget is used up


@dataclass(eq=False)
class Fill:
    """A span whose keys, values and last hidden state are wanted."""

    span: Span
    root: Root
    done: Callable[[torch.Tensor], None]
    node: Node  # held, so that the span outlives the wait
    resumes: Row | None = None  # the suspended row that goes on when it is there


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
        self.runner.worker = ref(self)
        self.max_rows = max_rows
        self.reused = 0  # prefix tokens found in the tree instead of computed, all problems
        self.measure: Callable[[torch.Tensor], torch.Tensor] | None = None
        """From logits [rows, vocabulary] to a number a row; ``measured`` keeps one for each token of a node."""
        self.measured: WeakKeyDictionary[Node, tuple[float, ...]] = WeakKeyDictionary()
        self.table = token_bytes(model.tokenizer, size=model.spec.vocab_size)  # models pad their vocabulary
        self.matcher = _core.TextMatcher(self.table)
        self.rows: list[Row] = []
        self._fills: deque[Fill] = deque()
        self._growing: deque[Growth] = deque()
        self._spans: WeakKeyDictionary[Node, Span] = WeakKeyDictionary()
        self._filling: dict[Span, list[Callable[[torch.Tensor], None]]] = {}
        self._dead: deque[Span] = deque()
        self._unused: deque[int] = deque()  # patterns of roots that nobody holds
        if round_tokens is None:
            round_tokens = ROUND_TOKENS if model.decoder.device.type == "cuda" else 1
        self.rounds = Rounds(self, tokens=round_tokens) if round_tokens > 1 else None

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
        span = self._spans[node]
        if span.hidden is not None:
            done(span.hidden)
        elif span in self._filling:
            self._filling[span].append(done)
        else:
            self._filling[span] = [done]
            self._fills.append(
                Fill(span, root, lambda hidden: self._filled(span, hidden, live=node.live), node)
            )

    @property
    def busy(self) -> bool:
        """Whether any work is left."""
        return bool(self.rows or self._fills or self._growing)

    @property
    def demand(self) -> int:
        """Rows that run or could run now, prompts being read included."""
        return len(self.rows) + len(self._fills) + sum(g.n - g.born for g in self._growing)

    # -- the loop ----------------------------------------------------------------------------------------

    def step(self) -> None:
        """Advance every row by one token, or by several on a device, and read waiting prompts.

        Raises:
            KVMemoryError: one path alone does not fit in the KV memory.
        """
        self.reclaim()
        work = self.runner.begin()
        if self.rounds is not None and self._steady() and self.rounds.possible(self.rows):
            self._settle_round(self.rows, self.rounds.run(self.rows))
            return
        fills = self._schedule(work)
        hidden = self.runner.run(work)
        at = {span: i for i, span in enumerate(work.spans)}
        for fill in fills:
            fill.done(hidden[at[fill.span]])
        index = [at[row.span] for row in self.rows]
        for row, i in zip(self.rows, index, strict=True):
            if row.rolling:
                self._roll(row, hidden[i])
        self._sample(self.rows, take_rows(hidden, index))

    def _steady(self) -> bool:
        """Whether nothing waits that could join the rows."""
        return not self._fills and (not self._growing or len(self.rows) >= self.max_rows)

    # -- schedule ----------------------------------------------------------------------------------------

    def _schedule(self, work: Work) -> list[Fill]:
        """Put the rows' last tokens and, within the budget, waiting fills into the batch; returns whole fills."""
        self._make_room()
        self.runner.store_one(work, [row.span for row in self.rows])
        for row in self.rows:
            row.growth.root.account.computed += 1
        fills: list[Fill] = []
        most = len(self.rows) + FILL_TOKENS
        while self._fills and work.tokens < most:
            fill, before = self._fills[0], work.tokens
            if fill.resumes and work.tokens and self.runner.room < self._comfort(fill):
                break
            whole = self.runner.store(work, fill.span, most - before)
            fill.root.account.computed += work.tokens - before
            if not whole:
                if work.tokens == before and not self._relieve(work, fill):
                    break
                continue
            fills.append(self._fills.popleft())
        return fills

    def _comfort(self, fill: Fill) -> int:
        """Pages to have before a suspended row comes back, so that it is not suspended again at once."""
        return self.runner.missing(fill.span) // PAGE + 2 * (len(self.rows) + 1)

    def _relieve(self, work: Work, fill: Fill) -> bool:
        """Free memory for a fill that got none; False when it must wait for running rows."""
        missing = self.runner.missing(fill.span)
        need = min(missing, FILL_TOKENS) // PAGE + 2
        busy = [row.span for row in self.rows] + work.spans + [fill.span]
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
        need = self._pages_needed()
        if need <= self.runner.room or self.runner.evict_idle(need, [row.span for row in self.rows]):
            return
        while len(self.rows) > 1 and need > self.runner.room:
            self._suspend(self.rows.pop())
            need = self._pages_needed()
            self.runner.evict_idle(need, [row.span for row in self.rows])
        memory, busy = self.runner.memory, [row.span for row in self.rows]
        if need > self.runner.room and not memory.seize(self.runner, need, busy):
            if memory.waits(self.runner):
                self.suspend()
                return
            raise KVMemoryError(
                f"KV memory: one path of {self.rows[0].span.depth} tokens does not fit in "
                f"{self.runner.tree.stats()['total']} pages; give more memory (kv_memory) or lower max_tokens"
            )

    def _pages_needed(self) -> int:
        return sum(row.span.n_kv % PAGE == 0 for row in self.rows)

    def standing(self) -> list[Span]:
        """The rows' spans."""
        return [row.span for row in self.rows]

    def suspend(self) -> bool:
        """Take the newest row out of the batch, if there is one."""
        if self.rows:
            self._suspend(self.rows.pop())
            return True
        return False

    def _suspend(self, row: Row) -> None:
        """Take the row out of the batch; its keys and values are computed again when there is room."""
        self.runner.release(row.span)
        fill = Fill(row.span, row.growth.root, lambda _: self.rows.append(row), row.parent, resumes=row)
        self._fills.appendleft(fill)

    # -- sample ------------------------------------------------------------------------------------------

    def _births(self) -> list[tuple[Row, torch.Tensor]]:
        """New rows for waiting growths, as many as the batch and the memory hold."""
        born: list[tuple[Row, torch.Tensor]] = []
        room = self.runner.room - self._pages_needed()
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
        root = row.growth.root
        row.key = node_key(root.seed, root.problem, row.path)
        left = min(root.params.most_tokens - row.length, self.model.context - row.span.start)
        if row.most is not None:
            left = min(left, row.most - row.length)
        row.limit = min(left, root.rule.max_tokens or left)

    def _sample(self, rows: list[Row], hidden: torch.Tensor) -> None:
        """Draw the next token of every row, and the first of new ones."""
        births = self._births()
        sources: dict[int, int] = {}
        stack = [hidden]
        index = list(range(len(rows)))
        for _, state in births:
            if id(state) not in sources:
                sources[id(state)] = len(rows) + len(sources)
                stack.append(state[None])
            index.append(sources[id(state)])
        rows = rows + [row for row, _ in births]
        if not rows:
            return
        logits = self.model.decoder.logits(join_rows(stack))
        if self.measure is not None:
            values = self.measure(logits).tolist()
            for row, i in zip(rows, index, strict=True):
                row.measures.append(values[i])
        draws = [_draw_of(row) for row in rows]
        tokens, logprobs, tops = draw(logits, index, draws, backend=self.model.decoder.backend)
        self.rows = rows
        self._settle(rows, tokens, logprobs, tops)

    # -- settle ------------------------------------------------------------------------------------------

    def _settle(
        self, rows: list[Row], tokens: np.ndarray, logprobs: list[float], tops: dict[int, Top]
    ) -> None:
        """Append the drawn tokens and end the nodes that are done."""
        slots = np.fromiter((row.slot for row in rows), np.int32, len(rows))
        flags = self.matcher.advance(slots, np.maximum(tokens, 0))
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.span.tokens.append(token)
        self._end_rows(rows, tokens, logprobs, flags, tops)

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
            row.growth.root.account.computed += n
            early = found.tokens[: n - 1, i].tolist(), found.logprobs[: n - 1, i].tolist()
            row.logprobs += early[1]
            if row.growth.on_token is not None:
                for token, logprob in zip(*early, strict=True):
                    row.growth.on_token(row.child, token, logprob, None)
        final = found.logprobs[counts - 1, np.arange(len(rows))]
        self._end_rows(rows, tokens[last], final.tolist(), ends, {})

    def _end_rows(
        self,
        rows: list[Row],
        tokens: np.ndarray,
        logprobs: list[float],
        flags: np.ndarray,
        tops: dict[int, Top],
    ) -> None:
        """Tell of the last token of every row, and end the nodes that it completes."""
        eos = self.model.eos_ids
        ended: list[tuple[Row, Finish]] = []
        drawn = zip(rows, tokens.tolist(), logprobs, flags.tolist(), strict=True)
        for i, (row, token, logprob, flag) in enumerate(drawn):
            row.logprobs.append(logprob)
            if row.guide is not None and token >= 0:
                row.guide.advance(token)
            if row.growth.on_token is not None and token >= 0:
                row.growth.on_token(row.child, token, logprob, tops.get(i))
            if (
                flag
                or token < 0
                or len(row.span.tokens) >= row.limit
                or token in eos
                or row.growth.root.params.stop_token_ids
                or row.growth.root.stopped
            ):
                finish = self._finish(row, token, flag)
                if finish is not None:
                    ended.append((row, finish))
        if not ended:
            return
        gone = set()
        for row, finish in ended:
            if self._end(row, finish):
                gone.add(row)
        self.rows = [row for row in self.rows if row not in gone]

    def _finish(self, row: Row, token: int, flag: int) -> Finish | None:
        """Why the row's node ends with ``token``, if it does."""
        root, params, count = row.growth.root, row.growth.root.params, len(row.span.tokens)
        if token < 0 or not math.isfinite(row.logprobs[-1]):
            return Finish.ERROR
        if token in params.stop_token_ids or (token in self.model.eos_ids and not params.ignore_eos):
            return Finish.EOS
        if flag & STOPPED and row.length + count > params.min_tokens:
            return Finish.EOS
        if row.length + count >= params.most_tokens:
            return Finish.PATH_CAP
        if row.span.depth >= self.model.context:
            return Finish.CTX
        spent = root.stopped or (row.most is not None and row.length + count >= row.most)
        if spent and (row.growth.to_end or not flag & DELIMITED):
            return Finish.BUDGET
        if flag & DELIMITED:
            return Finish.DELIM
        if root.rule.max_tokens and count >= root.rule.max_tokens:
            return Finish.STEP_CAP
        return None

    def _end(self, row: Row, finish: Finish) -> bool:
        """Make the node and tell who asked. Returns whether the row leaves the batch."""
        span, growth = row.span, row.growth
        reason = self._cut(row) if finish is Finish.EOS else None
        if finish is Finish.ERROR:
            del span.tokens[-1], row.logprobs[-1]
        span.closed = True
        text = decode(self.table, span.tokens)
        node = Node(row.parent, row.path, tuple(span.tokens), text, finish, tuple(row.logprobs), None, reason)
        if row.measures:
            self.measured[node] = tuple(row.measures[: len(span.tokens)])  # cut as the tokens were
        self._spans[node] = span
        finalize(node, self._dead.append, span)
        rolls = growth.to_end and node.live
        if rolls:
            row.parent, row.rolling = node, True
            self._filling[span] = []
        else:
            self.matcher.close(row.slot)
        growth.on_node(node)
        if not rolls:
            growth.on_end(row.child, node)
            if not node.live and span not in self._filling:
                self.runner.release(span)
        return not rolls

    def _cut(self, row: Row) -> str | int | None:
        """Cut ids and logprobs before a completed stop string; returns what stopped the row."""
        token = row.span.tokens[-1]
        if token in self.model.eos_ids and not row.growth.root.params.ignore_eos:
            return None
        if token in row.growth.root.params.stop_token_ids:
            return token
        which, excess = self.matcher.stop(row.slot)
        if row.growth.root.params.include_stop_str_in_output:
            return row.growth.root.params.stop[which]
        # Whole tokens go, back to the one in which the stop string begins: text == decode(ids) stays true.
        while excess > 0 and row.span.tokens:
            excess -= len(self.table[row.span.tokens.pop()])
            row.logprobs.pop()
        self.runner.release(row.span)
        return row.growth.root.params.stop[which]

    def _roll(self, row: Row, hidden: torch.Tensor) -> None:
        """The closed step of a row is stored: go on with its child 0 in the same row."""
        closed = row.span
        self._filled(closed, hidden)
        row.path = (*row.path, 0)
        row.length += len(closed.tokens)
        row.span, row.logprobs, row.measures, row.rolling = Span(closed), [], [], False
        self.matcher.new_step(row.slot)
        self._start(row)

    def _reuse(self, root: Root, tokens: int) -> None:
        root.account.reused += tokens
        self.reused += tokens

    # -- ends of lives -----------------------------------------------------------------------------------

    def _filled(self, span: Span, hidden: torch.Tensor, *, live: bool = True) -> None:
        """Keep the hidden state after the span's last token and tell who waits for it."""
        span.hidden = hidden.clone()
        for done in self._filling.pop(span):
            done(span.hidden)
        if not live:
            self.runner.release(span)

    def abort(self, root: Root) -> None:
        """Stop all work for a root and free what it holds; nobody hears of it. Other roots do not notice."""
        for row in self.rows:
            if row.growth.root is root:
                self._forget(row)
        self.rows = [row for row in self.rows if row.growth.root is not root]
        for fill in self._fills:
            if fill.root is root:
                if fill.resumes:
                    self.matcher.close(fill.resumes.slot)
                self._filling.pop(fill.span, None)
                self.runner.release(fill.span)
        self._fills = deque(fill for fill in self._fills if fill.root is not root)
        self._growing = deque(growth for growth in self._growing if growth.root is not root)

    def reset(self) -> None:
        """Forget all work and everything stored. For a step that broke off: nothing it touched can be trusted."""
        for root in {row.growth.root for row in self.rows} | {fill.root for fill in self._fills}:
            self.abort(root)
        self._growing.clear()
        self._filling.clear()
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
        if self.rounds is not None:
            self.rounds = Rounds(self, tokens=self.rounds.tokens)

    def _forget(self, row: Row) -> None:
        self.matcher.close(row.slot)
        self._filling.pop(row.span, None)
        self.runner.release(row.span)

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
        seen: set[Span] = set()
        for row in self.rows:
            root = row.growth.root
            alone[root] = alone.get(root, 0) + pages(row.span.depth)
            span: Span | None = row.span
            while span is not None and span not in seen:
                seen.add(span)
                shared[root] = shared.get(root, 0) + pages(len(span.tokens))
                span = span.parent
        return {root: (shared[root], alone[root]) for root in alone}


def _draw_of(row: Row) -> Draw:
    growth, params = row.growth, row.growth.root.params
    temperature = 0.0 if growth.greedy else params.temperature
    return Draw(params, temperature, row.key, len(row.span.tokens), row.guide, growth.on_token is not None)
