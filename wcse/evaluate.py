"""Runs as numbers: every metric with its interval, and methods compared on the same problems.

Reads journals only; a method is one strategy of one run. What would mislead is refused: methods on different
problems, and runs that are not finished.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from wcse.data.curves import SampleSet, chances_by_problem
from wcse.data.journal import Header, read_header, read_records
from wcse.data.record import SolveRecord
from wcse.data.tables import subset_sizes
from wcse.metrics import bootstrap, diversity_at_k, mcnemar, mean_and_error, selection_efficiency, wilson
from wcse.replay import base_config
from wcse.replay_rows import sample_set
from wcse.search import SearchConfig
from wcse.types import WcseError


@dataclass(frozen=True, slots=True)
class Result:
    """One problem under one method, without its tree.

    Attributes:
        correct: the method's own answer is right; undecided counts as wrong.
        samples: the solutions as units that may be left out; None for a search that has none.
        covered: some solution is right.
        majority: the majority of all solutions is right.
        multiplicities: how often each different correct text occurs (white space aside).
    """

    correct: bool
    covered: bool
    majority: bool
    samples: SampleSet | None
    solutions: int
    multiplicities: tuple[int, ...]
    policy_tokens: int
    prm_tokens: int
    seconds: float


@dataclass
class Method:
    """One strategy of one run: its results by problem id, in the order of the problems."""

    run: str
    strategy: str
    header: Header
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.run}: {self.strategy}"

    @property
    def accuracy(self) -> float:
        return sum(result.correct for result in self.results.values()) / len(self.results)

    def mean(self, value: Callable[[Result], float]) -> float:
        return math.fsum(map(value, self.results.values())) / len(self.results)


def load_methods(directories: Sequence[str | Path]) -> list[Method]:
    """The methods of finished runs, in the order given and of their recipes. All solve the same problems.

    Raises:
        WcseError: no run, a run that is unfinished or has problems without gold answers, or runs of different
            problems.
    """
    methods: list[Method] = []
    names = _names([Path(directory) for directory in directories])
    for directory, name in zip(directories, names, strict=True):
        header = read_header(directory)
        config = base_config(header.recipe)
        found: dict[str, Method] = {}
        for record in read_records(directory):
            if record.problem.answer is None:
                raise WcseError(
                    f"{name}: problem {record.problem.id!r} has no gold answer; accuracy needs one"
                )
            method = found.setdefault(record.strategy, Method(name, record.strategy, header))
            method.results[record.problem.id] = _result(record, config)
        _refuse_unfinished(name, header, found)
        methods += found.values()
    for one, other in pairwise(methods):
        _refuse_other_problems(one, other)
    return methods


def _names(paths: Sequence[Path]) -> list[str]:
    short = [path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _result(record: SolveRecord, config: SearchConfig) -> Result:
    right = [s.path for s in record.solutions if s.correct]
    texts = Counter(" ".join("".join(step.text for step in record.steps(path)).split()) for path in right)
    majority = record.selectors.get("majority")
    return Result(
        correct=record.correct is True,
        covered=bool(right),
        majority=majority is not None and majority.correct is True,
        samples=sample_set(record, config),
        solutions=len(record.solutions),
        multiplicities=tuple(texts.values()),
        policy_tokens=record.ledger.policy_computed,
        prm_tokens=record.ledger.prm_computed,
        seconds=record.seconds,
    )


def _refuse_unfinished(name: str, header: Header, found: dict[str, Method]) -> None:
    strategies = list(header.recipe.get("strategies", found))
    missing = [
        (problem, strategy)
        for strategy in strategies
        for problem in header.problems
        if strategy not in found or problem not in found[strategy].results
    ]
    if missing or not found:
        total = len(strategies) * len(header.problems)
        raise WcseError(
            f"{name}: {len(missing)} of {total} (problem, strategy) pairs are missing; finish the run first: "
            "give the same wcse solve command again"
        )


def _refuse_other_problems(one: Method, other: Method) -> None:
    same = set(one.results) == set(other.results)
    prints = (one.header.inputs.get("problems"), other.header.inputs.get("problems"))
    if same and (prints[0] == prints[1] or None in prints):
        return
    extra = sorted(set(one.results) ^ set(other.results))
    shown = f"for example {extra[0]!r} is in one of them only" if extra else "equal ids, other content"
    raise WcseError(
        f"{one.label} and {other.label} solve different problems ({shown}); their numbers cannot be compared: "
        "run both on the same problems"
    )


# --- one method -------------------------------------------------------------------------------------------


def numbers(method: Method) -> dict[str, Any]:
    """Every metric of a method at its own N. NaN stands for what it does not have."""
    count = len(method.results)
    correct = sum(result.correct for result in method.results.values())
    low, high = wilson(correct, count)
    coverage = method.mean(lambda r: r.covered)
    return {
        "method": method.label,
        "problems": count,
        "accuracy": correct / count,
        "accuracy_low": low,
        "accuracy_high": high,
        "coverage": coverage,
        "selection_efficiency": selection_efficiency(
            correct / count, method.mean(lambda r: r.majority), coverage
        ),
        "policy_tokens": method.mean(lambda r: r.policy_tokens),
        "prm_tokens": method.mean(lambda r: r.prm_tokens),
        "seconds": method.mean(lambda r: r.seconds),
    }


def at_k(method: Method, sizes: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """pass, majority, best-of-N, weighted and diversity at each k of a method's samples, with 95 % intervals.

    Exact over all k-subsets of a problem's samples (weighted: over seeded ones where there are too many); the
    intervals draw the problems anew. Empty for a search: its survivors are no samples.

    Raises:
        WcseError: a k beyond the samples that were recorded.
    """
    sets = [result.samples for result in method.results.values()]
    if any(s is None or s.unit_count != s.n for s in sets):
        return []
    known = [s for s in sets if s is not None]
    most = min(s.n for s in known)
    sizes = list(sizes or subset_sizes(most))
    if max(sizes) > most:
        raise WcseError(
            f"k={max(sizes)}: {method.label} recorded {most} samples a problem; use k up to {most}"
        )
    chances = chances_by_problem(known, sizes, seed=method.header.recipe.get("seed", 0))
    rows = []
    for place, k in enumerate(sizes):
        row: dict[str, Any] = {"method": method.label, "k": k}
        for name, table in chances.items():
            values = table[:, place].tolist()
            row[name] = math.fsum(values) / len(values)
            row[f"{name}_low"], row[f"{name}_high"] = bootstrap(values)
        found = [diversity_at_k(r.multiplicities, r.solutions, k) for r in method.results.values()]
        row["diversity"] = math.fsum(found) / len(found)
        rows.append(row)
    return rows


# --- two methods ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """``other`` against ``base`` on the same problems: difference in accuracy, its paired bootstrap interval,
    and McNemar's exact p-value."""

    base: str
    other: str
    only_base: int
    only_other: int
    difference: float
    low: float
    high: float
    p: float


