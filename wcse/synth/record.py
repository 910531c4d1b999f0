"""What one unit of work leaves: the samples of one block of one sampler for one problem, or a typed error.

A unit's key, (problem id, "sampler/block"), is its key in the journal. Plain values; no model is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from wcse.data.record import SolveRecord
from wcse.types import Problem


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """``n`` samples of a problem, to be drawn by a sampler in one call. ``block`` counts a sampler's rounds."""

    sampler: str
    block: int
    problem: str
    n: int

    @property
    def key(self) -> tuple[str, str]:
        return self.problem, f"{self.sampler}/{self.block:04d}"


def block_of(key: tuple[str, str]) -> tuple[str, int]:
    """Sampler and block of a journal key."""
    sampler, _, block = key[1].partition("/")
    return sampler, int(block)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a unit has no samples.

    Attributes:
        kind: ``prompt`` (cannot be rendered), ``context`` (too long for the model), ``refused`` (the run said
            no), ``worker_died``, ``timeout``.
        message: for a person.
    """

    kind: str
    message: str


@dataclass(frozen=True)
class SynthRecord:
    """One finished unit: ``solved`` holds its samples, or ``failure`` says why there are none."""

    unit: Unit
    problem: Problem
    solved: SolveRecord | None = None
    failure: Failure | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.unit.key

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        head: dict[str, Any] = {"n": self.unit.n}
        if self.solved is not None:
            return head | {"solved": self.solved.to_json()}
        assert self.failure is not None
        problem = self.problem
        return head | {
            "failure": {"kind": self.failure.kind, "message": self.failure.message},
            "problem": {
                "id": problem.id,
                "prompt": problem.prompt,
                "answer": problem.answer,
                "meta": dict(problem.meta),
            },
        }

    @classmethod
    def from_json(cls, key: tuple[str, str], data: Mapping[str, Any]) -> SynthRecord:
        sampler, block = block_of(key)
        unit = Unit(sampler, block, key[0], data["n"])
        if "solved" in data:
            solved = SolveRecord.from_json(data["solved"])
            return cls(unit, solved.problem, solved=solved)
        return cls(unit, Problem(**data["problem"]), failure=Failure(**data["failure"]))


@dataclass(frozen=True, slots=True)
class Sample:
    """One solution.

    Attributes:
        key: problem, sampler, block and place in the block; with the recipe's digest, the row's identity.
        steps: texts of the steps, delimiters included. ``step_scores``: the verifier's, None without one.
        answer, correct: as in ``SolutionRecord``. ``score``: the verifier's aggregated score.
        answer_class: equal answers of one *block* share a number.
        complete: ended by itself; other samples never become training data.
        tokens: written.
    """

    key: tuple[str, str, int, int]
    steps: tuple[str, ...]
    step_scores: tuple[float | None, ...]
    answer: str | None
    answer_class: int | None
    correct: bool | None
    score: float | None
    complete: bool
    tokens: int

    @property
    def sampler(self) -> str:
        return self.key[1]

    @property
    def text(self) -> str:
        return "".join(self.steps)


@dataclass(frozen=True)
class ProblemSamples:
    """All samples of one problem by sampler, in the order in which they were drawn, and what failed."""

    problem: Problem
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failures: list[tuple[Unit, Failure]] = field(default_factory=list)


def by_problem(records: Iterator[SynthRecord]) -> Iterator[ProblemSamples]:
    """Group records that come problem by problem, as the journal gives them."""
    group: ProblemSamples | None = None
    for record in records:
        if group is None or group.problem.id != record.problem.id:
            if group is not None:
                yield group
            group = ProblemSamples(record.problem)
        if record.failure is not None:
            group.failures.append((record.unit, record.failure))
        else:
            group.samples.setdefault(record.unit.sampler, []).extend(samples_of(record))
    if group is not None:
        yield group


def samples_of(record: SynthRecord) -> list[Sample]:
    """The samples of a unit, in order; none of a failed one."""
    solved = record.solved
    if solved is None:
        return []
    samples = []
    for index, solution in enumerate(solved.solutions):
        steps = solved.steps(solution.path)
        samples.append(
            Sample(
                key=(record.unit.problem, record.unit.sampler, record.unit.block, index),
                steps=tuple(step.text for step in steps),
                step_scores=tuple(step.score for step in steps),
                answer=solution.answer,
                answer_class=solution.answer_class,
                correct=solution.correct,
                score=solution.agg,
                complete=solved.complete(solution),
                tokens=sum(len(step.token_ids) for step in steps),
            )
        )
    return samples
