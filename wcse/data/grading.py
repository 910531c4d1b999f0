"""From a strategy's solutions to a record: extract answers, compare them, let every selector choose.

Used on nodes that an engine has just written and on nodes read back from a journal alike; knows neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from wcse.answers import Judge, Verdict, answer_classes, extract_answer, is_correct
from wcse.data.record import NodeRecord, Selection, SolutionRecord, SolveRecord
from wcse.ledger import Ledger
from wcse.search import get_strategy
from wcse.types import Node, Problem
from wcse.votes import SELECTORS, Ballot, ballots, by_rank, get_selector


def classify(nodes: Sequence[Node], judge: Judge | None) -> list[int | None]:
    """The answer classes of solutions: equal answers share a number; None for unfinished text or no answer."""
    return answer_classes(_answers(nodes), judge)


@dataclass(frozen=True, slots=True)
class Graded:
    """Solutions with their answers compared: everything that strategies with the same solutions share."""

    problem: Problem
    solutions: tuple[SolutionRecord, ...]
    selections: dict[str, Selection]
    agg_strategy: str | None

    @classmethod
    def of(
        cls,
        problem: Problem,
        nodes: Sequence[Node],
        agg_strategy: str | None,
        judge: Judge | None,
        *,
        bounded: bool = True,
    ) -> Graded:
        """``agg_strategy`` is None where no verifier scored the steps; unbounded scores count by their rank."""
        answers = _answers(nodes)
        classes = answer_classes(answers, judge)
        votes = ballots(nodes, classes, agg_strategy)
        if not bounded:
            votes = by_rank(votes)
        right = {answer: _correct(answer, problem, judge) for answer in set(answers)}
        solutions = tuple(
            SolutionRecord(node.path, answer, number, vote.score, right[answer])
            for node, answer, number, vote in zip(nodes, answers, classes, votes, strict=True)
        )
        names = list(SELECTORS) if agg_strategy else ["majority"]
        picks = {name: get_selector(name)(votes) for name in names}
        selections = {name: _selection(pick, solutions, problem) for name, pick in picks.items()}
        return cls(problem, solutions, selections, agg_strategy)

    def record(
        self,
        name: str,
        *,
        selector: str | None,
        nodes: tuple[NodeRecord, ...],
        ledger: Ledger,
        prompt_tokens: int,
    ) -> SolveRecord:
        """The record of the strategy ``name``; ``selector`` None takes its entry's own."""
        _, strategy = get_strategy(name)
        unscored = not strategy.needs_prm
        selector = selector or strategy.selector
        selections = {"majority": self._unscored_majority()} if unscored else self.selections
        chosen = selections[selector]
        return SolveRecord(
            problem=self.problem,
            strategy=name,
            answer=chosen.answer,
            correct=chosen.correct,
            verdict=verdict(self.problem, chosen),
            selectors=selections,
            solutions=tuple(replace(s, agg=None) for s in self.solutions) if unscored else self.solutions,
            nodes=tuple(replace(n, score=None) for n in nodes) if unscored else nodes,
            ledger=ledger,
            seconds=ledger.seconds,
            selector=selector,
            prompt_tokens=prompt_tokens,
            agg_strategy=None if unscored else self.agg_strategy,
        )

    def _unscored_majority(self) -> Selection:
        """The majority as it is without a verifier: ties go to the smallest path, not to the better score."""
        votes = [Ballot(s.path, s.answer is not None, s.answer_class, None) for s in self.solutions]
        return _selection(get_selector("majority")(votes), self.solutions, self.problem)


def verdict(problem: Problem, chosen: Selection) -> str:
    """How a final answer compares with the gold answer, in a word."""
    if chosen.answer is None:
        return "no_answer"
    if problem.answer is None:
        return "no_gold"
    return {True: "correct", False: "wrong", None: "undecided"}[chosen.correct]


def _answers(nodes: Sequence[Node]) -> list[str | None]:
    return [extract_answer(node.completion) if node.complete else None for node in nodes]


def _correct(answer: str | None, problem: Problem, judge: Judge | None) -> bool | None:
    """Right or wrong; no answer is wrong; None where it cannot be told."""
    if problem.answer is None:
        return None
    verdict = is_correct(answer, problem.answer, judge)
    return None if verdict is Verdict.UNDECIDED else verdict is Verdict.EQUAL


def _selection(pick: int | None, solutions: Sequence[SolutionRecord], problem: Problem) -> Selection:
    if pick is None:
        return Selection(None, None, None if problem.answer is None else False)
    return Selection(pick, solutions[pick].answer, solutions[pick].correct)
