"""Lookahead (Snell et al., arXiv 2408.03314, 5.2): judge a step by where greedy decoding leads from it.

A rollout below a candidate is scored together with it and then dropped: paid for, never committed. One round
over N candidates with lookahead k writes up to N (k + 1) steps.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from wcse.search.best import Best
from wcse.search.config import SearchConfig
from wcse.types import LOOKAHEAD, Expand, Finish, Node, Parallel, Request
from wcse.votes import aggregate

Path = tuple[int, ...]


def judge(
    groups: Sequence[tuple[Best, Sequence[Node]]], config: SearchConfig
) -> Generator[Request, Any, None]:
    """Enter the nodes of each group that did not fail, each with its value."""
    groups = [(best, [node for node in nodes if node.live or node.complete]) for best, nodes in groups]
    worth = yield from values([node for _, nodes in groups for node in nodes], config)
    for best, nodes in groups:
        for node in nodes:
            best.enter(node, worth[node.path])


def values(nodes: Sequence[Node], config: SearchConfig) -> Generator[Request, Any, dict[Path, float]]:
    """The value of each node by its path: the aggregated score of the node and of its rollout, if it has one.

    ``config.lookahead`` greedy steps follow each live node; a rollout ends early where its solution does.
    """
    tips = {node.path: node for node in nodes}
    for step in range(config.lookahead):
        going = [path for path, tip in tips.items() if tip.live]
        if not going:
            break
        first = LOOKAHEAD if step == 0 else 0
        grown = yield Parallel(tuple(Expand(tips[path], 1, first, greedy=True) for path in going))
        for path, (tip,) in zip(going, grown, strict=True):
            if tip.finish is not Finish.ERROR:  # a step that failed has no score and says nothing
                tips[path] = tip
        del grown
    return {path: aggregate(tip.path_scores, config.aggregation) for path, tip in tips.items()}