def compare(base: Method, other: Method) -> Comparison:
    """Compare two methods problem by problem.

    Raises:
        WcseError: they solve different problems.
    """
    _refuse_other_problems(base, other)
    pairs = [(base.results[name].correct, other.results[name].correct) for name in base.results]
    gains = [float(b) - float(a) for a, b in pairs]
    low, high = bootstrap(gains)
    only_base, only_other = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    difference = math.fsum(gains) / len(gains)
    p = mcnemar(only_base, only_other)
    return Comparison(base.label, other.label, only_base, only_other, difference, low, high, p)


def over_seeds(methods: Iterable[Method]) -> list[dict[str, Any]]:
    """Mean accuracy and its standard error of methods that were run with several seeds."""
    groups: dict[str, list[Method]] = {}
    for method in methods:
        options = {k: v for k, v in method.header.recipe.items() if k not in ("seed", "strategies")}
        groups.setdefault(f"{method.strategy} {sorted(options.items(), key=str)}", []).append(method)
    rows = []
    for group in groups.values():
        seeds = {method.header.recipe.get("seed") for method in group}
        if len(seeds) == len(group) > 1:
            mean, error = mean_and_error([method.accuracy for method in group])
            rows.append({"strategy": group[0].strategy, "seeds": len(group), "mean": mean, "error": error})
    return rows
