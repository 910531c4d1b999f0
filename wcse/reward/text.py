"""Scoring of solutions that are there as text: files, checks, labels. No policy and no search take part.

Solutions of one problem that begin alike share their prefix, as the branches of a search do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from wcse.engine.driver import Done
from wcse.engine.engine import Root
from wcse.engine.params import SamplingParams, StepRule
from wcse.reward.scorer import ImplicitPRM, SeparatePRM
from wcse.types import Finish, Node, WcseError

_RULE = StepRule("")  # the texts come without delimiters


def score_texts(
    prm: SeparatePRM | ImplicitPRM,
    problem: str,
    solutions: Sequence[Sequence[str]],
    *,
    complete: bool = True,
) -> list[list[float]]:
    """The scores of every step of every solution, one for each step.

    Args:
        prm: from ``load_prm``.
        problem: the problem's text.
        solutions: step texts without delimiters.
        complete: the solutions have ended; some families read the last step otherwise then.

    Raises:
        WcseError: a step is blank, too long, or holds the family's tag.
    """
    root = Root(Node(None, (), ()), 0, problem, SamplingParams(), _RULE, 0)
    known: dict[tuple[tuple[str, ...], bool], Node] = {}
    paths: list[list[Node]] = []
    for number, steps in enumerate(solutions):
        node, path = root.node, list[Node]()
        for index, step in enumerate(steps):
            ended = complete and index + 1 == len(steps)
            if not step.strip():
                raise WcseError(f"step {index + 1} of solution {number + 1} is blank; leave it out")
            key = (tuple(steps[: index + 1]), ended)
            if key not in known:
                finish = Finish.EOS if ended else Finish.DELIM
                known[key] = Node(node, (*node.path, len(known)), (), step, finish)
                _submit(prm, root, problem, known[key], steps[: index + 1])
            node = known[key]
            path.append(node)
        paths.append(path)
    while prm.waiting:
        prm.step()
    return [[_value(node) for node in path] for path in paths]


def _submit(
    prm: SeparatePRM | ImplicitPRM, root: Root, problem: str, node: Node, steps: Sequence[str]
) -> None:
    reading = prm.layout.read(
        problem, steps, ended=not node.live
    )  # says what is wrong, where a search marks NaN
    if reading.read >= prm.context:
        raise WcseError(
            f"step {len(steps)}: the text up to here has {reading.read + 1} tokens and the verifier reads "
            f"{prm.context}; shorten it or use a verifier with a longer context"
        )

    def done(score: float | None) -> None:
        node.score = score

    hear: Done = done
    prm.submit(root, problem, node, hear)


def _value(node: Node) -> float:
    if node.score is None or math.isnan(node.score):
        raise WcseError(f"step {len(node.steps())} ({node.text[:40]!r}): the verifier gave no number for it")
    return node.score
