"""The driver: runs thousands of strategy generators at once against one engine and one scorer.

A strategy's request becomes rows of the engine's one batch; a finished step goes to the scorer at once, with
no barrier between problems. It knows nothing of what strategies, engine and scorer do inside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from wcse.budget import Account as Charges
from wcse.engine.engine import Engine
from wcse.engine.growth import Account, Growth, Root
from wcse.engine.params import SamplingParams, StepRule
from wcse.engine.runner import KVMemoryHeld
from wcse.flops import ModelCost
from wcse.ledger import Ledger
from wcse.rng import uniforms
from wcse.search.best import Best
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

T = TypeVar("T")
Done = Callable[[float | None], None]

CENSUS_EVERY = 16  # steps between two counts of pages


class Scorer(Protocol):
    """Scores steps. ``done`` hears the score; None for a blank step; NaN when it cannot be read."""

    default_agg: str
    cost: ModelCost | None
    """What it costs the verifier to read a token; None for a head on the policy's own states."""

    @property
    def bounded(self) -> bool:
        """Whether scores lie in [0, 1]. Others must be neither multiplied nor summed up in a vote."""

    def submit(self, root: Root, problem: str, node: Node, done: Done) -> None:
        """Queue a node whose ancestors are scored or queued before it."""

    @property
    def waiting(self) -> int:
        """Nodes that could be scored now."""

    def step(self) -> None:
        """Score what waits."""

    def account(self, root: Root) -> Account:
        """What the verifier read for this problem."""

    def abort(self, root: Root) -> None:
        """Forget the problem's queued nodes; their ``done`` is not called."""

    def reset(self) -> None:
        """Forget everything queued and stored, after a step that broke off: nothing it touched can be trusted."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One search to run: a rendered prompt, and the strategy that grows its tree.

    ``params`` and ``rule`` override the driver's own; ``tenant`` is whose cached prompts it may share.
    """

    name: str
    prompt_ids: list[int]
    problem: str
    strategy: Callable[[Node], Search]
    seed: int
    charges: Charges | None = None
    """Counts what the search costs and keeps its budget; None counts tokens only."""
    params: SamplingParams | None = None
    rule: StepRule | None = None
    tenant: str = ""


@dataclass(eq=False)
class Outcome:
    """A finished search: its solutions' last nodes, every node ever written by path, and what it cost.

    ``selector`` is the one that the strategy asked for, None where it left that to its entry.
    """

    job: Job
    solutions: list[Node]
    selector: str | None
    root: Node
    nodes: dict[tuple[int, ...], NodeTrace]
    policy: Ledger
    verifier: Ledger


@dataclass(slots=True)
class NodeTrace:
    """What stays of a node after it was pruned."""

    token_ids: tuple[int, ...]
    text: str
    finish: Finish
    logprob: float
    score: float | None = None


