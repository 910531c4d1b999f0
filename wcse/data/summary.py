"""``summary.json``: per strategy, how accurate it was and what it cost; derived from records alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wcse.data.costs import TreeCosts, tree_costs
from wcse.data.curves import SampleSet, chances_by_problem
from wcse.data.journal import Header
from wcse.data.record import SolveRecord
from wcse.data.tables import subset_sizes
from wcse.ledger import Ledger
from wcse.metrics import bootstrap, pass_at_k, wilson


@dataclass
class _Tally:
    """Counts of one strategy. ``graded`` problems have a gold answer; only they count for accuracy."""

    problems: int = 0
    graded: int = 0
    correct: int = 0
    no_answer: int = 0
    undecided: int = 0
    covered: int = 0
    right: dict[str, bool] = field(default_factory=dict)
    share: dict[str, float] = field(default_factory=dict)
    solutions: int = 0
    selected: dict[str, int] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    prompt_tokens: int = 0
    costs: TreeCosts = field(default_factory=TreeCosts)
    seconds: float = 0.0
    samples: list[SampleSet] = field(default_factory=list)
    independent: bool = True

    def add(self, record: SolveRecord) -> None:
        self.problems += 1
        self.solutions += len(record.solutions)
        self.ledger += record.ledger
        self.costs += tree_costs(record)
        self.prompt_tokens += record.prompt_tokens
        self.seconds += record.seconds
        self.no_answer += record.answer is None
        self.independent = self.independent and bool(record.solutions) and record.independent
        if record.problem.answer is None:
            return
        self.graded += 1
        self.correct += record.correct is True
        self.undecided += record.answer is not None and record.correct is None
        self.covered += any(solution.correct for solution in record.solutions)
        for name, selection in record.selectors.items():
            self.selected[name] = self.selected.get(name, 0) + (selection.correct is True)
        self.right[record.problem.id] = record.correct is True
        if self.independent:
            self.share[record.problem.id] = sum(bool(s.correct) for s in record.solutions) / len(
                record.solutions
            )
            self.samples.append(SampleSet.of(record))

    def to_json(self) -> dict[str, Any]:
        low, high = wilson(self.correct, self.graded)
        return {
            "problems": self.problems,
            "graded": self.graded,
            "correct": self.correct,
            "accuracy": _share(self.correct, self.graded),
            "accuracy_low": low if self.graded else None,
            "accuracy_high": high if self.graded else None,
            "no_answer": self.no_answer,
            "undecided": self.undecided,
            "solutions": self.solutions,
            "coverage": _share(self.covered, self.graded),
            **self._one_sample(),
            "pass@n": self._pass_at(self._fewest),
            "selectors": {name: _share(count, self.graded) for name, count in self.selected.items()},
            "policy_tokens_computed": self.ledger.policy_computed,
            "policy_tokens_reused": self.ledger.policy_reused,
            "policy_tokens_sampled": self.ledger.policy_sampled,
            "prm_tokens_computed": self.ledger.prm_computed,
            "prm_tokens_reused": self.ledger.prm_reused,
            "prompt_tokens": self.prompt_tokens,
            "kv_pages_peak": self.ledger.kv_pages,
            "kv_pages_unshared_peak": self.ledger.kv_pages_unshared,
            "tokens_unique": self.costs.unique,
            "tokens_apart": self.costs.apart,
            "sharing_factor": self.costs.sharing,
            "tokens_pruned": self.costs.pruned,
            "tokens_lookahead": self.costs.lookahead,
            "tokens_difficulty": self.costs.difficulty,
            "prm_tokens_reread": self.costs.reread,
            "rescoring_factor": self.costs.rescoring,
            "policy_flops": self.ledger.policy_flops,
            "prm_flops": self.ledger.prm_flops,
            "seconds": self.seconds,
        }

    @property
    def _fewest(self) -> int:
        return min((samples.n for samples in self.samples), default=0)

    def _pass_at(self, k: int) -> float | None:
        """Unbiased pass@k over the graded problems; None unless the solutions are independent samples."""
        if not self.samples or not self.independent or k < 1:
            return None
        chances = [pass_at_k(samples.n, int(samples.correct.sum()), k) for samples in self.samples]
        return math.fsum(chances) / len(chances)

    def _one_sample(self) -> dict[str, float | None]:
        """pass@1 with the interval of one sample a problem: wide, for more samples do not make more problems."""
        share = self._pass_at(1)
        low, high = wilson(share * self.graded, self.graded) if share is not None else (None, None)
        return {"pass@1": share, "pass@1_low": low, "pass@1_high": high}

    def curves(self, seed: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Accuracy against N and its bands, where there are samples to draw from."""
        if not self.samples or not self.independent or self._fewest < 2:
            return None
        sizes = subset_sizes(self._fewest)
        chances = chances_by_problem(self.samples, sizes, seed=seed)
        columns = {name: table.T.tolist() for name, table in chances.items()}
        means = {name: [math.fsum(c) / len(c) for c in table] for name, table in columns.items()}
        bands = {name: [list(bootstrap(c, draws=2000)) for c in table] for name, table in columns.items()}
        return {"n": sizes, **means}, bands


