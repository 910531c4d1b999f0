"""Verifiers that write before they judge: a rationale and then P(yes), or a verdict that is parsed from the text.

A second engine grows the verdicts, all problems in one batch, below a tree of the verifier's own that mirrors the
policy's: what a step adds is read once, then the question about it and the verdict branch off. All of that is counted.
Knows records of families, not strategies or answers.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from wcse.engine.driver import Done
from wcse.engine.engine import Engine
from wcse.engine.growth import Account, Growth, Root
from wcse.engine.params import SamplingParams, StepRule
from wcse.flops import ModelCost
from wcse.reward.head import Head
from wcse.reward.layout import Layout
from wcse.reward.scorer import blank, reading_of
from wcse.types import Node


@dataclass(eq=False)
class _Verdict:
    """A question on its way: what it is about and what is written so far."""

    mirror: Root
    question: Node
    done: Done
    tokens: int = 0  # of the question, the verdict and what is asked after it


class GenerativePRM:
    """A language model that writes a verdict on every step.

    Args:
        engine: the verifier; its work is never suspended for the policy's sake, it ends soon.
        layout: how problem and steps become ids; its family says what is asked and what counts as right.
        head: two columns of the output matrix, read after the verdict; None: the verdict's text is parsed.
        context: longest input in tokens, the verdict included; a longer one scores NaN.
        default_agg: the aggregation that fits the model.
    """

    bounded = True

    def __init__(
        self, engine: Engine, layout: Layout, head: Head | None, *, context: int, default_agg: str
    ) -> None:
        self.engine = engine
        self.layout = layout
        self.head = head
        self.context = context
        self.default_agg = default_agg
        self.cost: ModelCost | None = ModelCost.of(engine.model.spec)
        engine.runner.yields = False
        self._mirrors: WeakKeyDictionary[Root, Root] = WeakKeyDictionary()
        self._nodes: WeakKeyDictionary[Node, Node] = WeakKeyDictionary()
        self._open: dict[Root, set[_Verdict]] = {}

    def submit(self, root: Root, problem: str, node: Node, done: Done) -> None:
        """Ask about a node. A step that cannot be read, or whose verdict cannot be parsed, scores NaN.

        Raises:
            WcseError: the problem itself cannot be read.
        """
        if blank(node):
            done(None)
            return
        mirror = self._mirrors.get(root) or self._plant(root, problem)
        most = self.context - self.layout.family.writes - len(self.layout.ask_ids)
        reading = reading_of(self.layout, root, problem, node, most)
        if reading is None:
            done(math.nan)
            return
        stem, depth = self._stem(node, mirror, reading.ids)
        mirror.account.reused += depth
        step = self.engine.plant(mirror, stem, reading.ids[depth:])
        self._nodes[node] = step
        verdict = _Verdict(mirror, self.engine.plant(mirror, step, reading.tail), done, len(reading.tail))
        self._open.setdefault(mirror, set()).add(verdict)
        growth = Growth(
            mirror,
            verdict.question,
            1,
            0,
            to_end=False,
            greedy=True,
            on_node=lambda _: None,
            on_end=lambda _, written: self._written(verdict, written),
        )
        self.engine.grow(growth)

    def _plant(self, root: Root, problem: str) -> Root:
        mirror = self.engine.open(
            self.layout.prefix(problem),
            seed=root.seed,
            problem=root.problem,
            params=SamplingParams(max_tokens=self.context),
            rule=StepRule("", self.layout.family.writes),
        )
        self._mirrors[root] = mirror
        return mirror

    def _stem(self, node: Node, mirror: Root, ids: list[int]) -> tuple[Node, int]:
        """The deepest node of the mirror whose path begins ``ids``, with at least one id to follow; its depth."""
        last = next((self._nodes[s] for s in reversed(node.steps()[:-1]) if s in self._nodes), mirror.node)
        stem, depth = mirror.node, len(mirror.node.token_ids)
        for step in last.steps():
            end = depth + len(step.token_ids)
            if end >= len(ids) or list(step.token_ids) != ids[depth:end]:
                break
            stem, depth = step, end
        return stem, depth

    # -- verdicts ----------------------------------------------------------------------------------------

    def _written(self, verdict: _Verdict, written: Node) -> None:
        verdict.tokens += len(written.token_ids)
        if self.head is None:
            self._close(verdict, self._parsed(written.text))
            return
        ids, below = [*self.layout.ask_ids], written
        if not written.live:  # its end token must not stand before what is asked
            below = verdict.question
            ids = [t for t in written.token_ids if t not in self.engine.model.eos_ids] + ids
        verdict.tokens += len(ids)
        asked = self.engine.plant(verdict.mirror, below, ids)
        self.engine.fill(verdict.mirror, asked, lambda hidden: self._close(verdict, self._yes(hidden)))

    def _yes(self, hidden: torch.Tensor) -> float:
        assert self.head is not None
        return float(self.head(hidden[None])[0])

    def _parsed(self, text: str) -> float:
        """1 or 0 by the last verdict in the text; NaN without one."""
        family = self.layout.family
        assert family.verdict is not None
        found = re.findall(family.verdict, text)
        return float(found[-1] in family.right) if found else math.nan

    def _close(self, verdict: _Verdict, score: float) -> None:
        pending = self._open[verdict.mirror]
        pending.discard(verdict)
        if not pending:
            del self._open[verdict.mirror]
        assert self.cost is not None
        before = sum(len(node.token_ids) for node in verdict.question.steps()[:-1])
        depth = len(verdict.mirror.node.token_ids) + before
        verdict.mirror.account.asked += verdict.tokens
        verdict.mirror.account.flops += self.cost.flops(verdict.tokens, depth)
        verdict.done(score)

    @property
    def waiting(self) -> int:
        """Verdicts that are not there yet."""
        return sum(map(len, self._open.values()))

    def step(self) -> None:
        """One token of every verdict.

        Raises:
            KVMemoryError: one path alone does not fit in the KV memory.
        """
        self.engine.step()

    def account(self, root: Root) -> Account:
        """Tokens read and written, and the operations that go beyond reading the policy's own tokens."""
        mirror = self._mirrors.get(root)
        return mirror.account if mirror else Account()

    def abort(self, root: Root) -> None:
        """Forget what is asked for a problem."""
        mirror = self._mirrors.get(root)
        if mirror is not None:
            self._open.pop(mirror, None)
            self.engine.abort(mirror)

    def reset(self) -> None:
        """Forget everything asked and stored."""
        self._open.clear()
        self._mirrors.clear()
        self._nodes.clear()
        self.engine.reset()
