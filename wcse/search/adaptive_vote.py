"""Adaptive vote (Aggarwal et al., arXiv 2305.11860): stop drawing when the majority is settled.

Solutions are the samples of ``majority`` and count in the order of their index, never in the order of their
end: short answers have no head start. The solutions up to the stopping point are returned; those of the same
chunk behind it were paid for and do not vote.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from wcse.search.config import SearchConfig
from wcse.types import Classes, Expand, Node, Search


def adaptive_vote(root: Node, config: SearchConfig) -> Search:
    """Between 1 and ``n`` solutions, drawn ``config.chunk`` at a time."""
    found: list[Node] = []
    while len(found) < config.n:
        count = min(config.chunk, config.n - len(found))
        found += yield Expand(root, count, first=len(found), to_end=True, score=False)
        classes = yield Classes(tuple(found))
        end = stopping_point(classes, config)
        if end is not None:
            return found[:end]
    return found


def stopping_point(classes: Sequence[int | None], config: SearchConfig) -> int | None:
    """After how many votes the stop rule ends the vote; None if it does not. An invalid answer is no vote."""
    counts: Counter[int] = Counter()
    for consumed, answer in enumerate(classes, 1):
        if answer is not None:
            counts[answer] += 1
        first, second = [count for _, count in counts.most_common(2)] + [0] * (2 - min(2, len(counts)))
        if config.stop_rule == "certain":
            settled = first - second > config.n - consumed
        else:
            settled = lead_holds(first, second) >= config.confidence
        if settled:
            return consumed
    return None


def lead_holds(first: int, second: int) -> float:
    """Chance that the leading of two answers is the more likely one: 1 - I_1/2(first + 1, second + 1).

    The posterior of a Beta distribution with a flat prior, given ``first >= second`` votes.
    """
    total = first + second + 1
    return 1.0 - sum(math.comb(total, k) for k in range(second + 1)) / 2**total
