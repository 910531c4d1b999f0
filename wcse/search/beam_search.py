"""Beam search over steps (Snell et al., arXiv 2408.03314), with an exact budget.

The beam has ``n`` slots. Each round fills the free slots with children of the best live nodes; a completed
solution keeps its slot for good. So a search returns exactly ``n`` solutions unless a limit cut some of them,
and asks for at most ``n`` children a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from wcse.search.best import Best
from wcse.search.config import SearchConfig
from wcse.search.ranking import distinct, solutions
from wcse.search.rollout import judge
from wcse.types import Expand, Node, Parallel, Search


def beam_search(root: Node, config: SearchConfig) -> Search:
    """Keep the best ``ceil(free / beam_width)`` nodes each round, with ``free = n - completed``."""
    complete: list[Node] = []
    truncated: list[Node] = []
    beam = [(root, config.n)]
    for round_ in range(1, config.num_iterations + 1):
        to_end = round_ == config.num_iterations
        best = Best(_slots(config.n - len(complete), config), config.aggregation)
        early = None if config.lookahead else best
        groups = yield Parallel(tuple(Expand(node, width, to_end=to_end, best=early) for node, width in beam))
        children = [child for group in groups for child in group]
        complete += [child for child in children if child.complete]
        truncated += [child for child in children if not child.complete and not child.live]
        del truncated[config.n :]
        free = config.n - len(complete)
        if free > 0:
            yield from judge([(best, distinct(child for child in children if child.live))], config)
        beam = _widths(best.nodes[: _slots(free, config)], free)
        del groups, children, best, early  # a node that nobody holds is pruned, and its memory is free again
        if not beam:
            break
    return solutions(complete, truncated, config.n)


def lookahead_search(root: Node, config: SearchConfig) -> Search:
    """Beam search whose steps are ranked after at least one greedy step of lookahead."""
    return beam_search(root, replace(config, lookahead=max(1, config.lookahead)))


def _slots(free: int, config: SearchConfig) -> int:
    """How many nodes share the free slots."""
    return -(-free // config.beam_width)


def _widths(nodes: Sequence[Node], free: int) -> list[tuple[Node, int]]:
    """How many children each node gets, best first; the widths sum to ``free``."""
    return [(node, free // len(nodes) + (rank < free % len(nodes))) for rank, node in enumerate(nodes)]
