"""From marks and texts to a verdict: what a student gained at home, elsewhere, and in style alone. Pure numbers.

Every difference is paired over the same problems under the same prompts; an interval that holds 0 shows nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wcse.audit.style import Style, likeness
from wcse.metrics import wilson
from wcse.synth.measures import paired_interval
from wcse.types import WcseError

STYLE_RISES = 0.02
"""Rise of the likeness to the teacher that counts as a change of style."""


@dataclass(frozen=True)
class Answers:
    """One model's greedy answers to one set of problems, in its order: whether right, and the texts."""

    right: tuple[bool, ...]
    texts: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)


@dataclass(frozen=True)
class Difference:
    """Student minus base on one set, with a 95 % paired bootstrap interval over problems."""

    value: float
    low: float
    high: float

    @property
    def up(self) -> bool:
        return self.low > 0

    @property
    def down(self) -> bool:
        return self.high < 0


def difference(a: Answers, b: Answers, seed: int = 0) -> Difference:
    """a minus b.

    Raises:
        WcseError: the two were not asked the same number of problems.
    """
    if len(a.right) != len(b.right):
        raise WcseError(f"{len(a.right)} answers against {len(b.right)}: both must answer the same problems")
    low, high = paired_interval([float(x) for x in a.right], [float(x) for x in b.right], seed=seed)
    return Difference(a.accuracy - b.accuracy, low, high)


def gap_closed(student: Answers, base: Answers, teacher: Answers) -> float | None:
    """Share of the base's distance to the teacher that the student has made; None unless the teacher is better
    than the base beyond doubt."""
    if not difference(teacher, base).up:
        return None
    return (student.accuracy - base.accuracy) / (teacher.accuracy - base.accuracy)


Sets = Mapping[str, Answers]
"""Set name -> a model's answers; ``in_domain`` and any number of held-out ones."""

IN_DOMAIN = "in_domain"


def audit_student(base: Sets, student: Sets, teacher: Sets) -> dict[str, Any]:
    """All numbers of one student, and the verdict that follows from them."""
    sets: dict[str, Any] = {}
    for name in base:
        found = difference(student[name], base[name])
        n = len(base[name].right)
        sets[name] = {
            "problems": n,
            **{
                who: {"accuracy": answers.accuracy, "interval": list(wilson(sum(answers.right), n))}
                for who, answers in (
                    ("base", base[name]),
                    ("student", student[name]),
                    ("teacher", teacher[name]),
                )
            },
            "difference": found.value,
            "interval": [found.low, found.high],
            "gap_closed": gap_closed(student[name], base[name], teacher[name]),
        }
    before = likeness(base[IN_DOMAIN].texts, teacher[IN_DOMAIN].texts)
    after = likeness(student[IN_DOMAIN].texts, teacher[IN_DOMAIN].texts)
    style = {
        "likeness_before": before,
        "likeness_after": after,
        "habits": {
            who: asdict(Style.of(answers[IN_DOMAIN].texts))
            for who, answers in (("base", base), ("student", student), ("teacher", teacher))
        },
    }
    home = difference(student[IN_DOMAIN], base[IN_DOMAIN])
    away = [difference(student[name], base[name]) for name in base if name != IN_DOMAIN]
    return {"sets": sets, "style": style, "verdict": verdict(home, away, after - before)}


def verdict(home: Difference, away: Sequence[Difference], style_rise: float) -> str:
    """In words. ``away`` are the held-out sets."""
    style = " Its style moved towards the teacher's." if style_rise > STYLE_RISES else ""
    if any(found.down for found in away):
        return f"Lost capability: worse than its base on held-out problems.{style}"
    if away and all(found.up for found in away) and not home.down:
        return f"Gained capability: better than its base on every held-out set.{style}"
    elsewhere = (
        " Elsewhere nothing is shown." if away else " No held-out set was given: nothing is shown elsewhere."
    )
    if home.up:
        return f"Learned the task: better in its domain.{elsewhere}{style}"
    if home.down:
        return f"Lost ground: worse than its base in its own domain.{style}"
    if style:
        return "Imitates: it sounds more like the teacher, and no gain is shown anywhere."
    return "Nothing shown: neither capability nor style moved beyond chance."


def scaling(points: Sequence[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The students in the order given (more data, or a larger base), one row each."""
    return [
        {
            "student": name,
            "likeness": report["style"]["likeness_after"],
            **{where: numbers["student"]["accuracy"] for where, numbers in report["sets"].items()},
        }
        for name, report in points
    ]
