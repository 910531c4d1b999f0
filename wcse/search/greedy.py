"""Greedy decoding: the most likely token each time, one solution. The baseline of every search."""

from __future__ import annotations

from wcse.search.config import SearchConfig
from wcse.types import Expand, Node, Search


def greedy(root: Node, config: SearchConfig) -> Search:
    """One solution without sampling and without a verifier; ``config`` has nothing to say here."""
    leaves: list[Node] = yield Expand(root, 1, to_end=True, score=False, greedy=True)
    return leaves
