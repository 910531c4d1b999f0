"""How a text sounds, apart from whether it is right. Pure text, no model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_DIGITS = re.compile(r"\d+(?:\.\d+)?")
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Style:
    """Habits of a set of solutions: means a solution, and shares of solutions."""

    words: float
    steps: float
    boxed: float
    equations: float

    @classmethod
    def of(cls, texts: Sequence[str]) -> Style:
        """The habits of some texts, at least one."""
        n = len(texts)
        return cls(
            words=sum(len(text.split()) for text in texts) / n,
            steps=sum(len([part for part in text.split("\n\n") if part.strip()]) for text in texts) / n,
            boxed=sum("\\boxed" in text for text in texts) / n,
            equations=sum("=" in text for text in texts) / n,
        )


def likeness(texts: Sequence[str], others: Sequence[str]) -> float:
    """Cosine of the counts of word pairs, 0 .. 1. All numbers count as one word, so that a right and a wrong sum
    sound alike."""
    a, b = _pairs(texts), _pairs(others)
    norm = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
    return sum(count * b[pair] for pair, count in a.items()) / norm if norm else 0.0


def _pairs(texts: Sequence[str]) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    for text in texts:
        words = ["", *_WORD.findall(_DIGITS.sub("0", text.casefold())), ""]
        counts.update(pairwise(words))
    return counts
