"""One finished problem under one strategy, as it is stored in the journal.

Plain values only: it can be read back without a model, a tokenizer or an engine, and every table, vote, curve
and picture is derived from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from wcse.ledger import Ledger
from wcse.types import Finish, Node, Problem
from wcse.votes import Ballot

Path = tuple[int, ...]

SAMPLERS = frozenset({"greedy", "majority", "best_of_n", "weighted_best_of_n"})
"""Strategies whose solutions are a number of samples that was fixed beforehand."""


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One step of the tree, pruned ones included. The root (the prompt) has no record.

    Attributes:
        path: child indices from the root; ``parent`` is the path one step up, None below the root.
        token_ids, text: what was written in this step; ``text`` is derived from the ids.
        finish: why the step ended, a ``wcse.types.Finish`` value.
        logprob: sum of the tokens' raw log-probabilities; None when one of them is not a number.
        score: the verifier's score of this step given its prefix; None when it was not scored.
    """

    path: Path
    parent: Path | None
    token_ids: tuple[int, ...]
    text: str
    finish: str
    logprob: float | None
    score: float | None

    @classmethod
    def of(cls, node: Node) -> NodeRecord:
        """The record of a finished search node."""
        assert node.finish is not None, f"node {node.path} is still being written"
        return cls(
            path=node.path,
            parent=node.path[:-1] or None,
            token_ids=node.token_ids,
            text=node.text,
            finish=str(node.finish),
            logprob=_finite(math.fsum(node.logprobs)),
            score=_finite(node.score),
        )


@dataclass(frozen=True, slots=True)
class SolutionRecord:
    """One solution that the strategy returned.

    Attributes:
        path: its last step.
        answer: the extracted answer; None for unfinished text or no answer.
        answer_class: solutions with equal answers share a number; None never votes. Stored as ``class``.
        agg: the verifier's aggregated score; None without a verifier or for an unfinished solution.
        correct: equal to the gold answer; None when there is none, or the comparison could not decide.
    """

    path: Path
    answer: str | None
    answer_class: int | None
    agg: float | None
    correct: bool | None


@dataclass(frozen=True, slots=True)
class Selection:
    """What one selector chose: the index of the solution (None: nobody voted), its answer and correctness."""

    solution: int | None
    answer: str | None
    correct: bool | None


