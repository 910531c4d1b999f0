"""Groups equal answers. Which answers are equal is the business of wcse.answers.compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from wcse.answers.compare import Judge, Verdict, ask, certain
from wcse.answers.read import Answer, read_answer

MAX_JUDGED = 200
"""Pairs that the judge sees for one set of answers; each may take it a tenth of a second or more."""


def answer_classes(answers: Sequence[str | None], judge: Judge | None = None) -> list[int | None]:
    """A class number for each answer: equal answers share one. None and blank answers have none.

    Classes are numbered in the order of their first member; who shares one does not depend on the order.
    Equality is closed transitively. The judge is slow, so it sees one member of each class, the pairs with the
    most answers first, and at most ``MAX_JUDGED`` pairs; a pair that stays undecided does not join.
    """
    counts = Counter(answer for answer in answers if answer is not None and answer.strip())
    members = sorted(
        (read_answer(text) for text in counts), key=lambda member: (len(member.text), member.text)
    )
    groups = _Groups(members)
    undecided = groups.join_certain()
    if judge is not None:
        groups.join_judged(undecided, counts, judge)
    group_of = {member.text: groups.find(i) for i, member in enumerate(members)}
    numbers: dict[int, int] = {}
    classes: list[int | None] = []
    for answer in answers:
        group = None if answer is None else group_of.get(answer)
        classes.append(None if group is None else numbers.setdefault(group, len(numbers)))
    return classes


class _Groups:
    """Union-find over distinct answers; the first of a group stands for it."""

    def __init__(self, members: Sequence[Answer]) -> None:
        self._members = members
        self._parent = list(range(len(members)))

    def find(self, member: int) -> int:
        """The first member of the group."""
        while self._parent[member] != member:
            self._parent[member] = member = self._parent[self._parent[member]]
        return member

    def join_certain(self) -> list[tuple[int, int]]:
        """Join what is certainly equal; returns the pairs that are not certain."""
        undecided = []
        for i, j in combinations(range(len(self._members)), 2):
            verdict = certain(self._members[i], self._members[j])
            if verdict is Verdict.EQUAL:
                self._join(i, j)
            elif verdict is Verdict.UNDECIDED:
                undecided.append((i, j))
        return undecided

    def join_judged(self, pairs: Sequence[tuple[int, int]], counts: Counter[str], judge: Judge) -> None:
        """Join what the judge calls equal, asked about the first members of groups only."""
        votes: Counter[int] = Counter()
        for i, member in enumerate(self._members):
            votes[self.find(i)] += counts[member.text]
        firsts = [pair for pair in pairs if all(self.find(member) == member for member in pair)]
        firsts.sort(key=lambda pair: -votes[pair[0]] - votes[pair[1]])
        for i, j in firsts[:MAX_JUDGED]:
            if (
                self.find(i) != self.find(j)
                and ask(self._members[i], self._members[j], judge) is Verdict.EQUAL
            ):
                self._join(i, j)

    def _join(self, a: int, b: int) -> None:
        first, second = sorted((self.find(a), self.find(b)))
        self._parent[second] = first
