"""Order and bookkeeping that the tree strategies share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from wcse.types import Node
from wcse.votes import aggregate, rank_key


def ranked(nodes: Iterable[Node], worth: str | Mapping[tuple[int, ...], float]) -> list[Node]:
    """The nodes, best first, by (larger value, smaller path).

    Args:
        worth: the value of each node by its path, or the name of the aggregation of its step scores.

    Raises:
        WcseError: a step on a path was never scored.
    """

    def value(node: Node) -> float:
        return aggregate(node.path_scores, worth) if isinstance(worth, str) else worth[node.path]

    return sorted(nodes, key=lambda node: rank_key(value(node), node.path))


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