@dataclass(frozen=True)
class SolveRecord:
    """One problem solved by one strategy.

    Attributes:
        problem: the problem, gold answer included.
        strategy: the strategy's name; (problem.id, strategy) is the record's key.
        answer, correct, verdict: the strategy's own final answer, and how it compares with the gold answer.
            ``verdict`` is free text of the checker (``correct``, ``wrong``, ``undecided``, ``no_answer``,
            ...).
        selector: the name in ``selectors`` that made that answer; "" when the strategy chose in another way.
        selectors: name -> what that selector chooses among ``solutions``.
        solutions: what the strategy returned, in order.
        nodes: the whole tree, parents before children.
        ledger: what it cost. ``seconds``: wall time from its first request to its last.
        prompt_tokens: tokens of the root.
        agg_strategy: the aggregation behind ``solutions``' scores; None without a verifier.
    """

    problem: Problem
    strategy: str
    answer: str | None
    correct: bool | None
    verdict: str
    selectors: Mapping[str, Selection]
    solutions: tuple[SolutionRecord, ...]
    nodes: tuple[NodeRecord, ...]
    ledger: Ledger
    seconds: float
    selector: str = ""
    prompt_tokens: int = 0
    agg_strategy: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.problem.id, self.strategy

    @property
    def chosen(self) -> int | None:
        """Index of the solution behind the final answer."""
        selection = self.selectors.get(self.selector)
        return None if selection is None else selection.solution

    @cached_property
    def by_path(self) -> dict[Path, NodeRecord]:
        return {node.path: node for node in self.nodes}

    def steps(self, path: Path) -> list[NodeRecord]:
        """The steps of a solution, first to last."""
        return [self.by_path[path[: depth + 1]] for depth in range(len(path))]

    def complete(self, solution: SolutionRecord) -> bool:
        """It ended by itself; unfinished text never votes."""
        last = self.by_path.get(solution.path)
        return last is not None and last.finish == Finish.EOS

    def ballots(self) -> list[Ballot]:
        """What a selector of ``wcse.votes`` sees of each solution."""
        return [Ballot(s.path, self.complete(s), s.answer_class, s.agg) for s in self.solutions]

    @property
    def independent(self) -> bool:
        """Each solution is a chain of its own below the root and nothing was pruned: a set of samples.

        Only then does a subset of the solutions show what a smaller N would have given. A search that decides on the
        way when to stop is none, whatever its tree looks like; nor are samples that a budget cut, of which fewer
        would each have had more.
        """
        if self.strategy.partition("(")[0] not in SAMPLERS:
            return False
        if any(node.finish == Finish.BUDGET for node in self.nodes):
            return False
        firsts = [solution.path[0] for solution in self.solutions if solution.path]
        chains = all(not any(solution.path[1:]) for solution in self.solutions)
        roots = {node.path[0] for node in self.nodes}
        return chains and len(set(firsts)) == len(self.solutions) and roots == set(firsts)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; what is not finite becomes null."""
        return {
            "problem": {
                "id": self.problem.id,
                "prompt": self.problem.prompt,
                "answer": self.problem.answer,
                "meta": dict(self.problem.meta),
            },
            "strategy": self.strategy,
            "answer": self.answer,
            "correct": self.correct,
            "verdict": self.verdict,
            "selector": self.selector,
            "selectors": {name: asdict(selection) for name, selection in self.selectors.items()},
            "solutions": [_solution_to_json(solution) for solution in self.solutions],
            "nodes": [_node_to_json(node) for node in self.nodes],
            "ledger": self.ledger.to_json(),
            "seconds": self.seconds,
            "prompt_tokens": self.prompt_tokens,
            "agg_strategy": self.agg_strategy,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SolveRecord:
        return cls(
            problem=Problem(**data["problem"]),
            strategy=data["strategy"],
            answer=data["answer"],
            correct=data["correct"],
            verdict=data["verdict"],
            selector=data["selector"],
            selectors={name: Selection(**selection) for name, selection in data["selectors"].items()},
            solutions=tuple(_solution_from_json(solution) for solution in data["solutions"]),
            nodes=tuple(_node_from_json(node) for node in data["nodes"]),
            ledger=Ledger.from_json(data["ledger"]),
            seconds=data["seconds"],
            prompt_tokens=data["prompt_tokens"],
            agg_strategy=data.get("agg_strategy"),
        )


def _solution_to_json(solution: SolutionRecord) -> dict[str, Any]:
    return {
        "path": list(solution.path),
        "answer": solution.answer,
        "class": solution.answer_class,
        "agg": _finite(solution.agg),
        "correct": solution.correct,
    }


def _solution_from_json(data: Mapping[str, Any]) -> SolutionRecord:
    return SolutionRecord(tuple(data["path"]), data["answer"], data["class"], data["agg"], data["correct"])


def _node_to_json(node: NodeRecord) -> dict[str, Any]:
    return {
        "path": list(node.path),
        "parent": None if node.parent is None else list(node.parent),
        "token_ids": list(node.token_ids),
        "text": node.text,
        "finish": node.finish,
        "logprob": _finite(node.logprob),
        "score": _finite(node.score),
    }


def _node_from_json(data: Mapping[str, Any]) -> NodeRecord:
    return NodeRecord(
        path=tuple(data["path"]),
        parent=None if data["parent"] is None else tuple(data["parent"]),
        token_ids=tuple(data["token_ids"]),
        text=data["text"],
        finish=data["finish"],
        logprob=data["logprob"],
        score=data["score"],
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
