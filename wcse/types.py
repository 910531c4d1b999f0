"""Records that every layer shares: problems, nodes of the search tree, requests of a strategy.

Knows nothing of models, engines, tensors or files.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from wcse.search.best import Best

Quantization = Literal["int8", "int4", "gguf", "w8a8", "w4a8", "gguf_a8", "fp8"]
"""How a model's matrices are kept in memory, where not as floats of 16 or 32 bits, and what they are multiplied with.

Quantised here ("int8", "int4"), or as a GGUF file has them ("gguf"), times float32; the next three are the same weights
times inputs that are rounded to 8 bits, by integer arithmetic. All of these on a CPU; "fp8" on a GPU.
"""


class WcseError(ValueError):
    """A mistake in what the user gave: the message names the field, the value and the fix."""


class Finish(StrEnum):
    """Why a node ended. Only ``EOS`` makes a solution complete; unfinished text never votes."""

    DELIM = "delim"  # the step's delimiter was written: live
    STEP_CAP = "step_cap"  # no delimiter within the step's limit: live, continues
    EOS = "eos"  # end of sequence or a stop string: complete
    PATH_CAP = "path_cap"  # the solution reached max_tokens: truncated
    CTX = "ctx"  # the model's context is full: truncated
    BUDGET = "budget"  # the budget ran out: truncated
    ERROR = "error"  # this branch failed (a NaN row, say); its neighbours did not


LIVE = frozenset({Finish.DELIM, Finish.STEP_CAP})


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. ``answer`` is the gold answer; only metrics may read it."""

    id: str
    prompt: str
    answer: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


class PathScores(NamedTuple):
    """What the aggregations need of the scores along a path; each step adds its own. Double precision.

    Empty as it is made. A NaN stays in all but ``last``. ``ops.score_steps`` computes the same natively.
    """

    last: float = math.nan
    least: float = math.inf
    logs: float = 0.0
    """Sum of the natural logarithms: -inf after a zero, NaN after a negative score."""
    total: float = 0.0
    steps: float = 0.0

    def then(self, score: float) -> PathScores:
        """The same path with one more step."""
        least = self.least if self.least <= score or math.isnan(self.least) else score
        log = math.log(score) if score > 0 else -math.inf if score == 0 else math.nan
        return PathScores(score, least, self.logs + log, self.total + score, self.steps + 1)


@dataclass(slots=True, weakref_slot=True, eq=False)
class Node:
    """One step of a partial solution: a span of token ids below a parent. The root holds the prompt.

    ``path`` is the tuple of child indices from the root; it is the node's identity within its problem and,
    with the run's seed and the problem's id, the key of its random numbers. ``text`` is derived from
    ``token_ids`` and includes the delimiter. ``score`` is the verifier's score of this step given its prefix,
    set once. A node that nobody holds any more is pruned, and its keys and values may be dropped.
    """

    parent: Node | None
    path: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str = ""
    finish: Finish | None = None
    logprobs: tuple[float, ...] = ()
    score: float | None = None
    stop_reason: str | int | None = None
    summed: PathScores | None = field(default=None, repr=False)
    """What ``path_scores`` returns, once it is known; a scorer that computes it natively sets it with the score."""
    contest: Best | None = field(default=None, repr=False)
    """Where it is to be entered with its score; a scorer that does so natively takes it away."""

    @property
    def complete(self) -> bool:
        """The solution that ends here ended by itself."""
        return self.finish is Finish.EOS

    @property
    def live(self) -> bool:
        """The solution that ends here can be expanded (the root can)."""
        return self.parent is None or self.finish in LIVE

    def steps(self) -> list[Node]:
        """The nodes from the first step to this one; the root is left out."""
        chain: list[Node] = []
        node: Node = self
        while node.parent is not None:
            chain.append(node)
            node = node.parent
        return chain[::-1]

    @property
    def completion_ids(self) -> list[int]:
        """Token ids of the whole partial solution, without the prompt."""
        return [token for step in self.steps() for token in step.token_ids]

    @property
    def completion(self) -> str:
        """Text of the whole partial solution, without the prompt."""
        return "".join(step.text for step in self.steps())

    @property
    def scores(self) -> list[float]:
        """The verifier's scores of the steps so far. A step that shows no text is no step and has no score.

        Raises:
            WcseError: a step on the path was never scored.
        """
        return [score for step in self.steps() if (score := step._own_score(self.path)) is not None]

    @property
    def path_scores(self) -> PathScores:
        """``scores`` as the aggregations read them; only steps below the last known ones are added up.

        Raises:
            WcseError: a step on the path was never scored.
        """
        new: list[Node] = []
        node: Node = self
        while node.parent is not None and node.summed is None:
            new.append(node)
            node = node.parent
        summed = node.summed or PathScores()
        for step in reversed(new):
            score = step._own_score(self.path)
            summed = step.summed = summed if score is None else summed.then(score)
        return summed

    def _own_score(self, path: tuple[int, ...]) -> float | None:
        """The score; None if the step shows no text. ``path`` is for the message."""
        if self.score is None and self.text.strip():
            raise WcseError(f"node {path}: not every step was scored; yield Score(...) first or set a PRM")
        return self.score


@dataclass(frozen=True, slots=True)
class Expand:
    """Sample ``n`` children of ``node``, with child indices ``first .. first + n - 1``.

    Result: the list of the nodes reached, in child-index order. With ``to_end`` each child is followed by its
    child 0, step by step, to the end of its solution, and the last node of each chain is returned; otherwise
    each child is one step. ``score`` sends every new step to the verifier as soon as it is written, so the
    scores are set in the result. ``greedy`` takes the most likely token instead of sampling.

    Live children may be entered in ``best`` as their scores come in, each as soon as it has one; the result leaves
    these out. Those that are beaten are pruned at once, while their siblings are still being written.
    """

    node: Node
    n: int
    first: int = 0
    to_end: bool = False
    score: bool = True
    greedy: bool = False
    best: Best | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Score:
    """Score these nodes (and any unscored step above them). Result: the list of their scores."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Classes:
    """Compare the answers of these nodes. Result: a list of class numbers, one a node.

    Equal answers share a number; None stands for unfinished text or no answer. Gold answers have no part in it.
    """

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Draw:
    """Random numbers of the strategy's own. Result: a list of ``n`` floats in [0, 1).

    They depend on the run's seed, the problem's id and ``label``, so a label is used once.
    """

    label: str
    n: int = 1


@dataclass(frozen=True, slots=True)
class Parallel:
    """Run the requests together. Result: the list of their results, in order."""

    requests: tuple[Expand | Score, ...]


Request = Expand | Score | Classes | Draw | Parallel


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a strategy returns that also decides how the answer is picked: solutions and a selector's name."""

    solutions: list[Node]
    selector: str


Search = Generator[Request, Any, "list[Node] | Chosen"]
"""A running strategy: yields requests, is resumed with their results, returns the solutions' last nodes."""

PROBE = 1 << 21
"""Child index of the root's first sample that measures a problem's difficulty."""

LOOKAHEAD = 1 << 20
"""Child index of a lookahead rollout's first step: such a branch is looked at, never part of a solution."""
