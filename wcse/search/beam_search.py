"""Beam search over steps (Snell et al., arXiv 2408.03314), with an exact budget.

The beam has ``n`` slots. Each round fills the free slots with children of the best live nodes; a completed
solution keeps its slot for good. So a search returns exactly ``n`` solutions unless a limit cut some of them,
and asks for at most ``n`` children a round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from wcse.search.config import SearchConfig
from wcse.search.ranking import distinct, ranked, solutions
from wcse.search.rollout import Path, values
from wcse.types import Expand, Node, Parallel, Search


def beam_search(root: Node, config: SearchConfig) -> Search:
    """Keep the best ``ceil(free / beam_width)`` nodes each round, with ``free = n - completed``."""
    complete: list[Node] = []
    truncated: list[Node] = []
    beam = [(root, config.n)]
    for round_ in range(1, config.num_iterations + 1):
        to_end = round_ == config.num_iterations
        groups = yield Parallel(tuple(Expand(node, width, to_end=to_end) for node, width in beam))
        children = [child for group in groups for child in group]
        complete += [child for child in children if child.complete]
        truncated += [child for child in children if not child.complete and not child.live]
        del truncated[config.n :]
        live = distinct(child for child in children if child.live) if len(complete) < config.n else []
        worth = yield from values(live, config)
        beam = _allocate(live, worth, config.n - len(complete), config.beam_width)
        del groups, children, live  # a node that nobody holds is pruned, and its memory is free again
        if not beam:
            break
    return solutions(complete, truncated, config.n)


def lookahead_search(root: Node, config: SearchConfig) -> Search:
    """Beam search whose steps are ranked after at least one greedy step of lookahead."""
    return beam_search(root, replace(config, lookahead=max(1, config.lookahead)))


def _allocate(
    live: Sequence[Node], worth: Mapping[Path, float], free: int, beam_width: int
) -> list[tuple[Node, int]]:
    """The next beam: the best live children and how many children each gets; the widths sum to ``free``."""
    keep = min(len(live), -(-free // beam_width))
    if keep == 0:
        return []
    width, extra = divmod(free, keep)
    return [(node, width + (rank < extra)) for rank, node in enumerate(ranked(live, worth)[:keep])]
