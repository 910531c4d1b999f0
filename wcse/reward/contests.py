"""The groups that a batch of steps competes in: from ``Best`` to what ``ops.score_steps`` takes, and back.

Knows nodes and tensors, not strategies or models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch

from wcse.kernels import ops
from wcse.search.best import Best, Place
from wcse.types import Node
from wcse.votes import AGGREGATIONS

HOW = {name: number for number, name in enumerate(AGGREGATIONS)}


class Contests:
    """The contests of some nodes.

    Args:
        nodes: those whose scores and sums along their paths the batch computes.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._new = [node for node in nodes if node.contest is not None]
        entries: dict[Best, list[Node]] = {}
        for node in self._new:
            assert node.contest is not None
            entries.setdefault(node.contest, []).append(node)
        self._contenders = {best: best.contenders(new) for best, new in entries.items()}
        self._order = {
            node: i for contenders in self._contenders.values() for i, node in enumerate(contenders)
        }

    def groups(self, steps: Sequence[Node], device: torch.device) -> ops.Groups | None:
        """Places and candidates as the op takes them; ``steps`` are the nodes of its steps. None: no contest."""
        if not self._contenders:
            return None
        number = {best: g for g, best in enumerate(self._contenders)}
        new = set(self._new) & self._order.keys()
        group = [number[node.contest] if node in new and node.contest else -1 for node in steps]
        places = [place for best in number for place in self._places(best)]
        return ops.Groups(
            best=torch.tensor(places, dtype=torch.float64).reshape(-1, 2).to(device),
            bounds=_ints([0, *accumulate(best.k for best in number)], device),
            how=_ints([HOW[best.how] for best in number], device),
            group=_ints(group, device),
            order=torch.tensor([self._order.get(node, 0) for node in steps], dtype=torch.float64).to(device),
        )

    def _places(self, best: Best) -> list[tuple[float, float]]:
        """(value, order) of those who have a place, and nobody in the others."""
        held = [
            (-math.inf if math.isnan(place.value) else place.value, float(self._order[place.node]))
            for place in best.places
            if place.node in self._order  # one that an equal sibling comes before has none
        ]
        return held + [ops.NOBODY] * (best.k - len(held))

    def settle(self, groups: ops.Groups) -> None:
        """Tell every contest who has a place now; its nodes have been entered."""
        rows, begin = groups.best.tolist(), 0
        for best, contenders in self._contenders.items():
            places = rows[begin : begin + best.k]
            begin += best.k
            best.settle(
                Place(value, contenders[int(order)]) for value, order in places if not math.isinf(order)
            )
        for node in self._new:
            node.contest = None


def _ints(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32).to(device)
