"""Solving problems: the one place where policy, verifier, strategies, answers and votes are wired together.

Strategies that only choose differently among the same samples (majority, best-of-N, weighted best-of-N) share
one sample set; each is charged what it would cost alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from wcse.answers import Judge, MathPool, Verdict, answer_classes, extract_answer, is_correct
from wcse.data.record import NodeRecord, Selection, SolutionRecord, SolveRecord
from wcse.engine.driver import Driver, Job, Outcome, Scorer
from wcse.engine.engine import Engine
from wcse.engine.llm import pages_in
from wcse.engine.params import SamplingParams, StepRule
from wcse.models.load import LoadedModel, load_model
from wcse.progress import Progress
from wcse.prompts import render_problem
from wcse.recipe import SHARED, Recipe
from wcse.reward.load import load_prm, load_shared_head
from wcse.search import SearchConfig, Strategy, get_strategy
from wcse.search.best_of_n import best_of_n, majority
from wcse.types import Node, Problem, Search
from wcse.votes import SELECTORS, ballots, get_selector

ROWS = 256
"""Rows that decode at once, unless the recipe says otherwise."""

KV_GIB = 2.0
"""Memory for keys and values, unless the recipe says otherwise."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """One run of a generator over the problems, and the strategies that read its results."""

    members: tuple[str, ...]
    strategy: Strategy
    scored: bool


def solve(
    recipe: Recipe,
    problems: Sequence[Problem],
    on_record: Callable[[SolveRecord], None],
    on_progress: Callable[[Progress], None] = lambda _: None,
    skip: Iterable[tuple[str, str]] = (),
) -> None:
    """Solve every problem by every strategy of the recipe and hand over each record as it is made.

    Args:
        recipe: what to run.
        problems: what to solve; ids must be distinct.
        on_record: hears each finished (problem, strategy).
        on_progress: hears how far the run is, after each step of the engine.
        skip: (problem id, strategy) pairs that are done already.

    Raises:
        WcseError: a model cannot be loaded, a strategy lacks a verifier, a prompt is too long.
    """
    passes = plan(recipe)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    done = set(skip)
    policy = load_model(recipe.policy, quantization=recipe.quantization)
    kv = recipe.kv_memory_gb or KV_GIB
    engine = Engine(policy, max_rows=recipe.batch_size or ROWS, num_pages=pages_in(policy, kv))
    scorer = _scorer(recipe, engine, kv) if any(p.scored for p in passes) else None
    config = recipe.search_config
    config = config.with_default(scorer.default_agg if scorer else "last")
    meter = _Meter(engine, on_progress, total=len(problems) * len(recipe.strategies), skipped=len(done))
    with MathPool() as judge:
        for part in passes:
            todo = [p for p in problems if any((p.id, name) not in done for name in part.members)]
            by_id = {p.id: p for p in todo}
            driver = Driver(
                engine,
                scorer if part.scored else None,
                params=_params(recipe),
                rule=StepRule(recipe.delimiter, recipe.max_step_tokens),
                on_step=meter.tell,
            )
            for outcome in driver.run(_jobs(todo, policy, recipe, part.strategy, config)):
                problem = by_id[outcome.job.name]
                graded = _Graded.of(outcome, problem, config if part.scored else None, judge)
                for name in part.members:
                    if (problem.id, name) not in done:
                        on_record(_record(graded, name))
                        meter.done += 1
        meter.tell()


def solve_all(recipe: Recipe, problems: Sequence[Problem]) -> list[SolveRecord]:
    """Solve in memory: the records of every problem and strategy, strategies in the recipe's order.

    Raises:
        WcseError: as ``solve``.
    """
    records: list[SolveRecord] = []
    solve(recipe, problems, records.append)
    order = {p.id: i for i, p in enumerate(problems)}
    return sorted(records, key=lambda r: (recipe.strategies.index(r.strategy), order[r.problem.id]))


def plan(recipe: Recipe) -> list[_Pass]:
    """The passes that serve the recipe's strategies."""
    named = [get_strategy(name) for name in recipe.strategies]
    sampled = [(name, s) for name, s in named if s.run in (best_of_n, majority)]
    passes = [_Pass((name,), s, s.needs_prm) for name, s in named if (name, s) not in sampled]
    if sampled:
        scored = [s for _, s in sampled if s.needs_prm]
        passes.insert(
            0,
            _Pass(tuple(name for name, _ in sampled), (scored or [sampled[0][1]])[0], bool(scored)),
        )
    return passes


def _params(recipe: Recipe) -> SamplingParams:
    return SamplingParams(
        temperature=recipe.temperature,
        top_p=recipe.top_p,
        top_k=recipe.top_k,
        min_p=recipe.min_p,
        max_tokens=recipe.max_tokens,
    )


