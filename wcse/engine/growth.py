"""What an engine grows: problems, what was asked for below their nodes, and the rows in which it is written.

Records only; who gets into the batch is ``schedule``, a row's numbers are ``table``, what becomes of it is ``engine``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from wcse.engine.draw import Top
from wcse.engine.params import SamplingParams, StepRule
from wcse.engine.rules import Guide, Rules
from wcse.engine.spans import Span
from wcse.types import Node


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
    """A node being written. ``parent`` keeps the nodes above it alive.

    While the row is in a ``RowTable`` its newest tokens are there: ``span`` and ``logprobs`` lag behind until ``sync``.
    """

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

    @property
    def root(self) -> Root:
        """The problem that it belongs to."""
        return self.growth.root


@dataclass(eq=False)
class Fill:
    """A span whose keys, values and last hidden state are wanted."""

    span: Span
    root: Root
    done: Callable[[torch.Tensor], None]
    node: Node  # held, so that the span outlives the wait
    resumes: Row | None = None  # the suspended row that goes on when it is there
