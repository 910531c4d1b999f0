"""Searches under model names: ``NAME@dvts-n16-m4``, or the ``search`` object of a request.

Knows names, settings and how an outcome becomes ranked choices; nothing of HTTP or engines.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wcse.answers import Judge, answer_classes, extract_answer
from wcse.optimal.policy_file import PolicyFile
from wcse.search import STRATEGIES, SearchConfig, Strategy, parse_strategy
from wcse.search.strategy import SHAPE, Spec
from wcse.serve.errors import bad
from wcse.serve.fields import checked_text
from wcse.types import Node, WcseError
from wcse.votes import ballots, by_rank, get_selector

_ALIAS = re.compile(r"([a-z_]+)((?:-(?:[nmi][0-9]{1,6}|[0-9]{1,6}x))*)")
_SETTINGS = {"n": "n", "m": "beam_width", "i": "num_iterations"}
TIMES = "times"
"""Setting of the alias ``auto-2x``: the budget as a multiple of the policy file's smallest one."""

LISTED = ("n8", "n32")
LISTED_TREES = ("n8-m4", "n16-m4")
"""Sizes that ``/v1/models`` lists; every other number works too."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A search that was asked for and can run."""

    name: str
    strategy: Strategy
    config: SearchConfig
    selector: str | None
    """The one that was asked for; None: the strategy's own, or the one that it chose for the problem."""
    bounded: bool = True
    """The verifier's scores lie in [0, 1]; others count by their rank."""

    @property
    def scored(self) -> bool:
        """Whether a verifier reads its steps."""
        return self.strategy.needs_prm or (self.selector or self.strategy.selector) != "majority"

    @property
    def rows(self) -> int:
        """Solutions that it may write at most, lookahead rollouts included."""
        return self.config.n * (1 + self.config.lookahead)


@dataclass(frozen=True, slots=True)
class Planner:
    """What this server can search with.

    Args:
        default_agg: the verifier's own aggregation; None: there is no verifier.
        bounded: the verifier's scores lie in [0, 1].
        policy: for the strategy auto; None: it is not offered.
    """

    default_agg: str | None = None
    bounded: bool = True
    policy: PolicyFile | None = None

    def aliases(self, model: str) -> list[str]:
        """The aliases to list for a model: every strategy that runs here, at usual sizes."""
        names: list[str] = []
        for name, strategy in STRATEGIES.items():
            if strategy.needs_prm and self.default_agg is None:
                continue
            names += [f"{model}@{name}{size}" for size in self._sizes(name, strategy)]
        return names

    def _sizes(self, name: str, strategy: Strategy) -> list[str]:
        if name == "greedy":
            return [""]
        if name == "auto":
            return [f"-{times}" for times in _multiples(self.policy.budgets)] if self.policy else []
        trees = "beam_width" in strategy.options
        return [f"-{size}" for size in (LISTED_TREES if trees else LISTED)]

    def plan(self, settings: Mapping[str, Any], param: str) -> Plan:
        """A checked plan.

        Args:
            param: the field to blame.

        Raises:
            ApiError: a setting is unknown or wrong, or the strategy needs what this server does not have.
        """
        spec = _spec(settings.get("strategy"), param)
        strategy = STRATEGIES[spec.name]
        options = {name: value for name, value in settings.items() if name != "strategy"}
        selector, times = options.pop("selector", None), options.pop(TIMES, None)
        _check_options(options, spec.name, param)
        _check_selector(selector, param)
        if times is not None:
            options["n"] = self._budget(spec.name, times, param)
        try:
            config = spec.config(SearchConfig(**options))
            strategy.check(config)
            if spec.name == "auto" and self.default_agg is not None:
                config = replace(config, choices=self._policy(param).choices(config.n, config))
        except WcseError as error:
            raise bad(param, str(error)) from None
        plan = Plan(spec.name, strategy, config, selector, self.bounded)
        if plan.scored and self.default_agg is None:
            raise bad(param, f"{spec.name} needs a verifier and this server has none; start it with --prm")
        config = config.with_default(self.default_agg or "last")
        if not self.bounded and config.aggregation == "prod":
            raise bad(
                param, "agg_strategy='prod': this verifier's scores are unbounded; use last, min or mean"
            )
        return replace(plan, config=config)

    def _policy(self, param: str) -> PolicyFile:
        if self.policy is None:
            raise bad(param, "auto needs a policy file; start the server with --strategy-policy FILE")
        return self.policy

    def _budget(self, name: str, times: int, param: str) -> int:
        if name != "auto":
            raise bad(param, f"{times}x goes with auto; give {name} a budget in solutions, as in {name}-n8")
        return times * self._policy(param).budgets[0]


def _spec(wanted: Any, param: str) -> Spec:
    field = "search.strategy" if param == "search" else param
    if not isinstance(wanted, str):
        raise bad("search.strategy", f"give one of {', '.join(STRATEGIES)}")
    try:
        return parse_strategy(wanted[:256])
    except WcseError as error:
        raise bad(field, str(error)) from None


def _check_options(options: Mapping[str, Any], strategy: str, param: str) -> None:
    """Each by itself, so that the one at fault is named."""
    known = ("selector", *SHAPE, *STRATEGIES[strategy].options)
    for name, value in options.items():
        field = f"search.{name[:64]}" if param == "search" else param
        if name not in known:
            raise bad(field, f"{strategy} has no setting {name[:64]!r}; it has {', '.join(known)}")
        try:
            SearchConfig(**{name: value})
        except (WcseError, TypeError) as error:
            raise bad(field, str(error)) from None


def _check_selector(selector: Any, param: str) -> None:
    field = "search.selector" if param == "search" else param
    if selector is not None:
        try:
            get_selector(checked_text(selector, field))
        except WcseError as error:
            raise bad(field, str(error)) from None


def _multiples(budgets: Sequence[int]) -> list[str]:
    """How an alias names each budget: as a multiple of the first, or by its number."""
    return [f"n{n}" if n % budgets[0] else f"{n // budgets[0]}x" for n in budgets]


def parse_alias(text: str) -> dict[str, Any]:
    """The settings in the part of a model name behind the ``@``.

    Raises:
        ApiError: it is not an alias.
    """
    match = _ALIAS.fullmatch(text)
    if match is None:
        raise bad("model", f"{text[:64]!r} is no search; write it as in majority-n8, dvts-n16-m4 or auto-2x")
    settings: dict[str, Any] = {"strategy": match[1]}
    for part in match[2].split("-")[1:]:
        if part[-1] == "x":
            settings[TIMES] = int(part[:-1])
        else:
            settings[_SETTINGS[part[0]]] = int(part[1:])
    return settings


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


def rank(nodes: Sequence[Node], selector: str | None, plan: Plan, judge: Judge) -> list[Ranked]:
    """The solutions: the selected one first, then complete before unfinished, by score, then by path.

    Args:
        selector: what the search itself asked for, if it did.
    """
    answers = [extract_answer(node.completion) if node.complete else None for node in nodes]
    scored = plan.strategy.needs_prm
    votes = ballots(nodes, answer_classes(answers, judge), plan.config.aggregation if scored else None)
    if not plan.bounded:
        votes = by_rank(votes)
    pick = get_selector(plan.selector or selector or plan.strategy.selector)(votes)
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
