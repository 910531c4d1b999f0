"""Particle filtering (Puri et al., arXiv 2502.01618): the verifier reweights samples instead of ranking them.

``n`` particles write one step a round. Each step multiplies a particle's weight by the increment of a
potential; when the weights have become too uneven, the particles are drawn anew in proportion to them, so likely
ones multiply and share their prefix. A particle that ended keeps its weight.
The particles that are returned count one vote each: a last resampling turns unequal weights into repeats.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from wcse.search.config import SearchConfig
from wcse.types import Draw, Expand, Node, Parallel, Search
from wcse.votes import aggregate


def particle_filter(root: Node, config: SearchConfig) -> Search:
    """``n`` particles, some of them perhaps repeats of one solution, in path order."""
    particles, weights = [root] * config.n, [1.0] * config.n
    for round_ in range(1, config.num_iterations + 1):
        to_end = round_ == config.num_iterations
        copies = Counter(node for node in particles if node.live)
        groups = yield Parallel(tuple(Expand(node, count, to_end=to_end) for node, count in copies.items()))
        heirs = {node: iter(group) for node, group in zip(copies, groups, strict=True)}
        grown = [next(heirs[node]) if node.live else node for node in particles]
        weights = [
            weight * increment(old, new, config.potential, config.aggregation) if old.live else weight
            for weight, old, new in zip(weights, particles, grown, strict=True)
        ]
        particles, weights = grown, rescaled(weights)
        del copies, groups, heirs, grown
        last = not any(node.live for node in particles)
        uneven = effective_size(weights) < (1 - 1e-9 if last else config.ess_threshold) * config.n
        if uneven and sum(weights) > 0:
            alone = config.resampling == "multinomial"
            draws: list[float] = yield Draw(f"resample {round_}", config.n if alone else 1)
            heirs_of = multinomial(weights, draws) if alone else systematic(weights, draws[0])
            particles, weights = [particles[i] for i in heirs_of], [1.0] * config.n
        if last:
            break
    return sorted(particles, key=lambda node: node.path)


def increment(old: Node, new: Node, potential: str, aggregation: str) -> float:
    """What a particle's weight is multiplied by; 0 for one that was cut off or whose score cannot be read."""
    if not new.live and not new.complete:
        return 0.0
    if potential == "ratio":
        paths = (node.path_scores for node in (old, new))
        before, after = (aggregate(path, aggregation) if path.steps else 1.0 for path in paths)
        factor = after / max(before, 1e-7)
    else:
        steps = [step.score for step in new.steps()[len(old.path) :] if step.score is not None]
        if potential == "odds":
            steps = [score / max(1 - score, 1e-7) for score in steps]
        factor = math.prod(steps)
    return min(factor, sys.float_info.max) if factor >= 0 else 0.0  # NaN, too, is not >= 0


def rescaled(weights: Sequence[float]) -> list[float]:
    """The weights times a power of two, so that the largest lies in [0.5, 1).

    Only ratios count. Forty steps of an odds of 1e7 would leave a float's range; a power of two changes no other bit.
    """
    _, exponent = math.frexp(max(weights))
    return [math.ldexp(weight, -exponent) for weight in weights]


def effective_size(weights: Sequence[float]) -> float:
    """(sum W)^2 / sum W^2: n for equal weights, 1 when one particle has all the weight, 0 for none."""
    squares = math.fsum(weight * weight for weight in weights)
    return math.fsum(weights) ** 2 / squares if squares > 0 else 0.0


def multinomial(weights: Sequence[float], draws: Sequence[float]) -> list[int]:
    """An index for each draw in [0, 1), in proportion to ``weights`` and independent of the others; rising."""
    reached = list(accumulate(weights))
    return sorted(min(bisect_right(reached, u * reached[-1]), len(weights) - 1) for u in draws)


def systematic(weights: Sequence[float], u: float) -> list[int]:
    """n indices drawn in proportion to ``weights`` by n equidistant points, shifted by ``u`` in [0, 1)."""
    n, scale = len(weights), math.fsum(weights)
    indices, place, reached = [], 0, weights[0] * n / scale
    for point in range(n):
        while reached <= point + u and place < n - 1:
            place += 1
            reached += weights[place] * n / scale
        indices.append(place)
    return indices
