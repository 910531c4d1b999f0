"""Scorers: a queue of written steps in, one score per step out, each new token read once.

``SharedHead`` reads the policy's own hidden states, so policy and verifier share one KV tree. ``SeparatePRM``
is a second model over its own tree that mirrors the policy's: siblings share their prefix, equal texts are one,
and only a step's new tokens are read. ``ImplicitPRM`` compares two of these. None knows of strategies,
aggregation or answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, WeakValueDictionary, finalize

import torch

from wcse.engine.driver import Done
from wcse.engine.engine import Engine
from wcse.engine.growth import Account, Root
from wcse.engine.runner import KVMemoryError, KVMemoryHeld, Runner
from wcse.engine.spans import Span
from wcse.flops import ModelCost
from wcse.kernels.copies import join_rows
from wcse.reward.head import Head
from wcse.reward.layout import Layout, Reading
from wcse.reward.readers import Reader
from wcse.types import Node, WcseError

READ_TOKENS = 1024  # tokens of one verifier batch


def blank(node: Node) -> bool:
    """Whether the node shows no text: it is no step, and has no score."""
    return not node.text.strip()


def step_texts(node: Node, delimiter: str) -> list[str]:
    """The texts of the steps up to a node, without delimiters; blank ones are left out."""
    above = [step for step in node.steps() if step is node or not blank(step)]
    return [step.text.removesuffix(delimiter).strip() for step in above]


def reading_of(layout: Layout, root: Root, problem: str, node: Node, context: int) -> Reading | None:
    """How a node is read, with less than ``context`` tokens; None: it is too long, or holds the family's tag."""
    try:
        reading = layout.read(problem, step_texts(node, root.rule.delimiter), ended=not node.live)
    except WcseError:
        return None
    return reading if reading.read < context else None


class SharedHead:
    """A head on the policy's own hidden states; a score costs one row of a small matrix product."""

    cost: ModelCost | None = None
    bounded = True

    def __init__(self, engine: Engine, head: Head, *, default_agg: str = "last") -> None:
        self.engine = engine
        self.head = head
        self.default_agg = default_agg
        self._queue: list[tuple[Root, Node, torch.Tensor, Done]] = []

    def submit(self, root: Root, problem: str, node: Node, done: Done) -> None:
        if blank(node):
            done(None)
        else:
            self.engine.fill(root, node, lambda hidden: self._queue.append((root, node, hidden, done)))

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def step(self) -> None:
        queue, self._queue = self._queue, []
        with self.engine.runner.lane.entered():
            hidden = join_rows([row[None] for _, _, row, _ in queue])
            scores = self.head.score_nodes(hidden, [node for _, node, _, _ in queue], range(len(queue)))
        for (*_, done), score in zip(queue, scores, strict=True):
            done(score)

    def account(self, root: Root) -> Account:
        """Always empty: the policy's tokens are counted with the policy."""
        return Account()

    def abort(self, root: Root) -> None:
        """Forget what is queued for a problem."""
        self._queue = [entry for entry in self._queue if entry[0] is not root]

    def reset(self) -> None:
        """Forget what is queued; what is stored is the policy's."""
        self._queue = []


@dataclass(eq=False)
class _Step:
    """A text in the verifier's tree: read once, however many nodes have it. It lives as long as they do."""

    span: Span
    score: float | None = None  # once it was read
    waiting: list[tuple[Node, Done]] = field(default_factory=list)


_Text = tuple[Span, Span | None, tuple[int, ...], int]
"""A problem's prompt, the span that a step stands on, its own ids, and how many of them are its tail."""


