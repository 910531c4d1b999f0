"""Coverage, diversity and false positives of samples, by sampler: the measures of Bansal et al. (2408.16737).

Everything is derived from stored samples. All @k numbers are exact means over k-subsets; a problem counts only
when every sampler has samples of it, so that samplers are compared on the same problems.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wcse.metrics import bootstrap, pass_at_k, wilson
from wcse.synth.filters import identity
from wcse.synth.judges import Judge
from wcse.synth.record import ProblemSamples, Sample
from wcse.synth.steps import Reasoning
from wcse.types import Problem, WcseError

_RESAMPLES = 2000


def coverage_at_k(n: int, right: int, k: int) -> float:
    """Chance that k of a problem's n samples hold a right one: pass@k under the name of the data papers."""
    return pass_at_k(n, right, k)


def diversity_at_k(n: int, multiplicities: Sequence[int], k: int) -> float:
    """Expected number of different right solutions among k of n samples.

    Args:
        multiplicities: how often each different right solution occurs among the n.

    Returns NaN for k > n.
    """
    if k > n:
        return math.nan
    return math.fsum(pass_at_k(n, count, k) for count in multiplicities)


@dataclass(frozen=True, slots=True)
class Corrected:
    """A rate corrected for its judge's errors, with the standard error of the correction included."""

    rate: float
    error: float


def rogan_gladen(
    observed: float, n: int, sensitivity: float, positives: int, specificity: float, negatives: int
) -> Corrected:
    """The true rate behind the one that an imperfect judge observes (Rogan and Gladen, 1978).

    Args:
        observed: share that the judge calls wrong, of ``n``.
        sensitivity: share of the really wrong that it calls wrong, measured on ``positives``.
        specificity: share of the really right that it calls right, measured on ``negatives``.

    Raises:
        WcseError: the judge is no better than a coin, or was measured on nothing.
    """
    if min(n, positives, negatives) < 1:
        raise WcseError(f"n={n}, positives={positives}, negatives={negatives}: all must be at least 1")
    power = sensitivity + specificity - 1
    if power <= 0:
        raise WcseError(
            f"sensitivity={sensitivity:.3f} and specificity={specificity:.3f}: their sum must exceed 1, or the "
            "judge says nothing; use another judge"
        )
    rate = min(1.0, max(0.0, (observed + specificity - 1) / power))
    variance = (
        observed * (1 - observed) / n
        + rate**2 * sensitivity * (1 - sensitivity) / positives
        + (1 - rate) ** 2 * specificity * (1 - specificity) / negatives
    ) / power**2
    return Corrected(rate, math.sqrt(variance))


@dataclass
class _Judged:
    """One judge's verdicts on a sampler's right answers, and how they agree with people's."""

    right: int = 0
    wrong: int = 0
    unknown: int = 0
    problems: set[str] = field(default_factory=set)
    against: Counter[tuple[Reasoning, Reasoning]] = field(default_factory=Counter)  # (person, judge)

    def add(self, problem: str, verdict: Reasoning, person: Reasoning) -> None:
        if verdict is Reasoning.UNKNOWN:
            self.unknown += 1
            return
        self.wrong += verdict is Reasoning.WRONG
        self.right += verdict is Reasoning.RIGHT
        self.problems.add(problem)
        if person is not Reasoning.UNKNOWN:
            self.against[person, verdict] += 1

    def to_json(self) -> dict[str, Any]:
        total = self.right + self.wrong
        if not total:
            return {"judged": 0, "unknown": self.unknown, "rate": None}
        rate = self.wrong / total
        # Samples of one problem share their faults: the interval counts problems, as for pass@1.
        low, high = wilson(rate * len(self.problems), len(self.problems))
        result = {"judged": total, "unknown": self.unknown, "rate": rate, "low": low, "high": high}
        return result | {"problems": len(self.problems), **self._correction(rate, total)}

    def _correction(self, rate: float, total: int) -> dict[str, Any]:
        """The Rogan-Gladen correction, where people labelled some of both kinds."""
        wrong, right = Reasoning.WRONG, Reasoning.RIGHT
        positives = self.against[wrong, wrong] + self.against[wrong, right]
        negatives = self.against[right, wrong] + self.against[right, right]
        if not positives or not negatives:
            return {}
        sensitivity, specificity = (
            self.against[wrong, wrong] / positives,
            self.against[right, right] / negatives,
        )
        facts = {"sensitivity": sensitivity, "specificity": specificity, "labelled": positives + negatives}
        try:
            corrected = rogan_gladen(rate, total, sensitivity, positives, specificity, negatives)
        except WcseError:
            return facts | {"corrected": None}
        return facts | {"corrected": corrected.rate, "corrected_error": corrected.error}


@dataclass
class _Sampler:
    """Per problem, in the order of the problems: samples, right ones, and how often each different one occurs."""

    samples: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    undecided: int = 0
    unfinished: int = 0
    different: dict[str, list[list[int]]] = field(default_factory=lambda: {"text": [], "steps": []})
    judged: dict[str, _Judged] = field(default_factory=dict)

    def coverage(self, k: float) -> list[float]:
        """By problem, at k samples or all where there are fewer."""
        return [
            between(lambda size, n=n, c=c: coverage_at_k(n, c, size), min(k, n))  # type: ignore[misc]
            for n, c in zip(self.samples, self.right, strict=True)
        ]

    def diversity(self, k: float, equality: str) -> list[float]:
        """As ``coverage``."""
        return [
            between(lambda size, n=n, m=m: diversity_at_k(n, m, size), min(k, n))  # type: ignore[misc]
            for n, m in zip(self.samples, self.different[equality], strict=True)
        ]


