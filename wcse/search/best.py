"""The best of a group of candidates, kept while their scores come in, in any order.

A strategy hands a ``Best`` out with its requests, and whoever learns a candidate's score enters it: the driver, or a
verifier's head, whose op does the same natively. A candidate that cannot be among the best any more is held by nobody,
so it is pruned at once. Knows nodes and their scores, no engine.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from typing import NamedTuple

from wcse.types import Node
from wcse.votes import aggregate, rank_key


class Place(NamedTuple):
    """A candidate that is among the best, with what it is ranked by."""

    value: float
    node: Node

    @property
    def rank(self) -> tuple[float, tuple[int, ...]]:
        """Sort key, best first."""
        return rank_key(self.value, self.node.path)


class Best:
    """The ``k`` best of the nodes that were entered, by (larger value, smaller path); NaN ranks last.

    Siblings of equal token ids are one candidate, the first of them; their values are equal, as a value depends on
    nothing but the text. So the result does not depend on the order of the entries.

    Args:
        k: how many.
        how: the aggregation of step scores that ranks them.
    """

    __slots__ = ("_held", "how", "k", "places")

    def __init__(self, k: int, how: str) -> None:
        self.k = k
        self.how = how
        self.places: list[Place] = []
        self._held: dict[tuple[Node | None, tuple[int, ...]], Place] = {}

    @property
    def nodes(self) -> list[Node]:
        """The best, best first."""
        return [place.node for place in self.places]

    def enter(self, node: Node, value: float | None = None) -> None:
        """Enter a node with its value, or with the aggregate of its scores. Entering it again changes nothing.

        Raises:
            WcseError: a step on its path was never scored.
        """
        twin = self._held.get(_text(node))
        if twin is not None:
            if twin.node.path <= node.path:
                return
            self.places.remove(twin)
        place = Place(aggregate(node.path_scores, self.how) if value is None else value, node)
        insort(self.places, place, key=lambda place: place.rank)
        self._held[_text(node)] = place
        for beaten in self.places[self.k :]:
            del self._held[_text(beaten.node)]
        del self.places[self.k :]

    def contenders(self, new: Iterable[Node]) -> list[Node]:
        """Those who have a place and the new ones, in the order of their paths; of equals the first."""
        first: dict[tuple[Node | None, tuple[int, ...]], Node] = {}
        for node in sorted([*self.nodes, *new], key=lambda node: node.path):
            first.setdefault(_text(node), node)
        return list(first.values())

    def settle(self, places: Iterable[Place]) -> None:
        """Take the best over from who ranked the contenders: at most ``k``, best first."""
        self.places = list(places)
        self._held = {_text(place.node): place for place in self.places}


def _text(node: Node) -> tuple[Node | None, tuple[int, ...]]:
    """Equal for siblings of equal text."""
    return node.parent, node.token_ids
