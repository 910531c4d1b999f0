"""Diverse verifier tree search: independent narrow beams, so that one early favourite cannot take the budget.

``ceil(n / beam_width)`` subtrees start from the root. Each follows its own best child and competes with no
other subtree. Subtree g owns a fixed range of the root's child indices, so for the same ``beam_width`` a run
with a smaller ``n`` is exactly the first subtrees of a larger one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from wcse.search.best import Best
from wcse.search.config import SearchConfig
from wcse.search.ranking import ranked, solutions
from wcse.search.rollout import judge
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

    def advance(self, children: Sequence[Node], best: Best) -> None:
        """Take in the children that ended, and step to the best of all; a best that is complete stops it."""
        finished = [child for child in children if child.complete]
        self.complete = ranked(self.complete + finished, best.how)[: self.width]
        truncated = [child for child in children if not child.complete and not child.live]
        self.truncated = (self.truncated + truncated)[: self.width]
        self.stopped = not best.nodes or best.nodes[0].complete
        if best.nodes:
            self.head, self.first = best.nodes[0], 0


def dvts(root: Node, config: SearchConfig) -> Search:
    """At most ``beam_width`` solutions a subtree: its best completed ones, wherever on its way they ended."""
    subtrees = [_Subtree(root, first, width) for first, width in plots(config.n, config.beam_width)]
    for round_ in range(1, config.num_iterations + 1):
        growing = [(tree, Best(1, config.aggregation)) for tree in subtrees if not tree.stopped]
        if not growing:
            break
        to_end = round_ == config.num_iterations
        groups = yield Parallel(
            tuple(
                Expand(tree.head, tree.width, tree.first, to_end, best=None if config.lookahead else best)
                for tree, best in growing
            )
        )
        yield from judge([(best, group) for (_, best), group in zip(growing, groups, strict=True)], config)
        for (tree, best), children in zip(growing, groups, strict=True):
            tree.advance(children, best)
        # A node that nobody holds is pruned, and its memory is free again.
        del groups, children, growing, tree, best
    return [node for tree in subtrees for node in solutions(tree.complete, tree.truncated, tree.width)]


def plots(n: int, beam_width: int) -> list[tuple[int, int]]:
    """(first child index of the root, width) of each subtree: as even as possible, 0 .. n - 1 in all."""
    count = -(-n // beam_width)
    starts = [index * n // count for index in range(count + 1)]
    return [(first, end - first) for first, end in pairwise(starts)]