def between(measure: Callable[[int], float], k: float) -> float:
    """A measure at a fractional sample count: ``floor(k)`` samples, and one more with the chance of the rest.

    A matched budget rarely buys a whole number of samples.
    """
    whole = math.floor(k)
    low = measure(whole) if whole else 0.0
    return low if whole == k else low + (k - whole) * (measure(whole + 1) - low)


class Measures:
    """Collects problems one at a time; ``to_json`` gives the numbers.

    Args:
        samplers: names, the reference first.
        judges: by name; each sees the samples with a right answer.
        people: human labels as a judge, to correct the others by; None without labels.
    """

    def __init__(
        self, samplers: Sequence[str], judges: Mapping[str, Judge], people: Judge | None = None
    ) -> None:
        self._of = {name: _Sampler(judged={judge: _Judged() for judge in judges}) for name in samplers}
        self._judges = dict(judges)
        self._people = people
        self.problems = 0
        self.incomplete = 0
        self.ungraded = 0

    def add(self, group: ProblemSamples) -> None:
        """Count one problem; not compared when a sampler failed on it or there is no gold answer."""
        if any(not group.samples.get(name) for name in self._of):
            self.incomplete += 1
            return
        if group.problem.answer is None:
            self.ungraded += 1
            return
        self.problems += 1
        for name, tally in self._of.items():
            self._count(tally, group.problem, group.samples[name])

    def _count(self, tally: _Sampler, problem: Problem, samples: Sequence[Sample]) -> None:
        right = [sample for sample in samples if sample.complete and sample.correct]
        tally.samples.append(len(samples))
        tally.right.append(len(right))
        tally.unfinished += sum(not sample.complete for sample in samples)
        tally.undecided += sum(sample.complete and sample.correct is None for sample in samples)
        for equality, counts in tally.different.items():
            counts.append(sorted(Counter(identity(sample, equality) for sample in right).values()))
        for name, judge in self._judges.items():
            for sample in right:
                person = self._people(problem, sample) if self._people else Reasoning.UNKNOWN
                tally.judged[name].add(problem.id, judge(problem, sample), person)

    def to_json(self, sizes: Sequence[int], *, seed: int = 0) -> dict[str, Any]:
        """``{"problems", "samplers": {name: {...}}, "matched": [...], "equal_samples": [...]}``.

        Args:
            sizes: sample counts of the reference; the others are measured at what the match gave them for it.
            seed: of the bootstrap.
        """
        first = next(iter(self._of))
        names = {name: self._sizes(name, sizes) for name in self._of}
        common = min((min(tally.samples, default=0) for tally in self._of.values()), default=0)
        every = sorted({round(k) for ks in names.values() for k in ks if k >= 1} | ({common} - {0}))
        samplers = {name: self._sampler_json(name, every) for name in self._of}
        matched, equal = [], []
        for name in list(self._of)[1:]:
            matched += [
                self._pair(first, k, name, other, seed)
                for k, other in zip(names[first], names[name], strict=True)
            ]
            equal += [self._pair(first, k, name, k, seed) for k in every]
        return {
            "problems": self.problems,
            "incomplete_problems": self.incomplete,
            "ungraded_problems": self.ungraded,
            "samplers": samplers,
            "matched": [pair for pair in matched if pair],
            "equal_samples": [pair for pair in equal if pair],
        }

    def _sizes(self, name: str, sizes: Sequence[int]) -> list[float]:
        """What the match gives a sampler for each of the reference's sample counts."""
        first, own = self._of[next(iter(self._of))], self._of[name]
        if not self.problems or own is first:
            return list(sizes)
        ratio = sum(own.samples) / sum(first.samples)
        return [round(k * ratio, 3) for k in sizes]

    def _sampler_json(self, name: str, every: Sequence[int]) -> dict[str, Any]:
        tally = self._of[name]
        usable = [k for k in every if k <= min(tally.samples, default=0)]
        samples = sum(tally.samples)
        return {
            "samples": samples,
            "right": sum(tally.right),
            "unfinished": tally.unfinished,
            "undecided": tally.undecided,
            "k": usable,
            "coverage": [_share(tally.coverage(k)) for k in usable],
            "coverage_interval": [_interval(tally.coverage(k)) for k in usable],
            "diversity": [_share(tally.diversity(k, "text")) for k in usable],
            "diversity_steps": [_share(tally.diversity(k, "steps")) for k in usable],
            "false_positives": {judge: judged.to_json() for judge, judged in tally.judged.items()},
        }

    def _pair(self, first: str, k: float, other: str, other_k: float, seed: int) -> dict[str, Any] | None:
        """Both samplers at two sample counts, and their difference with a paired bootstrap over problems."""
        a, b = self._of[first], self._of[other]
        if not self.problems or min(a.samples) < k or min(b.samples) < math.floor(other_k):
            return None
        pair: dict[str, Any] = {"reference": first, "reference_k": k, "sampler": other, "k": other_k}
        for name, mine, its in (
            ("coverage", b.coverage(other_k), a.coverage(k)),
            ("diversity", b.diversity(other_k, "text"), a.diversity(k, "text")),
        ):
            low, high = paired_interval(mine, its, seed=seed)
            pair |= {
                f"reference_{name}": _share(its),
                name: _share(mine),
                f"{name}_difference": _share(mine) - _share(its),
                f"{name}_difference_interval": [low, high],
            }
        return pair


def paired_interval(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of mean(a - b), problems drawn with replacement."""
    return bootstrap([x - y for x, y in zip(a, b, strict=True)], seed=seed, draws=_RESAMPLES)


def _share(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _interval(values: Sequence[float]) -> list[float]:
    """Wilson, with the problems as trials: more samples of a problem do not make more problems."""
    return list(wilson(min(_share(values) * len(values), len(values)), len(values)))
