"""Monte-Carlo tree search over steps: PUCT with the verifier's scores as values, no rollouts.

Each simulation walks from the root to a step that has no children yet, always to the child with the largest
mean value plus exploration bonus, writes ``beam_width`` children there, and adds their values to every step
above. The prior of a child is uniform: the children were drawn from the policy, so its probability is in their
number already. A completed solution is taken and not entered again; when nothing is open, the root gets more
children.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from wcse.search.config import SearchConfig
from wcse.search.ranking import distinct, solutions
from wcse.types import Expand, Node, Search
from wcse.votes import aggregate


@dataclass(slots=True, eq=False)
class _Place:
    """A step in the search: how often values came through it, their sum, and whether anything below is open."""

    node: Node
    above: _Place | None
    open: bool
    below: list[_Place] = field(default_factory=list)
    written: int = 0
    visits: int = 0
    total: float = 0.0

    def descend(self, exploration: float) -> _Place:
        """The step without children that the walk ends at."""
        place = self
        while place.below:
            place = min(place.below, key=lambda child: (-child.urge(exploration), child.node.path))
        return place

    def urge(self, exploration: float) -> float:
        """Mean value plus bonus; minus infinity where nothing is open."""
        assert self.above is not None
        if not self.open:
            return -math.inf
        bonus = exploration / len(self.above.below) * math.sqrt(self.above.visits) / (1 + self.visits)
        return self.total / self.visits + bonus

    def take(self, children: Sequence[Node], aggregation: str) -> None:
        """Put the children below this place and count their values."""
        self.written += len(children)
        judged = [child for child in children if child.complete] + distinct(c for c in children if c.live)
        new = [_Place(child, self, open=child.live) for child in judged]
        self.below += new
        self.open = any(child.open for child in self.below)
        for child in new:
            value = aggregate(child.node.path_scores, aggregation)
            child.back_up(0.0 if math.isnan(value) else value)
        if not new:
            self.back_up(0.0)

    def back_up(self, value: float) -> None:
        """Count a value here and at every step above, and see what is still open."""
        place: _Place | None = self
        while place is not None:
            place.visits += 1
            place.total += value
            if place.below:
                place.open = any(child.open for child in place.below)
            place = place.above


def mcts(root: Node, config: SearchConfig) -> Search:
    """At most ``n`` solutions, for at most ``n * num_iterations`` steps."""
    complete: list[Node] = []
    truncated: list[Node] = []
    top, steps = _Place(root, None, open=True), config.n * config.num_iterations
    while steps > 0 and len(complete) + len(truncated) < config.n:
        place = top.descend(config.exploration) if top.open else top
        width = min(config.beam_width, config.n - len(complete) - len(truncated), steps)
        to_end = len(place.node.path) + 1 >= config.num_iterations
        children = yield Expand(place.node, width, first=place.written, to_end=to_end)
        steps -= width
        complete += [child for child in children if child.complete]
        truncated += [child for child in children if not child.complete and not child.live]
        place.take(children, config.aggregation)
    return solutions(complete, truncated, config.n)
