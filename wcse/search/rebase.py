"""REBASE (Wu et al., arXiv 2408.00724): children in proportion to the softmax of the scores.

No node is thrown away for good by rank alone: each gets its share of the slots that are free, which may be
none. A solution that ended, complete or cut, keeps its slot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from wcse.search.config import SearchConfig
from wcse.search.ranking import solutions
from wcse.types import Expand, Node, Parallel, Search
from wcse.votes import aggregate, rank_key


def rebase(root: Node, config: SearchConfig) -> Search:
    """At most ``n`` solutions; every round asks for as many children as slots are free."""
    complete: list[Node] = []
    truncated: list[Node] = []
    frontier = [(root, config.n)]
    for round_ in range(1, config.num_iterations + 1):
        to_end = round_ == config.num_iterations
        groups = yield Parallel(tuple(Expand(node, width, to_end=to_end) for node, width in frontier))
        children = [child for group in groups for child in group]
        complete += [child for child in children if child.complete]
        truncated += [child for child in children if not child.complete and not child.live]
        live = sorted((child for child in children if child.live), key=lambda node: node.path)
        scores = [aggregate(node.path_scores, config.aggregation) for node in live]
        widths = shares(scores, config.n - len(complete) - len(truncated), config)
        frontier = [(node, width) for node, width in zip(live, widths, strict=True) if width]
        del groups, children, live
        if not frontier:
            break
    return solutions(complete, truncated, config.n)


def shares(scores: Sequence[float], total: int, config: SearchConfig) -> list[int]:
    """How many of ``total`` children each node gets; the widths sum to ``total``. NaN gets no share of its own.

    Args:
        scores: of the nodes in path order, which breaks ties.
    """
    if not scores or total <= 0:
        return [0] * len(scores)
    known = [-math.inf if math.isnan(score) else score for score in scores]
    top = max(known)
    if math.isinf(top):
        weights = [1.0] * len(scores)
    else:
        weights = [math.exp((score - top) / config.softmax_temperature) for score in known]
    order = sorted(range(len(scores)), key=lambda index: rank_key(scores[index], (index,)))
    return (_from_the_head if config.rounding == "ceil" else _by_remainder)(weights, total, order)


def _by_remainder(weights: Sequence[float], total: int, order: Sequence[int]) -> list[int]:
    quotas = [total * weight / math.fsum(weights) for weight in weights]
    counts = [math.floor(quota + 1e-9) for quota in quotas]
    by_rest = sorted(order, key=lambda index: counts[index] - quotas[index])  # stable: ties by rank
    for index in by_rest[: total - sum(counts)]:
        counts[index] += 1
    return counts


def _from_the_head(weights: Sequence[float], total: int, order: Sequence[int]) -> list[int]:
    counts, left, weight_left = [0] * len(weights), total, math.fsum(weights)
    for index in order:
        wanted = math.ceil(left * weights[index] / weight_left - 1e-9) if weight_left > 0 else left
        counts[index] = min(left, wanted)
        left -= counts[index]
        weight_left -= weights[index]
    counts[order[0]] += left  # rounding of the weights may leave one over
    return counts
