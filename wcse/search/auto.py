"""Compute-optimal search (Snell et al., arXiv 2408.03314): look at the problem, then choose the strategy.

A few samples are drawn first; how much the verifier likes them, or how far they agree, says how hard the
problem is; a table made by ``wcse optimal`` says what to do about it. The samples come out of the budget: a
sample set goes on from them, a tree search gets what is left. Either way they are solutions, and vote with the others.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from wcse.types import PROBE, Chosen, Classes, Expand, Node, Request, Search, WcseError
from wcse.votes import aggregate

FEATURES = ("verifier", "agreement")
"""Mean verifier score of the samples, or the share of the most frequent answer among them."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do in one bin: a search, or more of the same samples (``run`` None)."""

    run: Callable[[Node], Search] | None
    selector: str


@dataclass(frozen=True, slots=True)
class Choices:
    """The table of one budget.

    Attributes:
        n: the budget in solutions, samples included.
        feature: one of ``FEATURES``.
        samples: how many are drawn to see how hard the problem is; 0 where looking does not pay, and all get the same.
        agg_strategy: of the feature ``verifier``.
        edges: values of the feature, falling; bin 0 is at or above the first one.
        bins: one choice a bin, easiest first; one more than edges.
    """

    n: int
    feature: str
    samples: int
    agg_strategy: str
    edges: tuple[float, ...]
    bins: tuple[Choice, ...]


def auto(root: Node, choices: Choices | None) -> Search:
    """Draw the samples, choose, and do what was chosen.

    Raises:
        WcseError: there is no table.
    """
    if choices is None:
        raise WcseError(
            "strategy auto needs a policy file: make one with wcse optimal and set strategy_policy"
        )
    probes: list[Node] = []
    found: list[Node] = []
    choice = choices.bins[0]
    if choices.samples:
        probes = yield Expand(root, choices.samples, first=PROBE, to_end=True)
        value = yield from easiness(probes, choices)
        choice = choices.bins[bin_of(value, choices.edges)]
    rest = choices.n - choices.samples
    if choice.run is not None:
        result = yield from choice.run(root)
        found = result.solutions if isinstance(result, Chosen) else result
    elif rest:
        found = yield Expand(root, rest, to_end=True)
    return Chosen([*found, *probes], choice.selector)


def easiness(probes: Sequence[Node], choices: Choices) -> Generator[Request, Any, float]:
    """The value of the feature, in [0, 1] for probabilities; the larger, the easier. Unfinished text counts 0."""
    if choices.feature == "agreement":
        classes = yield Classes(tuple(probes))
        return agreement(classes)
    return mean_score(
        [aggregate(node.path_scores, choices.agg_strategy) if node.complete else 0.0 for node in probes]
    )


def agreement(classes: Sequence[int | None]) -> float:
    """Share of the most frequent answer among all samples."""
    counts = Counter(number for number in classes if number is not None)
    return max(counts.values(), default=0) / len(classes)


def mean_score(scores: Sequence[float]) -> float:
    """Their mean; a score that cannot be read counts 0."""
    return math.fsum(0.0 if math.isnan(score) else score for score in scores) / len(scores)


def bin_of(value: float, edges: Sequence[float]) -> int:
    """The bin of a value: how many edges lie above it."""
    return sum(value < edge for edge in edges)
