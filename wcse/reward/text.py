"""Scoring of solutions that are there as text: files, checks, labels. No policy and no search take part.

Solutions of one problem that begin alike share their prefix, as the branches of a search do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from wcse.engine.growth import Root
from wcse.engine.params import SamplingParams, StepRule
from wcse.reward.generative import GenerativePRM
from wcse.reward.scorer import ImplicitPRM, SeparatePRM
from wcse.types import Finish, Node, WcseError

TextPRM = SeparatePRM | ImplicitPRM | GenerativePRM
"""A verifier that reads texts: any but those that stand on the policy's own states."""

_RULE = StepRule("")  # the texts come without delimiters
_AT_ONCE = 64  # problems in the verifier's tree at one time


def score_texts(
    prm: TextPRM,
    problem: str,
    solutions: Sequence[Sequence[str]],
    *,
    complete: bool = True,
) -> list[list[float]]:
    """The scores of every step of every solution of one problem, one for each step; NaN: no verdict was found.

    Args:
        prm: from ``load_prm``.
        problem: the problem's text.
        solutions: step texts without delimiters.
        complete: the solutions have ended; some families read the last step otherwise then.

    Raises:
        WcseError: a step is blank, too long, or holds the family's tag.
    """
    planted = _Planted(prm, problem)
    paths = [planted.grow(steps, complete=complete) for steps in solutions]
    _drain(prm)
    return [[_value(prm, node) for node in path] for path in paths]


def score_many(prm: TextPRM, cases: Iterable[tuple[str, Sequence[str]]]) -> Iterator[list[float]]:
    """The step scores of each (problem, steps of a finished solution), in order; problems share batches.

    Raises:
        WcseError: as ``score_texts``.
    """
    todo = iter(cases)
    while chunk := list(islice(todo, _AT_ONCE)):
        planted = [_Planted(prm, problem) for problem, _ in chunk]
        paths = [plant.grow(steps, complete=True) for plant, (_, steps) in zip(planted, chunk, strict=True)]
        _drain(prm)
        for path in paths:
            yield [_value(prm, node) for node in path]


class _Planted:
    """One problem in the verifier's tree."""

    def __init__(self, prm: TextPRM, problem: str) -> None:
        self.prm = prm
        self.problem = problem
        self.root = Root(Node(None, (), ()), 0, problem, SamplingParams(), _RULE, 0)
        self._known: dict[tuple[tuple[str, ...], bool], Node] = {}

    def grow(self, steps: Sequence[str], *, complete: bool) -> list[Node]:
        """Queue the steps of a solution that are not there yet; returns its nodes."""
        node, path = self.root.node, list[Node]()
        for index, step in enumerate(steps):
            if not step.strip():
                raise WcseError(f"step {index + 1} of {len(steps)} is blank; leave it out")
            above = tuple(steps[: index + 1])
            ended = complete and index + 1 == len(steps)
            if (above, ended) not in self._known:
                finish = Finish.EOS if ended else Finish.DELIM
                new = Node(node, (*node.path, len(self._known)), (), step, finish)
                self._known[above, ended] = new
                self._submit(new, above)
            node = self._known[above, ended]
            path.append(node)
        return path

    def _submit(self, node: Node, steps: Sequence[str]) -> None:
        # Says what is wrong, where a search would mark the node with NaN and go on.
        reading = self.prm.layout.read(self.problem, steps, ended=not node.live)
        if reading.read >= self.prm.context:
            raise WcseError(
                f"step {len(steps)}: the text up to here has {reading.read + 1} tokens and the verifier reads "
                f"{self.prm.context}; shorten it or use a verifier with a longer context"
            )

        def done(score: float | None) -> None:
            node.score = score

        self.prm.submit(self.root, self.problem, node, done)


def _drain(prm: TextPRM) -> None:
    while prm.waiting:
        prm.step()


def _value(prm: TextPRM, node: Node) -> float:
    """The score; NaN only for a verdict that could not be parsed."""
    written = prm.layout.family.head == "verdict"
    if node.score is None or (math.isnan(node.score) and not written):
        raise WcseError(
            f"step {len(node.steps())} ({node.text[:40]!r}): the verifier gave no number for it; its weights or "
            "its format are broken (see wcse prm check)"
        )
    return node.score
