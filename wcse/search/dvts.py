"""Diverse verifier tree search: independent narrow beams, so that one early favourite cannot take the budget.

``ceil(n / beam_width)`` subtrees start from the root. Each follows its own best child and competes with no
other subtree. Subtree g owns a fixed range of the root's child indices, so for the same ``beam_width`` a run
with a smaller ``n`` is exactly the first subtrees of a larger one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from wcse.search.config import SearchConfig
from wcse.search.ranking import ranked, solutions
from wcse.search.rollout import Path, values
from wcse.types import Expand, Node, Parallel, Search


@dataclass(slots=True)
class _Subtree:
    """One narrow beam: ``head`` is expanded next, ``width`` children from child index ``first``."""

    head: Node
    first: int
    width: int
    stopped: bool = False
    complete: list[Node] = field(default_factory=list)
    truncated: list[Node] = field(default_factory=list)

    def advance(self, children: Sequence[Node], worth: Mapping[Path, float], agg_strategy: str) -> None:
        """Take in the children of the head and step to the best of them; a best that is complete stops it."""
        finished = [child for child in children if child.complete]
        best = next(iter(ranked([child for child in children if child.path in worth], worth)), self.head)
        self.stopped = best is self.head or best.complete
        self.head, self.first = best, 0
        self.complete = ranked(self.complete + finished, agg_strategy)[: self.width]
        truncated = [child for child in children if not child.complete and not child.live]
        self.truncated = (self.truncated + truncated)[: self.width]


def dvts(root: Node, config: SearchConfig) -> Search:
    """At most ``beam_width`` solutions a subtree: its best completed ones, wherever on its way they ended."""
    subtrees = [_Subtree(root, first, width) for first, width in plots(config.n, config.beam_width)]
    for round_ in range(1, config.num_iterations + 1):
        growing = [tree for tree in subtrees if not tree.stopped]
        if not growing:
            break
        to_end = round_ == config.num_iterations
        groups = yield Parallel(
            tuple(Expand(tree.head, tree.width, first=tree.first, to_end=to_end) for tree in growing)
        )
        runners = [child for group in groups for child in group if child.live or child.complete]
        worth = yield from values(runners, config)
        for tree, children in zip(growing, groups, strict=True):
            tree.advance(children, worth, config.aggregation)
        del groups, children, runners  # a node that nobody holds is pruned, and its memory is free again
    return [node for tree in subtrees for node in solutions(tree.complete, tree.truncated, tree.width)]


def plots(n: int, beam_width: int) -> list[tuple[int, int]]:
    """(first child index of the root, width) of each subtree: as even as possible, 0 .. n - 1 in all."""
    count = -(-n // beam_width)
    starts = [index * n // count for index in range(count + 1)]
    return [(first, end - first) for first, end in pairwise(starts)]
