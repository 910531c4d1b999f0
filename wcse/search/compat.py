"""search-and-learn's own rules for beam search and DVTS (commit 6f81cac), for differential tests and old recipes.

They differ from ours where ours mend them: every round is refilled to n until nothing is alive, so n says
little about the cost; solutions are returned in the order in which they ended; DVTS returns the last children
of each subtree whether they ended or not. The padding of short results by repeats is left out: a repeat is no
solution. Ties between equal scores go to the later beam, as its sort has it.
"""

from __future__ import annotations

import math
from collections import Counter

from wcse.search.config import SearchConfig
from wcse.search.ranking import distinct
from wcse.search.rollout import values
from wcse.types import Expand, Finish, Node, Parallel, Search
from wcse.votes import aggregate, rank_key


def beam_search(root: Node, config: SearchConfig) -> Search:
    """n beams a round, copies of the best n / beam_width; the first n solutions to end."""
    done: list[Node] = []
    kept = [root]
    for round_ in range(1, config.num_iterations + 1):
        to_end = round_ == config.num_iterations
        beams = [kept[index % len(kept)] for index in range(config.n)]
        copies = Counter(beams)
        groups = yield Parallel(tuple(Expand(node, count, to_end=to_end) for node, count in copies.items()))
        heirs = {node: iter(group) for node, group in zip(copies, groups, strict=True)}
        grown = [next(heirs[node]) for node in beams]
        done += [node for node in grown if not node.live]
        live = [node for node in grown if node.live]
        if config.filter_duplicates:
            live = distinct(live)
        if not live:
            break
        scores = [aggregate(node.path_scores, config.aggregation) for node in live]
        order = sorted(range(len(live)), key=lambda index: rank_key(scores[index], (-index,)))
        best = sorted(order[: config.n // config.beam_width])
        kept = [live[index] for index in best]
    if config.sort_completed:
        done.sort(key=lambda node: rank_key(_worth(node, config), ()))  # stable: ties as they ended
    return done[: config.n]


def dvts(root: Node, config: SearchConfig) -> Search:
    """n / beam_width subtrees; each returns all children of its last expansion."""
    count, width = config.n // config.beam_width, config.beam_width
    heads = [root] * count
    last: list[list[Node]] = [[] for _ in heads]
    going = list(range(count))
    for round_ in range(1, config.num_iterations + 1):
        first = round_ == 1
        to_end = round_ == config.num_iterations
        groups = yield Parallel(
            tuple(Expand(heads[tree], width, tree * width if first else 0, to_end) for tree in going)
        )
        scored = [child for group in groups for child in group if child.finish is not Finish.ERROR]
        worth = yield from values(scored, config)
        for tree, children in zip(going, groups, strict=True):
            last[tree] = children
            heads[tree] = min(children, key=lambda node: rank_key(worth.get(node.path, math.nan), node.path))
        going = [tree for tree in going if heads[tree].live and not _boxed(heads[tree])]
        if not going:
            break
    return [child for children in last for child in children]


def _worth(node: Node, config: SearchConfig) -> float:
    """Its aggregated score; NaN for a step that failed, which nobody scored."""
    if node.finish is Finish.ERROR:
        return math.nan
    return aggregate(node.path_scores, config.aggregation)


def _boxed(node: Node) -> bool:
    return "boxed{" in node.completion
