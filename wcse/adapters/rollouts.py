"""A finished search as rollouts for reinforcement learning: exact token ids, log-probabilities, step rewards.

Nothing is tokenised again: the ids are those that were drawn. Knows no trainer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wcse.engine.driver import Outcome
from wcse.types import Node


@dataclass(frozen=True, slots=True)
class Rollout:
    """One solution of a search.

    Attributes:
        prompt_ids, completion_ids: token ids.
        logprobs: of each completion token under the raw logits of the policy that drew it.
        step_ends: for each step, the number of completion tokens up to its end.
        step_scores: the verifier's score of each step; None for a step without one.
        node_path: child indices from the root; solutions that share a beginning share its nodes.
        finish: why it ended.
        shared_tokens: leading completion tokens that an earlier rollout of the same search has too; a loss
            that counts each tree node once masks them.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float]
    step_ends: list[int]
    step_scores: list[float | None]
    node_path: list[int]
    finish: str
    shared_tokens: int

    def to_json(self) -> dict[str, Any]:
        """A plain object, for JSONL."""
        return asdict(self)


def rollouts(outcome: Outcome) -> list[Rollout]:
    """The solutions of a search, in the order of their paths."""
    seen: set[tuple[int, ...]] = set()
    return [
        _rollout(outcome.root, node, seen) for node in sorted(outcome.solutions, key=lambda node: node.path)
    ]


def _rollout(root: Node, node: Node, seen: set[tuple[int, ...]]) -> Rollout:
    steps = node.steps()
    ends: list[int] = []
    shared = 0
    for step in steps:
        ends.append((ends[-1] if ends else 0) + len(step.token_ids))
        if step.path in seen:
            shared = ends[-1]
        seen.add(step.path)
    return Rollout(
        list(root.token_ids),
        node.completion_ids,
        [logprob for step in steps for logprob in step.logprobs],
        ends,
        [step.score for step in steps],
        list(node.path),
        str(node.finish),
        shared,
    )
