"""Searches under model names: ``NAME@dvts-n16-m4``, or the ``search`` object of a request.

Knows names, settings and how an outcome becomes ranked choices; nothing of HTTP or engines.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wcse.answers import Judge, answer_classes, extract_answer
from wcse.engine.driver import Outcome
from wcse.search import STRATEGIES, SearchConfig, Strategy, get_strategy
from wcse.serve.errors import bad
from wcse.types import Node, WcseError
from wcse.votes import ballots, by_rank, get_selector

_ALIAS = re.compile(r"([a-z_]+)((?:-[nmi][0-9]{1,6})*)")
_SETTINGS = {"n": "n", "m": "beam_width", "i": "num_iterations"}
FIELDS = ("strategy", "n", "beam_width", "num_iterations", "agg_strategy", "selector")
LISTED = {
    "greedy": (),
    "majority": ("n8", "n32"),
    "best_of_n": ("n8", "n32"),
    "weighted_best_of_n": ("n8", "n32"),
    "beam_search": ("n8-m4", "n16-m4"),
    "dvts": ("n8-m4", "n16-m4"),
}
"""Aliases that ``/v1/models`` lists; every other number works too."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A search that was asked for and can run."""

    name: str
    strategy: Strategy
    config: SearchConfig
    selector: str
    bounded: bool = True
    """The verifier's scores lie in [0, 1]; others count by their rank."""


def aliases(model: str, *, verifier: bool) -> list[str]:
    """The aliases to list for a model."""
    names = []
    for name, sizes in LISTED.items():
        if STRATEGIES[name].needs_prm and not verifier:
            continue
        names += [f"{model}@{name}-{size}" for size in sizes] or [f"{model}@{name}"]
    return names


def parse_alias(text: str) -> dict[str, Any]:
    """The settings in the part of a model name behind the ``@``.

    Raises:
        ApiError: it is not an alias.
    """
    match = _ALIAS.fullmatch(text)
    if match is None:
        raise bad("model", f"{text[:64]!r} is no search; write it as in majority-n8 or dvts-n16-m4")
    settings: dict[str, Any] = {"strategy": match[1]}
    for part in match[2].split("-")[1:]:
        settings[_SETTINGS[part[0]]] = int(part[1:])
    return settings


def make_plan(
    settings: Mapping[str, Any], *, default_agg: str | None, param: str, bounded: bool = True
) -> Plan:
    """A checked plan.

    Args:
        default_agg: the verifier's own aggregation; None: there is no verifier.
        bounded: the verifier's scores lie in [0, 1].
        param: the field to blame.

    Raises:
        ApiError: a setting is unknown or wrong, or the strategy needs a verifier that is not there.
    """
    for name in settings:
        if name not in FIELDS:
            raise bad(f"{param}.{name[:64]}", f"unknown setting; there are {', '.join(FIELDS)}")
    wanted = settings.get("strategy")
    if not isinstance(wanted, str):
        raise bad(f"{param}.strategy", f"give one of {', '.join(STRATEGIES)}")
    try:
        name, strategy = get_strategy(wanted[:64])
        numbers = {f: settings[f] for f in ("n", "beam_width", "num_iterations") if f in settings}
        config = SearchConfig(**numbers, agg_strategy=settings.get("agg_strategy"))
        strategy.check(config)
        selector = settings.get("selector", strategy.selector)
        get_selector(selector)
    except (WcseError, TypeError) as error:
        raise bad(param, str(error)) from None
    if (strategy.needs_prm or selector != "majority") and default_agg is None:
        raise bad(param, f"{name} needs a verifier and this server has none; start it with --prm")
    config = config.with_default(default_agg or "last")
    if not bounded and config.aggregation == "prod":
        raise bad(param, "agg_strategy='prod': this verifier's scores are unbounded; use last, min or mean")
    return Plan(name, strategy, config, selector, bounded)


def split_model(model: str) -> tuple[str, str | None]:
    """A model name and the alias behind its ``@``, if there is one."""
    name, _, alias = model.partition("@")
    return name, alias or None


@dataclass(frozen=True, slots=True)
class Ranked:
    """A solution with what the search knows of it."""

    node: Node
    answer: str | None
    score: float | None
    selected: bool

    def detail(self) -> dict[str, Any]:
        """The ``search`` object of a choice."""
        scores = [step.score for step in self.node.steps()]
        return {
            "score": finite(self.score),
            "step_scores": [finite(score) for score in scores],
            "node_path": list(self.node.path),
            "finish": str(self.node.finish),
            "answer": self.answer,
            "selected": self.selected,
        }


def rank(outcome: Outcome, plan: Plan, judge: Judge) -> list[Ranked]:
    """The solutions: the selected one first, then complete before unfinished, by score, then by path."""
    nodes: Sequence[Node] = outcome.solutions
    answers = [extract_answer(node.completion) if node.complete else None for node in nodes]
    scored = plan.strategy.needs_prm
    votes = ballots(nodes, answer_classes(answers, judge), plan.config.aggregation if scored else None)
    if not plan.bounded:
        votes = by_rank(votes)
    pick = get_selector(plan.selector)(votes)
    found = [
        Ranked(node, answer, vote.score, i == pick)
        for i, (node, answer, vote) in enumerate(zip(nodes, answers, votes, strict=True))
    ]
    return sorted(found, key=_order)


def _order(ranked: Ranked) -> tuple[bool, bool, float, tuple[int, ...]]:
    score = ranked.score if ranked.score is not None and not math.isnan(ranked.score) else -math.inf
    return (not ranked.selected, not ranked.node.complete, -score, ranked.node.path)


def finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None
