"""Speculative rejection (Sun et al., arXiv 2410.20290): best-of-N that drops what looks hopeless on the way.

The solutions are those of best-of-N, sample for sample. Whenever every unfinished one has reached the next
checkpoint, the worst share of the pool is dropped if it is unfinished; finished solutions stay. Checkpoints
count a solution's own tokens, so what is dropped does not depend on memory or batch.
"""

from __future__ import annotations

import math

from wcse.search.config import SearchConfig
from wcse.search.ranking import ranked, solutions
from wcse.types import Expand, Node, Parallel, Search


def speculative_rejection(root: Node, config: SearchConfig) -> Search:
    """At most ``n`` solutions, usually far fewer."""
    pool: list[Node] = yield Expand(root, config.n, to_end=config.num_iterations == 1)
    mark, round_ = config.checkpoint_tokens, 1
    while any(node.live for node in pool):
        behind = [node for node in pool if node.live and _length(node) < mark]
        if not behind:
            pool = _reject(pool, config)
            mark += config.checkpoint_tokens
            continue
        round_ += 1
        to_end = round_ >= config.num_iterations
        groups = yield Parallel(tuple(Expand(node, 1, to_end=to_end) for node in behind))
        grown = {node: group[0] for node, group in zip(behind, groups, strict=True)}
        pool = [grown.get(node, node) for node in pool]
        del behind, groups, grown
    return solutions(*_ended(pool), config.n)


def _reject(pool: list[Node], config: SearchConfig) -> list[Node]:
    """The pool without its worst unfinished members; at least one of the pool is always kept."""
    judged = ranked([node for node in pool if node.live or node.complete], config.aggregation)
    keep = max(1, math.floor((1 - config.rejection_rate) * len(judged) + 0.5))
    dropped = {node for node in judged[keep:] if node.live}
    return [node for node in pool if node not in dropped]


def _ended(pool: list[Node]) -> tuple[list[Node], list[Node]]:
    return [node for node in pool if node.complete], [node for node in pool if not node.complete]


def _length(node: Node) -> int:
    return sum(len(step.token_ids) for step in node.steps())
