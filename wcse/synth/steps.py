"""Exact checking of written arithmetic: every equation in a solution, and where its numbers come from.

Works where steps are calculations (the embedded problems, GSM8K): ``12 * 45 = 480 + 60 = 540`` is checked with
rational numbers. It reads no prose: a true equation that answers another question passes, unless the worked
solution of the problem is there to compare with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache

from wcse.answers.algebra import Unreadable
from wcse.answers.expression import Expression
from wcse.types import Problem


class Reasoning(StrEnum):
    """A judge's verdict on how a solution arrived at its answer. ``UNKNOWN`` is left out of every rate."""

    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWN = "unknown"


Number = int | Fraction
"""An exact value. Whole ones are ``int``: equal to the fraction, with the same hash, and a sixth of its time."""


@dataclass(frozen=True, slots=True)
class Equation:
    """``sides`` as written; ``values`` are theirs, None where one cannot be read."""

    sides: tuple[str, ...]
    values: tuple[Number | None, ...]

    @property
    def holds(self) -> bool | None:
        """All sides are equal; None when a side cannot be read."""
        if None in self.values:
            return None
        return len(set(self.values)) == 1

    @property
    def result(self) -> Number | None:
        """The value of the last side."""
        return self.values[-1]


_SIDE = r"-?\(*\s*-?\d[\d.+\-*/() ]*"
_CHAIN = re.compile(rf"({_SIDE}(?:=\s*{_SIDE})+)")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_NAMED: dict[str, Number] = {
    **{word: value for value, word in enumerate(_WORDS)},
    "half": Fraction(1, 2), "twice": 2, "double": 2, "triple": 3, "third": 3, "quarter": 4, "dozen": 12,
    "thrice": 3, "fourth": 4, "fifth": 5, "pair": 2,
}  # fmt: skip
_CONSTANTS = frozenset({1, 2, 7, 10, 12, 24, 30, 52, 60, 100, 365, 1000})
"""Numbers that need no source: days, hours, dozens, percents."""

_SHIFTS = tuple(Fraction(10) ** power for power in (0, 1, 2, 3, -1, -2, -3))


def equations(text: str) -> list[Equation]:
    """The equations in a text, first to last."""
    return list(_equations(text))


@lru_cache(maxsize=8192)
def _equations(text: str) -> tuple[Equation, ...]:
    """Remembered, for several judges read each solution and samples of a problem repeat their steps."""
    found = []
    for match in _CHAIN.finditer(_plain(text)):
        sides = tuple(_side(side) for side in match[1].split("="))
        found.append(Equation(sides, tuple(_value(side) for side in sides)))
    return tuple(found)


def numbers(text: str) -> set[Number]:
    """Every number in a text, as digits or as a small word."""
    plain = _plain(text)
    found = set(_absolute(plain))
    return found | {_NAMED[word] for word in re.findall(r"[a-z]+", plain.lower()) if word in _NAMED}


def worked_text(problem: Problem) -> str:
    """What the problem's source says about the way to its answer; "" if nothing."""
    parts = (problem.meta.get(name) for name in ("solution", "expression"))
    return "\n".join(part for part in parts if isinstance(part, str))


def check_steps(problem: Problem, text: str, answer: str | None) -> Reasoning:
    """Whether the calculation stands: every equation is true, its numbers are given or computed before, and the
    last one gives the answer.

    Numbers are given in the problem, in its worked solution, or are everyday constants. A solution without
    a readable equation is unknown.
    """
    found = equations(text)
    if any(equation.holds is False for equation in found):
        return Reasoning.WRONG
    readable = [equation for equation in found if equation.holds]
    if not readable:
        return Reasoning.UNKNOWN
    known = _Known(problem)
    for equation in readable:
        if not known.grounds(equation):
            return Reasoning.WRONG
    final = None if answer is None else _value(_plain(answer).strip())
    if final is not None and readable[-1].result != final:
        return Reasoning.WRONG
    return Reasoning.RIGHT if len(readable) == len(found) else Reasoning.UNKNOWN


def check_worked(problem: Problem, text: str) -> Reasoning:
    """Whether a solution is the worked one: true equations only, with every intermediate result of it.

    Stricter than ``check_steps``: a right solution that goes another way counts as wrong. Unknown without
    a worked solution.
    """
    worked = equations(worked_text(problem))
    wanted = {equation.result for equation in worked if len(_absolute(equation.sides[0])) > 1} - {None}
    if not wanted:
        return Reasoning.UNKNOWN
    found = equations(text)
    if any(equation.holds is False for equation in found):
        return Reasoning.WRONG
    results = {value for equation in found for value in equation.values}
    return Reasoning.RIGHT if wanted <= results else Reasoning.WRONG


def label_steps(problem: Problem, steps: Sequence[str]) -> list[bool] | None:
    """For each step, whether it and all before it stand; None when no step has a readable equation.

    The training labels of a process reward model: from the first false step on, all are false.
    """
    known = _Known(problem)
    labels, good, seen = [], True, False
    for step in steps:
        for equation in equations(step):
            seen = seen or equation.holds is not None
            good = known.grounds(equation) and good and equation.holds is not False
        labels.append(good)
    return labels if seen else None


@lru_cache(maxsize=256)
def _given(prompt: str, worked: str) -> frozenset[Number]:
    """What any solution of a problem may start from; asked for every sample of it."""
    given = numbers(prompt) | numbers(worked) | _CONSTANTS
    values = set(given)
    for value in given:  # 30 % is 0.3 or 3 / 10, and leaves 70 %
        share = Fraction(value) / 100
        values |= {100 - value, 1 - value, value.numerator, value.denominator}
        values |= {share.numerator, share.denominator}
    return frozenset(map(_simplest, values))


class _Known:
    """The numbers that a solution may start from: given ones, everyday constants, and what it has computed."""

    def __init__(self, problem: Problem) -> None:
        self._values = set(_given(problem.prompt, worked_text(problem)))

    def grounds(self, equation: Equation) -> bool:
        """Whether the first side has known numbers only; all numbers of the equation are known afterwards.

        Later sides only split and join the first. A shifted decimal point is the same number.
        """
        values = [value for side in equation.sides for value in _absolute(side)]
        known = self._values
        good = all(
            value in known or any(value * shift in known for shift in _SHIFTS)
            for value in _absolute(equation.sides[0])
        )
        self._values.update(values)
        return good


@lru_cache(maxsize=1 << 15)
def _absolute(side: str) -> tuple[Number, ...]:
    return tuple(_simplest(Fraction(token)) for token in _NUMBER.findall(side))


def _simplest(value: Number) -> Number:
    return value.numerator if value.denominator == 1 else value


def _plain(text: str) -> str:
    """Without thousands separators and currency signs, with one sign for each operation."""
    text = _THOUSANDS.sub("", text)
    return re.sub(r"[$€£]", "", text).replace("×", "*").replace("÷", "/").replace("−", "-").replace("\n", ";")


def _side(text: str) -> str:
    """A side without the full stop of its sentence and brackets that belong to the prose around it."""
    side = text.strip().rstrip(".").strip()
    while side.endswith("(") or (side.count("(") < side.count(")") and side.endswith(")")):
        side = side[:-1].rstrip()
    return side.rstrip("+-*/ ")


@lru_cache(maxsize=1 << 15)
def _value(side: str) -> Number | None:
    if _NUMBER.fullmatch(side):
        return _simplest(Fraction(side))
    try:
        value = Expression(side).value().rational
    except Unreadable:
        return None
    return None if value is None else _simplest(value)
