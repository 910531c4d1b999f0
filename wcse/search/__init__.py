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

A user may give a strategy options of its own: ``beam_search(n=16,lookahead=2)``; see ``wcse.search.strategy``.
"""

from __future__ import annotations

from collections.abc import Callable

from wcse.search import compat
from wcse.search.adaptive_vote import adaptive_vote
from wcse.search.auto import auto
from wcse.search.beam_search import beam_search, lookahead_search
from wcse.search.best_of_n import best_of_n, majority
from wcse.search.config import SearchConfig
from wcse.search.dvts import dvts
from wcse.search.greedy import greedy
from wcse.search.mcts import mcts
from wcse.search.particle_filter import particle_filter
from wcse.search.rebase import rebase
from wcse.search.speculative_rejection import speculative_rejection
from wcse.search.strategy import Spec, Strategy, check_divisible, read_spec, split_specs
from wcse.types import Node, Search


def _or_compat(
    ours: Callable[[Node, SearchConfig], Search], theirs: Callable[[Node, SearchConfig], Search]
) -> Callable[[Node, SearchConfig], Search]:
    return lambda root, config: (theirs if config.compat else ours)(root, config)


def _auto(root: Node, config: SearchConfig) -> Search:
    return auto(root, config.choices)


_THEIRS = ("compat", "filter_duplicates", "sort_completed")

STRATEGIES: dict[str, Strategy] = {
    "greedy": Strategy(run=greedy, selector="majority", needs_prm=False),
    "majority": Strategy(run=majority, selector="majority", needs_prm=False),
    "best_of_n": Strategy(run=best_of_n, selector="argmax", needs_prm=True),
    "weighted_best_of_n": Strategy(run=best_of_n, selector="weighted", needs_prm=True),
    "beam_search": Strategy(
        run=_or_compat(beam_search, compat.beam_search),
        selector="weighted",
        needs_prm=True,
        check=check_divisible,
        options=("beam_width", "lookahead", *_THEIRS),
    ),
    "dvts": Strategy(
        run=_or_compat(dvts, compat.dvts),
        selector="weighted",
        needs_prm=True,
        check=check_divisible,
        options=("beam_width", "lookahead", "compat"),
    ),
    "lookahead_search": Strategy(
        run=lookahead_search,
        selector="weighted",
        needs_prm=True,
        check=check_divisible,
        options=("beam_width", "lookahead"),
    ),
    "rebase": Strategy(
        run=rebase, selector="weighted", needs_prm=True, options=("softmax_temperature", "rounding")
    ),
    "particle_filter": Strategy(
        run=particle_filter,
        selector="majority",
        needs_prm=True,
        options=("potential", "ess_threshold", "resampling"),
    ),
    "speculative_rejection": Strategy(
        run=speculative_rejection,
        selector="argmax",
        needs_prm=True,
        options=("rejection_rate", "checkpoint_tokens"),
    ),
    "adaptive_vote": Strategy(
        run=adaptive_vote, selector="majority", needs_prm=False, options=("chunk", "stop_rule", "confidence")
    ),
    "mcts": Strategy(run=mcts, selector="weighted", needs_prm=True, options=("beam_width", "exploration")),
    "auto": Strategy(run=_auto, selector="weighted", needs_prm=True),
}

ALIASES: dict[str, str] = {
    "beam": "beam_search",
    "lookahead": "lookahead_search",
    "self_consistency": "majority",
    "smc": "particle_filter",
}


def parse_strategy(text: str) -> Spec:
    """The strategy that ``text`` asks for: a name, or ``name(option=value,...)``; aliases are resolved.

    Raises:
        WcseError: no such strategy (the message lists them), or an option that it does not have.
    """
    return read_spec(text, ALIASES, STRATEGIES)


def get_strategy(text: str) -> tuple[str, Strategy]:
    """The canonical spelling and the entry of the strategy that ``text`` asks for.

    Raises:
        WcseError: as :func:`parse_strategy`.
    """
    spec = parse_strategy(text)
    return str(spec), STRATEGIES[spec.name]


__all__ = [
    "ALIASES",
    "STRATEGIES",
    "SearchConfig",
    "Spec",
    "Strategy",
    "get_strategy",
    "parse_strategy",
    "split_specs",
]