@dataclass(eq=False)
class _Reading:
    """A step on its way through the verifier."""

    span: Span
    step: _Step
    account: Account

    @property
    def passing(self) -> bool:
        """Whether the span holds a tail, which nothing else stands on."""
        return self.span is not self.step.span


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
        reader: what turns the rows of a step's piece into a score.
        context: longest input in tokens; a longer one scores NaN, which ranks last.
        default_agg: the aggregation that fits the model.
    """

    def __init__(
        self, runner: Runner, layout: Layout, reader: Reader, *, context: int, default_agg: str
    ) -> None:
        self.runner = runner
        self.layout = layout
        self.reader = reader
        self.context = context
        self.default_agg = default_agg
        self.cost: ModelCost | None = ModelCost.of(runner.decoder.spec, head=False)
        self._mirrors: WeakKeyDictionary[Root, _Mirror] = WeakKeyDictionary()
        self._steps: WeakKeyDictionary[Node, _Step] = WeakKeyDictionary()
        self._texts: WeakValueDictionary[_Text, _Step] = WeakValueDictionary()
        self._queue: list[_Reading] = []
        self._dead: list[Span] = []

    @property
    def bounded(self) -> bool:
        """Whether scores lie in [0, 1]."""
        return self.layout.family.bounded

    def submit(self, root: Root, problem: str, node: Node, done: Done) -> None:
        """Queue a node. A step that cannot be read as its family asks (too long, holds the tag) scores NaN.

        Raises:
            WcseError: the problem itself cannot be read.
        """
        if blank(node):
            done(None)
            return
        mirror = self._mirrors.get(root) or self._open(root, problem)
        reading = reading_of(self.layout, root, problem, node, self.context)
        if reading is None:
            done(math.nan)
            return
        parent = self._stem(node, mirror, reading.ids)
        start = parent.depth if parent else 0
        text = mirror.prompt, parent, tuple(reading.ids[start:] + reading.tail), len(reading.tail)
        step = self._texts.get(text)
        if step is None:
            step = self._texts[text] = self._begin(parent, reading, mirror.account)
            mirror.account.reused += start
        else:  # another node has the same text
            mirror.account.reused += reading.read + 1
        self._steps[node] = step
        if step.score is not None:
            done(step.score)
        else:
            step.waiting.append((node, done))

    def _begin(self, parent: Span | None, reading: Reading, account: Account) -> _Step:
        """Queue a text that nobody has asked for."""
        step = _Step(self._span(parent, reading.ids[parent.depth if parent else 0 :]))
        finalize(step, self._dead.append, step.span)
        end = self._span(step.span, reading.tail) if reading.tail else step.span
        self._queue.append(_Reading(end, step, account))
        return step

    def _span(self, parent: Span | None, ids: list[int]) -> Span:
        span = Span(parent, ids)
        span.closed = True
        return span

    def _stem(self, node: Node, mirror: _Mirror, ids: list[int]) -> Span | None:
        """The deepest span above the node whose whole path begins ``ids``, with at least one id to follow.

        It is the span of the step above, unless the tokenizer merged over the seam between the two.
        """
        steps = self._steps
        last = next((steps[s].span for s in reversed(node.steps()[:-1]) if s in steps), mirror.prompt)
        stem: Span | None = None
        for span in last.lineage():
            if span.depth >= len(ids) or span.tokens != ids[span.start : span.depth]:
                break
            stem = span
        return stem

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def step(self) -> None:
        """Read waiting steps, in batches of at most READ_TOKENS, until at least one is whole.

        Nothing is half read between two steps, so the policy may have any of the memory then.

        Raises:
            KVMemoryHeld: the memory is with work of other models that ends soon; the step can be tried again then.
            KVMemoryError: one path alone does not fit in the KV memory.
        """
        while self._dead:
            span = self._dead.pop()
            self.runner.release(span, cache=span.prompt)
        with self.runner.lane.entered():
            while self._queue and not self._read():
                pass

    def _read(self) -> bool:
        """One batch; whether a step is whole now."""
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
                if work.tokens:
                    break
                if self.runner.memory.seize(self.runner, self._need(reading), [reading.span]):
                    continue
                held = self.runner.memory.waits(self.runner)
                raise (KVMemoryHeld if held else KVMemoryError)(
                    f"KV memory of the verifier: one path of {reading.span.depth} tokens does not fit in "
                    f"{self.runner.tree.stats()['total']} pages; give more memory (kv_memory)"
                )
        nodes = [reading.step.waiting[0][0] for reading in done]
        scores = self.reader(self.runner, work, [reading.span for reading in done], nodes)
        del self._queue[: len(done)]
        for reading, score in zip(done, scores, strict=True):
            step = reading.step
            step.score, waiting, step.waiting = score, step.waiting, []
            if reading.passing:
                self.runner.release(reading.span)
            if not any(node.live for node, _ in waiting):
                self.runner.release(step.span)
            for _, hear in waiting:
                hear(score)
        return bool(done)

    def account(self, root: Root) -> Account:
        mirror = self._mirrors.get(root)
        return mirror.account if mirror else Account()

    def abort(self, root: Root) -> None:
        """Forget what is queued for a problem and free its pages; those of its prompt stay cached."""
        account = self.account(root)
        gone = [reading for reading in self._queue if reading.account is account]
        self._queue = [reading for reading in self._queue if reading.account is not account]
        for reading in gone:
            reading.step.waiting.clear()
            self.runner.release(reading.span)

    def reset(self) -> None:
        """Forget everything queued and stored. A step that broke off has counted tokens as stored that are not."""
        for reading in self._queue:
            reading.step.waiting.clear()
        self._queue = []
        self._mirrors.clear()
        self._steps.clear()
        self._texts.clear()
        self.runner.reset()

    def _need(self, reading: _Reading) -> int:
        return self.runner.missing(reading.span) // 16 + 2

    def _open(self, root: Root, problem: str) -> _Mirror:
        span, matched = self.runner.prompt(self.layout.prefix(problem))
        mirror = _Mirror(span)
        mirror.account.reused += matched
        self._mirrors[root] = mirror
        finalize(root, self._dead.extend, span.lineage())
        return mirror


class ImplicitPRM:
    """An implicit process reward model: two language models whose log-ratio is the reward (arXiv 2412.01981).

    The score of a step is sigmoid(bias + beta * (log p(path) - log p_reference(path))), over all tokens of the
    solution up to the end of the step; so it is already accumulated, and ``last`` is its aggregation. A family
    that is not bounded leaves out the sigmoid.

    Args:
        model: reads log-probabilities of paths under the trained model (``readers.LogprobReader``).
        reference: the same under the model that it was trained against.
        beta: what the log-ratio, in nats, is multiplied by.
        bias: the logit of a path that both find equally likely.
    """

    default_agg = "last"

    def __init__(self, model: SeparatePRM, reference: SeparatePRM, *, beta: float, bias: float = 0.0) -> None:
        self.model = model
        self.reference = reference
        self.beta = beta
        self.bias = bias
        sides = [ModelCost.of(side.runner.decoder.spec) for side in (model, reference)]
        self.cost: ModelCost | None = sides[0] + sides[1]

    def submit(self, root: Root, problem: str, node: Node, done: Done) -> None:
        if blank(node):
            done(None)
            return
        found: dict[SeparatePRM, float | None] = {}

        def hear(side: SeparatePRM) -> Done:
            def heard(logprob: float | None) -> None:
                found[side] = logprob
                if len(found) == 2:
                    done(self._score(found[self.model], found[self.reference]))

            return heard

        self.model.submit(root, problem, node, hear(self.model))
        self.reference.submit(root, problem, node, hear(self.reference))

    @property
    def bounded(self) -> bool:
        """Whether scores lie in [0, 1]."""
        return self.model.bounded

    @property
    def layout(self) -> Layout:
        """How both models read."""
        return self.model.layout

    @property
    def context(self) -> int:
        """Longest input in tokens that both models read."""
        return min(self.model.context, self.reference.context)

    def _score(self, logprob: float | None, reference: float | None) -> float:
        assert logprob is not None and reference is not None
        logit = self.bias + self.beta * (logprob - reference)
        if not self.bounded:
            return logit
        return float(torch.sigmoid(torch.tensor(logit, dtype=torch.float64)))

    @property
    def waiting(self) -> int:
        return max(self.model.waiting, self.reference.waiting)

    def step(self) -> None:
        for side in (self.model, self.reference):
            if side.waiting:
                side.step()

    def account(self, root: Root) -> Account:
        """Tokens of both models."""
        mine, other = self.model.account(root), self.reference.account(root)
        return Account(mine.computed + other.computed, mine.reused + other.reused)

    def abort(self, root: Root) -> None:
        """Forget what is queued for a problem, in both models."""
        self.model.abort(root)
        self.reference.abort(root)

    def reset(self) -> None:
        """Forget everything queued and stored, in both models."""
        self.model.reset()
        self.reference.reset()