def _scorer(recipe: Recipe, engine: Engine, kv: float) -> Scorer:
    assert recipe.prm is not None
    if recipe.prm == SHARED:
        return load_shared_head(engine)
    return load_prm(recipe.prm, kv_memory=kv, family=recipe.prm_family, quantization=recipe.prm_quantization)


def _jobs(
    problems: Sequence[Problem],
    policy: LoadedModel,
    recipe: Recipe,
    strategy: Strategy,
    config: SearchConfig,
) -> Iterator[Job]:
    strategy.check(config)

    def search(root: Node) -> Search:
        return strategy.run(root, config)

    for problem in problems:
        ids = render_problem(policy.tokenizer, problem.prompt, recipe.system_prompt)
        yield Job(problem.id, ids, problem.prompt, search, recipe.seed)


@dataclass(frozen=True, slots=True)
class _Graded:
    """An outcome with its answers compared: everything that the strategies of a pass share."""

    outcome: Outcome
    problem: Problem
    solutions: tuple[SolutionRecord, ...]
    selections: dict[str, Selection]

    @classmethod
    def of(cls, outcome: Outcome, problem: Problem, config: SearchConfig | None, judge: Judge) -> _Graded:
        """``config`` is None where no verifier scored the steps."""
        nodes = outcome.solutions
        answers = [extract_answer(node.completion) if node.complete else None for node in nodes]
        classes = answer_classes(answers, judge)
        votes = ballots(nodes, classes, config.aggregation if config else None)
        right = {answer: _correct(answer, problem, judge) for answer in set(answers)}
        solutions = tuple(
            SolutionRecord(node.path, answer, number, vote.score, right[answer])
            for node, answer, number, vote in zip(nodes, answers, classes, votes, strict=True)
        )
        names = list(SELECTORS) if config else ["majority"]
        picks = {name: get_selector(name)(votes) for name in names}
        selections = {name: _selection(pick, solutions, problem) for name, pick in picks.items()}
        return cls(outcome, problem, solutions, selections)


def _correct(answer: str | None, problem: Problem, judge: Judge) -> bool | None:
    """Right or wrong; no answer is wrong; None where it cannot be told."""
    if problem.answer is None:
        return None
    verdict = is_correct(answer, problem.answer, judge)
    return None if verdict is Verdict.UNDECIDED else verdict is Verdict.EQUAL


def _selection(pick: int | None, solutions: Sequence[SolutionRecord], problem: Problem) -> Selection:
    if pick is None:
        return Selection(None, None, None if problem.answer is None else False)
    return Selection(pick, solutions[pick].answer, solutions[pick].correct)


def _record(graded: _Graded, name: str) -> SolveRecord:
    _, strategy = get_strategy(name)
    outcome = graded.outcome
    chosen = graded.selections[strategy.selector]
    unscored = not strategy.needs_prm
    ledger = outcome.policy if unscored else outcome.policy + outcome.verifier
    selections = {"majority": graded.selections["majority"]} if unscored else graded.selections
    return SolveRecord(
        problem=graded.problem,
        strategy=name,
        answer=chosen.answer,
        correct=chosen.correct,
        verdict=_verdict(graded, chosen),
        selectors=selections,
        solutions=tuple(replace(s, agg=None) for s in graded.solutions) if unscored else graded.solutions,
        nodes=_nodes(outcome, scored=not unscored),
        ledger=ledger,
        seconds=ledger.seconds,
        selector=strategy.selector,
        prompt_tokens=len(outcome.root.token_ids),
    )


def _verdict(graded: _Graded, chosen: Selection) -> str:
    if chosen.answer is None:
        return "no_answer"
    if graded.problem.answer is None:
        return "no_gold"
    return {True: "correct", False: "wrong", None: "undecided"}[chosen.correct]


def _nodes(outcome: Outcome, *, scored: bool) -> tuple[NodeRecord, ...]:
    """Every node ever written, parents before children, in path order."""
    return tuple(
        NodeRecord(
            path,
            path[:-1] or None,
            trace.token_ids,
            trace.text,
            str(trace.finish),
            trace.logprob,
            trace.score if scored else None,
        )
        for path, trace in sorted(outcome.nodes.items())
    )


class _Meter:
    """Turns the engine's counters into progress."""

    def __init__(self, engine: Engine, hear: Callable[[Progress], None], *, total: int, skipped: int) -> None:
        self.engine = engine
        self.hear = hear
        self.total = total
        self.skipped = skipped
        self.done = skipped
        self.start = time.perf_counter()

    def tell(self) -> None:
        """Report how far the run is."""
        stats = self.engine.runner.tree.stats()
        self.hear(
            Progress(
                problems_done=self.done,
                problems_total=self.total,
                policy_tokens=self.engine.runner.computed,
                reused_tokens=self.engine.reused,
                pages_used=stats["total"] - stats["free"],
                pages_total=stats["total"],
                seconds=time.perf_counter() - self.start,
                problems_skipped=self.skipped,
            )
        )
