"""Are two answers equal? Certain cases are decided here, exactly; the rest goes to a pool, if there is one."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Protocol

from wcse.answers.algebra import Unreadable
from wcse.answers.read import Answer, Group, Reading, Scalar, Words, read_answer


class Verdict(StrEnum):
    """``UNDECIDED`` is neither right nor wrong: nobody could tell within the limits."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNDECIDED = "undecided"


class Judge(Protocol):
    """Decides what this module cannot; :class:`wcse.answers.MathPool` is one."""

    def judge(self, a: str, b: str) -> Verdict: ...


def compare(a: str, b: str, judge: Judge | None = None) -> Verdict:
    """Whether two answers are equal. Symmetric. Without a judge, what is not certain stays undecided."""
    left, right = read_answer(a), read_answer(b)
    verdict = certain(left, right)
    return verdict if verdict is not Verdict.UNDECIDED or judge is None else ask(left, right, judge)


def is_correct(answer: str | None, gold: str, judge: Judge | None = None) -> Verdict:
    """Whether an answer equals the gold answer; no answer is different."""
    if answer is None or not answer.strip():
        return Verdict.DIFFERENT
    return compare(answer, gold, judge)


def ask(a: Answer, b: Answer, judge: Judge) -> Verdict:
    """The judge's verdict, the same for both orders."""
    return judge.judge(*sorted((a.text, b.text)))


def certain(a: Answer, b: Answer) -> Verdict:
    """The verdict without a judge: exact, or undecided."""
    if a.plain == b.plain:
        return Verdict.EQUAL
    if a.reading is None or b.reading is None:
        return Verdict.UNDECIDED
    try:
        verdict = _compare_readings(a.reading, b.reading)
    except Unreadable:  # the comparison itself grew beyond the limits
        return Verdict.UNDECIDED
    if (
        verdict is Verdict.DIFFERENT
        and (a.ambiguous or b.ambiguous)
        and _shape(a.reading) != _shape(b.reading)
    ):
        return Verdict.UNDECIDED  # 100,200 may be one number or two
    return verdict


def _shape(reading: Reading) -> object:
    return (reading.brackets, len(reading.items)) if isinstance(reading, Group) else type(reading)


def _compare_readings(a: Reading, b: Reading) -> Verdict:
    match a, b:
        case Scalar(), Scalar():
            return _compare_scalars(a, b)
        case Words(), Words():
            if a.text == b.text:
                return Verdict.EQUAL
            return Verdict.DIFFERENT if a.sure and b.sure else Verdict.UNDECIDED
        case Group(), Group():
            return _compare_groups(a, b)
        case (Scalar(), Group(items=items)) | (Group(items=items), Scalar()):
            return Verdict.DIFFERENT if len(items) != 1 else Verdict.UNDECIDED
        case _:
            return Verdict.UNDECIDED  # ten and 10


def _compare_scalars(a: Scalar, b: Scalar) -> Verdict:
    if a.letter and b.letter:
        return _verdict(a.letter.lower() == b.letter.lower())
    if a.value == b.value:
        return Verdict.UNDECIDED if a.label and b.label and a.label != b.label else Verdict.EQUAL
    # 10 % may have been meant as 0.1: not certainly different from it.
    return Verdict.UNDECIDED if a.percent != b.percent else Verdict.DIFFERENT


def _compare_groups(a: Group, b: Group) -> Verdict:
    kinds = {a.brackets, b.brackets}
    if kinds <= {"", "{}"}:
        return _all([_covers(a, b), _covers(b, a)])
    if a.brackets == b.brackets or (kinds == {"()", "[]"} and len(a.items) > 2):
        return _in_order(a, b)
    # Parentheses forgotten, or a vector: 1, 2 and (1, 2). Brackets of two numbers may be an interval: they count.
    return Verdict.UNDECIDED if "" in kinds or "rows" in kinds else Verdict.DIFFERENT


def _in_order(a: Group, b: Group) -> Verdict:
    if len(a.items) != len(b.items):
        return Verdict.DIFFERENT
    return _all(_compare_readings(left, right) for left, right in zip(a.items, b.items, strict=True))


def _covers(a: Group, b: Group) -> Verdict:
    """Every item of a has its equal in b."""
    return _all(_any(_compare_readings(item, other) for other in b.items) for item in a.items)


def _all(verdicts: Iterable[Verdict]) -> Verdict:
    found = set(verdicts)
    order = (Verdict.DIFFERENT, Verdict.UNDECIDED)
    return next((verdict for verdict in order if verdict in found), Verdict.EQUAL)


def _any(verdicts: Iterable[Verdict]) -> Verdict:
    found = set(verdicts)
    order = (Verdict.EQUAL, Verdict.UNDECIDED)
    return next((verdict for verdict in order if verdict in found), Verdict.DIFFERENT)


def _verdict(equal: bool) -> Verdict:
    return Verdict.EQUAL if equal else Verdict.DIFFERENT
