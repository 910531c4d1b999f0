"""Search strategies: pure generators over the requests of wcse.types, one file each.

A strategy knows no model, batch or device. It yields ``Expand`` and ``Score`` requests (``Parallel`` for
several at once), is resumed with their results, and returns the last nodes of its solutions. A node that it
no longer holds is pruned. A new strategy is a function and an entry here; this one draws solutions two at a
time until the verifier likes one of them::

    def until_good(root: Node, config: SearchConfig) -> Search:
        found: list[Node] = []
        while len(found) < config.n:
            found += yield Expand(root, min(2, config.n - len(found)), first=len(found), to_end=True)
            if any(node.complete and aggregate(node.scores, config.aggregation) > 0.9 for node in found):
                break
        return found

    STRATEGIES["until_good"] = Strategy(run=until_good, selector="argmax", needs_prm=True)
"""

from __future__ import annotations

from wcse.search.beam_search import beam_search
from wcse.search.best_of_n import best_of_n, majority
from wcse.search.config import SearchConfig
from wcse.search.dvts import dvts
from wcse.search.greedy import greedy
from wcse.search.strategy import Strategy, check_divisible
from wcse.types import WcseError

STRATEGIES: dict[str, Strategy] = {
    "greedy": Strategy(run=greedy, selector="majority", needs_prm=False),
    "majority": Strategy(run=majority, selector="majority", needs_prm=False),
    "best_of_n": Strategy(run=best_of_n, selector="argmax", needs_prm=True),
    "weighted_best_of_n": Strategy(run=best_of_n, selector="weighted", needs_prm=True),
    "beam_search": Strategy(run=beam_search, selector="weighted", needs_prm=True, check=check_divisible),
    "dvts": Strategy(run=dvts, selector="weighted", needs_prm=True, check=check_divisible),
}

ALIASES: dict[str, str] = {"beam": "beam_search"}


def get_strategy(name: str) -> tuple[str, Strategy]:
    """The full name (aliases resolved) and the strategy.

    Raises:
        WcseError: no such strategy; the message lists them.
    """
    name = ALIASES.get(name, name)
    if name not in STRATEGIES:
        raise WcseError(f"strategy={name!r} is unknown; use one of {', '.join(STRATEGIES)}")
    return name, STRATEGIES[name]


__all__ = ["ALIASES", "STRATEGIES", "SearchConfig", "Strategy", "get_strategy"]
