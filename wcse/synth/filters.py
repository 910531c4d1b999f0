"""Which samples become training data, and why the others do not. Pure; works problem by problem."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from hashlib import blake2b

from wcse.answers import answer_classes
from wcse.synth.recipe import FilterSpec
from wcse.synth.record import Sample
from wcse.types import Problem

REASONS = (
    "unfinished", "contaminated", "wrong_answer", "low_agreement", "low_score", "duplicate", "over_the_limit",
)  # fmt: skip
"""Why a sample is dropped, in the order of the checks."""


def normal(text: str) -> str:
    """Text in which case and white space do not count."""
    return " ".join(text.split()).casefold()


def identity(sample: Sample, equality: str) -> Hashable:
    """What two equal solutions share: ``text`` their normalised text, ``steps`` their set of steps."""
    if equality == "steps":
        return frozenset(filter(None, map(normal, sample.steps)))
    return normal(sample.text)


class Contamination:
    """The word n-grams of evaluation sets. Keeps 8 bytes of hash each, so large sets fit."""

    def __init__(self, ngram: int, problems: Iterable[Problem] = ()) -> None:
        self._ngram = ngram
        self._seen: set[bytes] = set()
        for problem in problems:
            self._seen.update(self._grams(problem.prompt))

    def hits(self, text: str) -> bool:
        """Whether the text shares an n-gram with the evaluation sets.

        A text shorter than n words is compared as a whole with the n-grams' own short texts.
        """
        return bool(self._seen) and any(gram in self._seen for gram in self._grams(text))

    def _grams(self, text: str) -> Iterable[bytes]:
        words = re.findall(r"\w+", text.casefold())
        for start in range(max(1, len(words) - self._ngram + 1)) if words else ():
            gram = " ".join(words[start : start + self._ngram])
            yield blake2b(gram.encode("utf-8", "surrogatepass"), digest_size=8).digest()


class Filters:
    """Applies a recipe's filters and counts what they drop.

    Attributes:
        dropped: (sampler, reason) -> samples.
        kept: sampler -> samples. ``kept_right`` are those of them with the right answer.
    """

    def __init__(self, spec: FilterSpec, evaluation: Iterable[Problem] = ()) -> None:
        self._spec = spec
        self._contamination = Contamination(spec.ngram, evaluation)
        self.dropped: Counter[tuple[str, str]] = Counter()
        self.kept: Counter[str] = Counter()
        self.kept_right: Counter[str] = Counter()

    def keep(self, problem: Problem, samples: Sequence[Sample]) -> list[Sample]:
        """The samples of one problem and sampler that pass, in their order."""
        dirty = self._contamination.hits(problem.prompt)
        votes = self._votes(samples)
        seen: set[Hashable] = set()
        kept: list[Sample] = []
        for sample, share in zip(samples, votes, strict=True):
            reason = self._reason(sample, share, seen, len(kept), dirty)
            if reason is None:
                kept.append(sample)
                self.kept[sample.sampler] += 1
                self.kept_right[sample.sampler] += sample.correct is True
            else:
                self.dropped[sample.sampler, reason] += 1
        return kept

    def _reason(
        self, sample: Sample, share: float, seen: set[Hashable], kept: int, dirty: bool
    ) -> str | None:
        spec = self._spec
        if not sample.complete:
            return "unfinished"
        if dirty or self._contamination.hits(sample.text):
            return "contaminated"
        if spec.answer == "gold" and sample.correct is not True:
            return "wrong_answer"
        if spec.agreement is not None and share < spec.agreement:
            return "low_agreement"
        if spec.min_score is not None and not (sample.score is not None and sample.score >= spec.min_score):
            return "low_score"
        if spec.dedupe != "none":
            name = identity(sample, spec.dedupe)
            if name in seen:
                return "duplicate"
            seen.add(name)
        if spec.max_per_problem is not None and kept >= spec.max_per_problem:
            return "over_the_limit"
        return None

    def _votes(self, samples: Sequence[Sample]) -> list[float]:
        """For each sample, the share of all samples that have its answer; 0 without an answer."""
        if self._spec.agreement is None:
            return [0.0] * len(samples)
        answers = [sample.answer if sample.complete else None for sample in samples]
        classes = answer_classes(answers)
        counts = Counter(number for number in classes if number is not None)
        return [0.0 if number is None else counts[number] / len(samples) for number in classes]
