"""Order and bookkeeping that the tree strategies share."""

from __future__ import annotations

from collections.abc import Iterable

from wcse.types import Node
from wcse.votes import aggregate, rank_key


def ranked(nodes: Iterable[Node], agg_strategy: str) -> list[Node]:
    """The nodes, best first, by (larger aggregated score, smaller path).

    Raises:
        WcseError: a step on a path was never scored.
    """
    return sorted(nodes, key=lambda node: rank_key(aggregate(node.scores, agg_strategy), node.path))


def distinct(nodes: Iterable[Node]) -> list[Node]:
    """The nodes without repeated texts (exact token ids from the root on); the first of equals stays."""
    first: dict[tuple[int, ...], Node] = {}
    for node in nodes:
        first.setdefault(tuple(node.completion_ids), node)
    return list(first.values())


def solutions(complete: Iterable[Node], truncated: Iterable[Node], limit: int) -> list[Node]:
    """What a search returns: at most ``limit`` solutions in the order of their paths.

    Complete ones come first into the limit; truncated ones fill up what is left, so that a shortfall shows
    its cause. Truncated ones are taken by path: they may have no score.
    """
    by_path = [*sorted(complete, key=lambda node: node.path), *sorted(truncated, key=lambda node: node.path)]
    return sorted(by_path[:limit], key=lambda node: node.path)
