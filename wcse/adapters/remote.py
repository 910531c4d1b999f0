"""Our searches over someone else's engine: an asynchronous token backend in, ranked solutions out.

Token ids are never made from text again: a step's ids are those that were drawn. The in-process engine does the same
with one KV tree, and without a request for each step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from wcse.adapters.token_backend import TokenBackend, Written
from wcse.answers import MathPool
from wcse.data.grading import classify
from wcse.engine.params import FieldError, SamplingParams
from wcse.reward.scorer import ImplicitPRM, SeparatePRM
from wcse.reward.text import score_texts
from wcse.rng import node_key, uniforms
from wcse.search import STRATEGIES
from wcse.serve.errors import ApiError
from wcse.serve.search import Planner, Ranked, rank
from wcse.types import (
    Chosen,
    Classes,
    Draw,
    Expand,
    Finish,
    Node,
    Parallel,
    Request,
    Score,
    Search,
    WcseError,
)

_OF_WHOLE = ("min_tokens", "presence_penalty", "frequency_penalty", "structured_outputs")
"""Parameters that look at the completion so far; in a request for one step that is the step alone."""


class Verifier(Protocol):
    """Scores steps that are there as text."""

    default_agg: str

    async def score(self, problem: str, steps: Sequence[str], *, complete: bool) -> list[float]:
        """One score a step; ``complete``: the solution has ended."""


class LocalVerifier:
    """A process reward model of ``load_prm`` in this process, beside the event loop."""

    def __init__(self, prm: SeparatePRM | ImplicitPRM) -> None:
        self._prm = prm
        self._turn = asyncio.Lock()
        self.default_agg = prm.default_agg
        self.bounded = prm.bounded

    async def score(self, problem: str, steps: Sequence[str], *, complete: bool) -> list[float]:
        """See ``Verifier``."""
        async with self._turn:
            found = await asyncio.to_thread(score_texts, self._prm, problem, [steps], complete=complete)
        return found[0]


class RemoteSearch:
    """Runs strategies over a token backend.

    Args:
        verifier: scores steps; None: only strategies without one.
        params: sampling; ``max_tokens`` is of a whole solution. ``n`` and ``seed`` are the search's.
        delimiter: what ends a step.
        seed: with the prompt, fixes every request's own seed.
    """

    def __init__(
        self,
        backend: TokenBackend,
        *,
        verifier: Verifier | None = None,
        params: SamplingParams,
        delimiter: str = "\n\n",
        seed: int = 0,
    ) -> None:
        self.backend = backend
        self.verifier = verifier
        self.params = params
        self.delimiter = delimiter
        self.seed = seed
        agg = verifier.default_agg if verifier is not None else None
        self._planner = Planner(agg, getattr(verifier, "bounded", True))

    async def solve(self, prompt_ids: Sequence[int], problem: str, **settings: Any) -> list[Ranked]:
        """Search; the solutions, the selected one first.

        Args:
            problem: its text, for the verifier.
            settings: strategy, n and what else the server's ``search`` object takes.

        Raises:
            WcseError: a setting is wrong, or the strategy needs a verifier.
        """
        try:
            plan = self._planner.plan(settings, "search")
        except ApiError as error:
            raise WcseError(error.message) from None
        root = Node(None, (), tuple(prompt_ids))
        judge = MathPool()
        try:
            run = _Run(self, problem, judge)
            result = await run.drive(STRATEGIES[plan.name].run(root, plan.config))
            chosen = result if isinstance(result, Chosen) else Chosen(result, plan.strategy.selector)
            return await asyncio.to_thread(rank, chosen.solutions, chosen.selector, plan, judge)
        finally:
            judge.close()


@dataclass(frozen=True, slots=True)
class _Run:
    """One search in flight."""

    owner: RemoteSearch
    problem: str
    judge: MathPool

    async def drive(self, search: Search) -> list[Node] | Chosen:
        result: Any = None
        while True:
            try:
                request = search.send(result)
            except StopIteration as stop:
                found: list[Node] | Chosen = stop.value
                return found
            result = await self._answer(request)

    async def _answer(self, request: Request) -> Any:
        match request:
            case Expand():
                return await self._expand(request)
            case Score():
                await asyncio.gather(*(self._score(node) for node in request.nodes))
                return [node.score for node in request.nodes]
            case Parallel():
                return list(await asyncio.gather(*(self._answer(part) for part in request.requests)))
            case Classes():
                return await asyncio.to_thread(classify, request.nodes, self.judge)
            case Draw():
                return uniforms(self.owner.seed, self.problem, request.label, request.n)

    async def _expand(self, request: Expand) -> list[Node]:
        first = await self._step(request.node, request.n, request.first, request.greedy, request.to_end)
        ends = await asyncio.gather(*(self._to_end(node, request) for node in first))
        if request.score and self.owner.verifier is not None:
            await asyncio.gather(*(self._score(node) for node in ends))
        return list(ends)

    async def _to_end(self, node: Node, request: Expand) -> Node:
        while request.to_end and node.live:
            (node,) = await self._step(node, 1, 0, request.greedy, True)
        return node

    async def _step(self, parent: Node, n: int, first: int, greedy: bool, to_end: bool) -> list[Node]:
        """``n`` children of a node from one request. Without a verifier a whole solution is one step."""
        owner, written = self.owner, parent.completion_ids
        root = parent
        while root.parent is not None:
            root = root.parent
        whole = to_end and owner.verifier is None
        if not whole:
            _check_steps(owner.params)
        params = replace(
            owner.params,
            n=n,
            max_tokens=owner.params.most_tokens - len(written),
            stop=owner.params.stop if whole else (owner.delimiter, *owner.params.stop),
            temperature=0.0 if greedy else owner.params.temperature,
            seed=node_key(owner.seed, self.problem, (*parent.path, first)) >> 1,
        )
        found = await owner.backend.complete([*root.token_ids, *written], params)
        if len(found) != n:
            raise WcseError(f"the engine returned {len(found)} completions instead of {n}")
        return [self._node(parent, first + i, part, written) for i, part in enumerate(found)]

    def _node(self, parent: Node, child: int, part: Written, before: Sequence[int]) -> Node:
        finish = Finish.ERROR
        if part.finish_reason == "stop":
            finish = Finish.DELIM if part.stop_reason == self.owner.delimiter else Finish.EOS
        elif part.finish_reason == "length":
            finish = Finish.PATH_CAP
        if finish is Finish.DELIM and len(before) + len(part.token_ids) >= self.owner.params.most_tokens:
            finish = Finish.PATH_CAP
        path = (*parent.path, child)
        return Node(parent, path, part.token_ids, part.text, finish, part.logprobs, None, part.stop_reason)

    async def _score(self, node: Node) -> None:
        """Set the scores of the steps of a solution that have none yet."""
        verifier = self.owner.verifier
        if verifier is None:
            raise WcseError("the strategy asks for scores and there is no verifier; give one")
        steps = [step for step in node.steps() if step.text.strip()]
        if all(step.score is not None for step in steps):
            return
        texts = [step.text.strip() for step in steps]
        scores = await verifier.score(self.problem, texts, complete=node.complete)
        for step, score in zip(steps, scores, strict=True):
            if step.score is None:
                step.score = score


def _check_steps(params: SamplingParams) -> None:
    plain = SamplingParams()
    for name in _OF_WHOLE:
        if getattr(params, name) != getattr(plain, name):
            fix = "it would begin anew with each step's request; leave it out, or search without a verifier"
            raise FieldError(name, getattr(params, name), fix)
