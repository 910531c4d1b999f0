"""Scorers: a queue of written steps in, one score per step out, each new token read once.

``SharedHead`` reads the policy's own hidden states, so policy and verifier share one KV tree. ``SeparatePRM``
is a second model over its own tree that mirrors the policy's: siblings share their prefix and only a step's
new tokens are read. Neither knows of strategies, aggregation or answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, finalize

import torch

from wcse.engine.driver import Done
from wcse.engine.engine import Account, Engine, Root
from wcse.engine.runner import KVMemoryError, Runner, Span
from wcse.reward.families import Layout
from wcse.reward.head import Head
from wcse.types import Node

READ_TOKENS = 1024  # tokens of one verifier batch


def blank(node: Node) -> bool:
    """Whether the node shows no text: it is no step, and has no score."""
    return not node.text.strip()


class SharedHead:
    """A head on the policy's own hidden states; a score costs one row of a small matrix product."""

    def __init__(self, engine: Engine, head: Head, *, default_agg: str = "last") -> None:
        self.engine = engine
        self.head = head
        self.default_agg = default_agg
        self._queue: list[tuple[torch.Tensor, Done]] = []

    def submit(self, root: Root, problem: str, node: Node, done: Done) -> None:
        if blank(node):
            done(None)
        else:
            self.engine.fill(root, node, lambda hidden: self._queue.append((hidden, done)))

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def step(self) -> None:
        queue, self._queue = self._queue, []
        scores = self.head(torch.stack([hidden for hidden, _ in queue])).tolist()
        for (_, done), score in zip(queue, scores, strict=True):
            done(score)

    def account(self, root: Root) -> Account:
        """Always empty: the policy's tokens are counted with the policy."""
        return Account()


@dataclass(eq=False)
class _Reading:
    """A step on its way through the verifier."""

    span: Span
    node: Node
    account: Account
    done: Done


@dataclass
class _Mirror:
    """The verifier's side of one problem."""

    prompt: Span
    account: Account = field(default_factory=Account)


class SeparatePRM:
    """A process reward model of its own, read incrementally over a mirrored tree.

    Args:
        runner: the verifier's decoder and KV tree.
        layout: how problem and steps become ids.
        head: what turns the hidden state at the end of a step's piece into a score.
        context: longest input in tokens; a longer one scores NaN, which ranks last.
    """

    def __init__(self, runner: Runner, layout: Layout, head: Head, *, context: int, default_agg: str) -> None:
        self.runner = runner
        self.layout = layout
        self.head = head
        self.context = context
        self.default_agg = default_agg
        self._mirrors: WeakKeyDictionary[Root, _Mirror] = WeakKeyDictionary()
        self._spans: WeakKeyDictionary[Node, Span] = WeakKeyDictionary()
        self._queue: list[_Reading] = []
        self._dead: list[Span] = []

    def submit(self, root: Root, problem: str, node: Node, done: Done) -> None:
        if blank(node):
            done(None)
            return
        mirror = self._mirrors.get(root) or self._open(root, problem)
        parent, index = self._parent(node, mirror)
        text = node.text.removesuffix(root.rule.delimiter).strip()
        span = Span(parent, self.layout.step(text, index))
        span.closed = True
        self._spans[node] = span
        finalize(node, self._dead.append, span)
        if span.depth > self.context:
            done(math.nan)
            return
        mirror.account.reused += parent.depth
        self._queue.append(_Reading(span, node, mirror.account, done))

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def step(self) -> None:
        """Read the waiting steps, one batch of at most READ_TOKENS.

        Raises:
            KVMemoryError: one path alone does not fit in the verifier's KV memory.
        """
        while self._dead:
            span = self._dead.pop()
            self.runner.release(span, cache=span.prompt)
        work = self.runner.begin()
        done: list[_Reading] = []
        while len(done) < len(self._queue) and work.tokens < READ_TOKENS:
            reading, before = self._queue[len(done)], work.tokens
            whole = self.runner.store(work, reading.span, READ_TOKENS - before)
            reading.account.computed += work.tokens - before
            if whole:
                done.append(reading)
            elif work.tokens >= READ_TOKENS:
                break
            elif work.tokens == before:
                if work.tokens or self.runner.evict_idle(self._need(reading), [reading.span]):
                    if work.tokens:
                        break
                    continue
                raise KVMemoryError(
                    f"KV memory of the verifier: one path of {reading.span.depth} tokens does not fit in "
                    f"{self.runner.tree.stats()['total']} pages; give more memory (kv_memory)"
                )
        hidden = self.runner.run(work)
        at = {span: i for i, span in enumerate(work.spans)}
        del self._queue[: len(done)]
        if done:
            scores = self.head(hidden[[at[reading.span] for reading in done]]).tolist()
            for reading, score in zip(done, scores, strict=True):
                if not reading.node.live:
                    self.runner.release(reading.span)
                reading.done(score)

    def account(self, root: Root) -> Account:
        mirror = self._mirrors.get(root)
        return mirror.account if mirror else Account()

    def _need(self, reading: _Reading) -> int:
        return self.runner.missing(reading.span) // 16 + 2

    def _open(self, root: Root, problem: str) -> _Mirror:
        span, matched = self.runner.prompt(self.layout.prefix(problem))
        mirror = _Mirror(span)
        mirror.account.reused += matched
        self._mirrors[root] = mirror
        finalize(root, self._dead.extend, span.lineage())
        return mirror

    def _parent(self, node: Node, mirror: _Mirror) -> tuple[Span, int]:
        """The span of the nearest step above, and the number of steps above."""
        above = [step for step in node.steps()[:-1] if step in self._spans]
        return (self._spans[above[-1]] if above else mirror.prompt), len(above)
