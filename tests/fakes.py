"""Stand-ins without a model: a policy and a verifier that depend only on (seed, problem, path) and the text.

``run`` drives one strategy with them and answers its requests in any order, so a test can show that the order
does not matter. Token ids are the bytes of the text.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from wcse.rng import node_key, uniforms
from wcse.types import Chosen, Classes, Draw, Expand, Finish, Node, Parallel, Score, Search


def make_root(prompt: str = "1 + 1 = ?") -> Node:
    return Node(None, (), tuple(prompt.encode()), prompt)


def make_path(*scores: float, finish: Finish = Finish.EOS, path: tuple[int, ...] | None = None) -> Node:
    """A chain below a new root with these step scores; the last node ends with ``finish``."""
    path = path or (0,) * len(scores)
    node = make_root()
    for depth, score in enumerate(scores):
        last = depth == len(scores) - 1
        text = f"{depth} "
        node = Node(
            node, path[: depth + 1], tuple(text.encode()), text, finish if last else Finish.DELIM, score=score
        )
    return node


class ToyPRM:
    """Scores a step by a hash of the text up to it, so equal partial solutions score equally."""

    def __init__(self, seed: int = 0, nan: float = 0.0) -> None:
        self.seed, self.nan = seed, nan

    def score(self, node: Node) -> float:
        """In [0, 1), or NaN for a share ``nan`` of all texts."""
        digest = blake2b(f"{self.seed}|{node.completion}".encode(), digest_size=8).digest()
        u = int.from_bytes(digest, "little") / 2**64
        return math.nan if u < self.nan else u


@dataclass
class FakePolicy:
    """Writes steps from a list of ``words`` words; each ends the solution with the given probabilities.

    It keeps a log of plain records, no nodes: ``tree`` maps each path written to (finish, text, score),
    ``asked`` lists the children asked for in each answered request.
    """

    seed: int = 0
    problem: str = "p"
    eos: float = 0.15
    cut: float = 0.0
    words: int = 10
    max_steps: int = 60
    prm: ToyPRM = field(default_factory=ToyPRM)
    tree: dict[tuple[int, ...], tuple[str, str, float | None]] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)

    def answer(self, request: Any, shuffle: random.Random | None = None) -> Any:
        """The result of a request; independent parts are worked off in shuffled order."""
        match request:
            case Parallel(requests):
                return self._each(lambda part: self.answer(part, shuffle), requests, shuffle)
            case Score(nodes):
                return self._each(self._scored, nodes, shuffle)
            case Classes(nodes):
                return [int(node.text.split("{")[1][0]) if node.complete else None for node in nodes]
            case Draw(label, n):
                return uniforms(self.seed, self.problem, label, n)
            case Expand(node, n, first):
                assert node.live and n >= 1
                self.asked.append(n)
                return self._each(lambda i: self._reach(request, i), range(first, first + n), shuffle)
        raise TypeError(f"unknown request {request!r}")

    @staticmethod
    def _each(work: Any, items: Any, shuffle: random.Random | None) -> list[Any]:
        order = list(range(len(items)))
        if shuffle:
            shuffle.shuffle(order)
        done = {i: work(items[i]) for i in order}
        return [done[i] for i in range(len(items))]

    def _reach(self, request: Expand, index: int) -> Node:
        node = self._step(request.node, index, request)
        while request.to_end and node.live:
            node = self._step(node, 0, request)
        return node

    def _step(self, parent: Node, index: int, request: Expand) -> Node:
        path = (*parent.path, index)
        assert path not in self.tree, f"{path} was written twice"
        draw = random.Random(f"{node_key(self.seed, self.problem, path)}{'greedy' if request.greedy else ''}")
        finish = self._finish(draw.random(), len(path))
        word = draw.randrange(self.words)
        text = f"So \\boxed{{{word}}}." if finish is Finish.EOS else f"step {word}\n\n"
        node = Node(parent, path, tuple(text.encode()), text, finish, (0.0,) * len(text))
        if request.score:
            self._scored(node)
        self.tree[path] = (str(finish), text, node.score)
        return node

    def _finish(self, u: float, depth: int) -> Finish:
        if u < self.eos:
            return Finish.EOS
        if u < self.eos + self.cut or depth >= self.max_steps:
            return Finish.PATH_CAP
        return Finish.DELIM if u < 0.95 else Finish.STEP_CAP

    def _scored(self, node: Node) -> float:
        node.score = self.prm.score(node)
        return node.score


def run(search: Search, policy: FakePolicy, order: int | None = None) -> list[Node]:
    """Drive a strategy to its end; ``order`` seeds a shuffle of the work inside each request."""
    shuffle = None if order is None else random.Random(order)
    try:
        request = next(search)
        while True:
            request = search.send(policy.answer(request, shuffle))
    except StopIteration as stop:
        return stop.value.solutions if isinstance(stop.value, Chosen) else stop.value