class Summary:
    """Collects records, one at a time; ``to_json`` gives the numbers of all of them."""

    def __init__(self, header: Header, run: str) -> None:
        self._header = header
        self._run = run
        self._tallies: dict[str, _Tally] = {}
        self._problems: set[str] = set()

    def add(self, record: SolveRecord) -> None:
        self._tallies.setdefault(record.strategy, _Tally()).add(record)
        self._problems.add(record.problem.id)

    def to_json(self) -> dict[str, Any]:
        """``{"run", "recipe", "inputs", "versions", "problems", "strategies": {name: {...}}, "curves":
        {...}, "bands": {...}, "difficulty": [...]}``.

        Strategies come in the recipe's order. Shares are null where nothing was graded; ``curves`` holds, for
        each strategy with independent samples, the accuracy of every selector at N = 1, 2, 4, ..., ``bands`` the
        95 % intervals of the same points. ``difficulty`` holds fifths of the problems by pass@1, easiest first,
        with each strategy's accuracy in them; empty with fewer than ten problems or without samples.
        """
        order = [name for name in self._header.recipe.get("strategies", ()) if name in self._tallies]
        order += [name for name in self._tallies if name not in order]
        seed = self._header.recipe.get("seed", 0)
        drawn = {name: self._tallies[name].curves(seed) for name in order}
        curves = {name: pair for name, pair in drawn.items() if pair is not None}
        return {
            "run": self._run,
            "recipe": _plain(self._header.recipe),
            "inputs": _plain(self._header.inputs),
            "versions": _plain(self._header.versions),
            "problems": len(self._problems),
            "strategies": {name: self._tallies[name].to_json() for name in order},
            "curves": {name: curve for name, (curve, _) in curves.items()},
            "bands": {name: bands for name, (_, bands) in curves.items()},
            "difficulty": self._difficulty(order),
        }

    def _difficulty(self, order: Sequence[str]) -> list[dict[str, Any]]:
        sampled = [t for t in self._tallies.values() if t.independent and t.solutions > t.problems]
        if not sampled or len(sampled[0].share) < _FEWEST_FOR_BINS:
            return []
        share = sampled[0].share
        ranked = sorted(share, key=lambda name: (-share[name], name))
        fifths: list[list[str]] = [[] for _ in range(5)]
        for rank, name in enumerate(ranked):
            fifths[5 * rank // len(ranked)].append(name)
        return [
            {
                "problems": len(members),
                "pass@1": math.fsum(share[name] for name in members) / len(members),
                "accuracy": {
                    strategy: sum(self._tallies[strategy].right[name] for name in members) / len(members)
                    for strategy in order
                    if all(name in self._tallies[strategy].right for name in members)
                },
            }
            for members in fifths
        ]


_FEWEST_FOR_BINS = 10


def _share(count: int, total: int) -> float | None:
    return count / total if total else None


def _plain(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return dict(mapping)