class _Countdown:
    """Calls ``then`` once when everything that was added has come in."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.left = 1
        self.then = then

    def add(self, count: int = 1) -> None:
        self.left += count

    def hit(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.then()


@dataclass(eq=False)
class _Running:
    """A search in flight."""

    job: Job
    root: Root
    search: Search
    nodes: dict[tuple[int, ...], NodeTrace] = field(default_factory=dict)
    pages: tuple[int, int] = (0, 0)
    policy_seconds: float = 0.0
    verifier_seconds: float = 0.0


class Driver:
    """Runs searches with one engine and, where strategies ask for scores, one scorer."""

    def __init__(
        self,
        engine: Engine,
        scorer: Scorer | None,
        *,
        params: SamplingParams,
        rule: StepRule,
        classify: Callable[[Sequence[Node]], list[int | None]] | None = None,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine = engine
        self.scorer = scorer
        self.classify = classify
        self.params = params
        self.rule = rule
        self.on_step = on_step
        self._running: dict[Root, _Running] = {}
        self._finished: list[tuple[_Running, list[Node] | Chosen]] = []
        self._steps = 0

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Run the jobs, as many at once as fill the batch, and yield each as it ends.

        Raises:
            WcseError: a strategy asked for something impossible, or a prompt does not fit.
        """
        queue = iter(jobs)
        more = True
        while True:
            while more and self.engine.demand < self.engine.max_rows:
                job = next(queue, None)
                if job is None:
                    more = False
                else:
                    self.submit(job)
            yield from self.take_finished()
            worked = self.advance()
            self.on_step()
            if not worked:
                if not more and not self._finished:
                    return
                if self._running and not self._finished:
                    raise RuntimeError("searches are running but neither policy nor verifier has work")

    # -- one turn ----------------------------------------------------------------------------------------

    def advance(self) -> bool:
        """One step of the policy and, when enough waits, of the verifier. False when there was no work.

        While a device writes the policy's tokens, the verifier's step is planned, and runs beside it; unless they need
        the same memory, then the verifier's step comes after.
        """
        worked, begun, scorer = self.engine.busy, False, self.scorer
        if worked:
            begun = self._timed(self.engine.begin, lambda run: run.root.account.computed, "policy_seconds")
            self._steps += 1
        try:
            if worked and not begun:
                self._census()
            if scorer is not None and scorer.waiting and scorer.waiting >= len(self.engine.rows) // 4:
                try:
                    self._step_scorer(scorer)
                except KVMemoryHeld:
                    if not begun:
                        raise
                    begun = False
                    self._finish_step()
                    self._step_scorer(scorer)
                worked = True
        finally:
            if begun:
                self._finish_step()
        return worked

    def _step_scorer(self, scorer: Scorer) -> None:
        self._timed(scorer.step, lambda run: scorer.account(run.root).computed, "verifier_seconds")

    def _finish_step(self) -> None:
        """End the policy's step."""
        self._timed(self.engine.finish, lambda run: run.root.account.computed, "policy_seconds")
        self._census()

    def _timed(self, step: Callable[[], T], tokens: Callable[[_Running], int], field_name: str) -> T:
        """Run a step and share its time out by the tokens that it computed for each problem."""
        runs = list(self._running.values())
        before = [tokens(run) for run in runs]
        start = time.perf_counter()
        result = step()
        seconds = time.perf_counter() - start
        shares = [tokens(run) - old for run, old in zip(runs, before, strict=True)]
        total = sum(shares)
        for run, share in zip(runs, shares, strict=True):
            part = seconds * share / total if total else seconds / len(runs)
            setattr(run, field_name, getattr(run, field_name) + part)
            if run.job.charges is not None and run.job.charges.spend(part):
                self.engine.stop(run.root)
        return result

    def _census(self) -> None:
        if self._steps % CENSUS_EVERY:
            return
        for root, counts in self.engine.census().items():
            run = self._running.get(root)
            if run is not None and counts > run.pages:
                run.pages = counts

    # -- searches ----------------------------------------------------------------------------------------

    def submit(self, job: Job) -> Root:
        """Start a search; ``take_finished`` gives its outcome after enough calls of ``advance``.

        Raises:
            WcseError: the prompt does not fit, or the strategy asked for something impossible.
        """
        root = self.engine.open(
            job.prompt_ids,
            seed=job.seed,
            problem=job.name,
            params=job.params or self.params,
            rule=job.rule or self.rule,
            tenant=job.tenant,
        )
        if job.charges is not None:
            job.charges.open(len(job.prompt_ids), job.name)
        run = _Running(job, root, job.strategy(root.node))
        self._running[root] = run
        try:
            self._resume(run, None)
        except BaseException:
            self.abort(root)
            raise
        return root

    def abort(self, root: Root) -> None:
        """Stop a search and free what it holds; it has no outcome."""
        run = self._running.pop(root, None)
        if run is not None:
            self.engine.abort(root)
            if self.scorer is not None:
                self.scorer.abort(root)
            run.search.close()

    def _resume(self, run: _Running, result: Any) -> None:
        if run.root not in self._running:  # aborted while the verifier still read for it
            return
        try:
            request = run.search.send(result)
        except StopIteration as stop:
            self._finish(run, stop.value)
            return
        self._issue(run, request, lambda answer: self._resume(run, answer))

    def _finish(self, run: _Running, solutions: list[Node] | Chosen) -> None:
        del self._running[run.root]
        self._finished.append((run, solutions))

    @property
    def ended(self) -> bool:
        """Whether ``take_finished`` has anything to give."""
        return bool(self._finished)

    def take_finished(self) -> list[Outcome]:
        """The searches that ended since the last call."""
        finished, self._finished = self._finished, []
        return [self._outcome(run, solutions) for run, solutions in finished]

    def _outcome(self, run: _Running, result: list[Node] | Chosen) -> Outcome:
        selector = result.selector if isinstance(result, Chosen) else None
        solutions = result.solutions if isinstance(result, Chosen) else result
        read = self.scorer.account(run.root) if self.scorer else Account()
        account = run.root.account
        policy = Ledger(
            policy_computed=account.computed,
            policy_reused=account.reused,
            policy_sampled=sum(len(trace.token_ids) for trace in run.nodes.values()),
            policy_flops=run.job.charges.policy_flops if run.job.charges else 0.0,
            kv_pages=run.pages[0],
            kv_pages_unshared=run.pages[1],
            seconds=run.policy_seconds,
        )
        verifier = Ledger(
            prm_computed=read.computed,
            prm_reused=read.reused,
            prm_asked=read.asked,
            prm_flops=read.flops + (run.job.charges.prm_flops if run.job.charges else 0.0),
            seconds=run.verifier_seconds,
        )
        return Outcome(run.job, solutions, selector, run.root.node, run.nodes, policy, verifier)

    # -- requests ----------------------------------------------------------------------------------------

    def _issue(self, run: _Running, request: Request, done: Callable[[Any], None]) -> None:
        match request:
            case Expand():
                (most,) = self._shares(run, (request,))
                self._expand(run, request, most, done)
            case Score():
                self._score(run, request, done)
            case Parallel():
                self._parallel(run, request, done)
            case Classes():
                if self.classify is None:
                    raise WcseError("strategy yielded Classes(...) and this driver compares no answers")
                done(self.classify(request.nodes))
            case Draw():
                done(uniforms(run.job.seed, run.job.name, request.label, request.n))
            case _:
                raise WcseError(
                    f"strategy yielded {request!r}; yield Expand, Score, Classes, Draw or Parallel"
                )

    def _parallel(self, run: _Running, request: Parallel, done: Callable[[Any], None]) -> None:
        results: list[Any] = [None] * len(request.requests)
        countdown = _Countdown(lambda: done(results))
        shares = self._shares(run, request.requests)
        for i, (part, most) in enumerate(zip(request.requests, shares, strict=True)):

            def keep(answer: Any, i: int = i) -> None:
                results[i] = answer
                countdown.hit()

            countdown.add()
            if isinstance(part, Expand):
                self._expand(run, part, most, keep)
            else:
                self._issue(run, part, keep)
        countdown.hit()

    def _shares(self, run: _Running, requests: Sequence[Expand | Score]) -> list[int | None]:
        """The most tokens of a row of each request; None: no limit."""
        charges = run.job.charges
        if charges is None or charges.budget is None:
            return [None] * len(requests)
        rows = [part.n if isinstance(part, Expand) else 0 for part in requests]
        depths = [_depth(part.node) if isinstance(part, Expand) else 0 for part in requests]
        contexts = [depth for depth, count in zip(depths, rows, strict=True) for _ in range(count)]
        shares = charges.shares(contexts)
        if shares is None:
            return [None] * len(requests)
        places = [sum(rows[:i]) for i in range(len(rows))]
        return [shares[at] if count else None for at, count in zip(places, rows, strict=True)]

    def _expand(self, run: _Running, request: Expand, most: int | None, done: Callable[[Any], None]) -> None:
        if not request.node.live:
            raise WcseError(
                f"Expand(node={request.node.path}): it ended with {request.node.finish}; expand live nodes"
            )
        if most == 0:  # nothing is left: the children are there, and empty
            done([self._empty(run, request.node, request.first + i) for i in range(request.n)])
            return
        nodes: list[Node | None] = [None] * request.n
        countdown = _Countdown(lambda: done([node for node in nodes if node is not None]))
        scores = request.score and self.scorer is not None
        best = request.best if scores and not request.to_end else None

        def on_node(node: Node) -> None:
            self._trace(run, node)
            if scores and node.finish is not Finish.ERROR:
                countdown.add()
                self._submit(run, node, countdown, best if node.live else None)

        def on_end(child: int, node: Node) -> None:
            if best is None or not node.live:  # the others live and die with their places
                nodes[child] = node
            countdown.hit()

        countdown.add(request.n)
        if request.n:
            self.engine.grow(
                Growth(
                    run.root,
                    request.node,
                    request.n,
                    request.first,
                    request.to_end,
                    request.greedy,
                    on_node,
                    on_end,
                    most,
                )
            )
        countdown.hit()

    def _score(self, run: _Running, request: Score, done: Callable[[Any], None]) -> None:
        if self.scorer is None:
            raise WcseError("strategy yielded Score(...) and there is no PRM; set prm")
        countdown = _Countdown(lambda: done([node.score for node in request.nodes]))
        wanted = {step.path: step for node in request.nodes for step in node.steps() if step.score is None}
        for path in sorted(wanted):
            countdown.add()
            self._submit(run, wanted[path], countdown)
        countdown.hit()

    def _submit(self, run: _Running, node: Node, countdown: _Countdown, best: Best | None = None) -> None:
        assert self.scorer is not None
        node.contest = best

        def done(score: float | None) -> None:
            node.score = score
            run.nodes[node.path].score = score
            if node.contest is not None:
                node.contest.enter(node)
                node.contest = None
            countdown.hit()

        self.scorer.submit(run.root, run.job.problem, node, done)

    def _empty(self, run: _Running, parent: Node, child: int) -> Node:
        node = Node(parent, (*parent.path, child), (), "", Finish.BUDGET)
        self._trace(run, node)
        return node

    def _trace(self, run: _Running, node: Node) -> None:
        assert node.finish is not None and node.parent is not None
        if run.job.charges is not None:
            run.job.charges.charge(len(node.token_ids), _depth(node.parent))
        run.nodes[node.path] = NodeTrace(node.token_ids, node.text, node.finish, sum(node.logprobs))


def _depth(node: Node) -> int:
    """Tokens from the start of the prompt to the end of the node."""
    depth = len(node.token_ids)
    while node.parent is not None:
        node = node.parent
        depth += len(node.token_ids)
    return depth
