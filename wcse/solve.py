"""Solving problems: the one place where policy, verifier, strategies, answers and votes are wired together.

Strategies that only choose differently among the same samples (majority, best-of-N, weighted best-of-N) share
one sample set; each is charged what it would cost alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from wcse.answers import MathPool
from wcse.budget import Account, Budget
from wcse.data.fingerprint import fingerprint_models, fingerprint_path
from wcse.data.grading import Graded, classify
from wcse.data.record import NodeRecord, SolveRecord
from wcse.engine.driver import Driver, Job, Outcome, Scorer
from wcse.engine.engine import Engine
from wcse.engine.fit import Fit, footprint, plan_memory
from wcse.engine.memory import KV_GIB, Memory
from wcse.engine.params import SamplingParams, StepRule
from wcse.engine.schedule import FILL_TOKENS
from wcse.flops import ModelCost
from wcse.models.load import (
    LoadedModel,
    dtype_on,
    kv_dtype_on,
    load_model,
    on_gpu,
    read_config,
    read_spec,
)
from wcse.optimal.policy_file import read_policy
from wcse.progress import Progress
from wcse.prompts import render_problem, stop_strings
from wcse.recipe import OWN, SHARED, Recipe
from wcse.reward.families import family_named, family_of
from wcse.reward.generative import GenerativePRM
from wcse.reward.load import load_verifier
from wcse.search import STRATEGIES, SearchConfig, Strategy, get_strategy, parse_strategy
from wcse.search.best_of_n import best_of_n, majority
from wcse.shots import shots_path
from wcse.types import Node, Problem, Quantization, Search, WcseError

ROWS = 256
"""Rows that decode at once, unless the recipe says otherwise."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """One run of a generator over the problems, and the strategies that read its results."""

    members: tuple[str, ...]
    strategy: Strategy
    config: SearchConfig
    scored: bool


@dataclass(frozen=True)
class Models:
    """The loaded policy and verifier of a recipe; other recipes that name the same models may use them."""

    policy: LoadedModel
    engine: Engine
    scorer: Scorer | None

    @classmethod
    def load(cls, recipe: Recipe) -> Models:
        """Load what the recipe's strategies need.

        Raises:
            WcseError: a model cannot be loaded.
        """
        device = recipe.device or "cpu"
        formats: dict[str, Any] = {
            "device": device,
            "dtype": recipe.dtype or "auto",
            "kv_cache_dtype": recipe.kv_cache_dtype or "auto",
        }
        scored = any(part.scored for part in plan(recipe))
        memory = kv_budget(recipe, scored=scored)
        policy = load_model(recipe.policy, quantization=recipe.quantization, **formats)
        engine = Engine(policy, max_rows=recipe.batch_size or ROWS, memory=memory)
        if not scored:
            return cls(policy, engine, None)
        assert recipe.prm is not None
        scorer = load_verifier(
            recipe.prm,
            engine,
            kv_memory=memory,
            family=recipe.prm_family,
            quantization=recipe.prm_quantization,
            **formats,
        )
        return cls(policy, engine, scorer)


def kv_budget(recipe: Recipe, *, scored: bool) -> Memory:
    """For keys and values of policy and verifier together."""
    if recipe.kv_memory_gb is None and on_gpu(recipe.device or "cpu"):
        return Memory(fit_of(recipe, scored=scored).kv)
    return Memory.gib(recipe.kv_memory_gb or KV_GIB)


def arithmetic(recipe: Recipe) -> dict[str, str]:
    """What a recipe's ``dtype`` and ``kv_cache_dtype`` are on its device, which decides where they say ``auto``."""
    device = recipe.device or "cpu"
    dtype = dtype_on(device, recipe.dtype or "auto", present=False)
    kinds = {"dtype": dtype, "kv_cache_dtype": kv_dtype_on(device, dtype, recipe.kv_cache_dtype or "auto")}
    return {name: str(kind).removeprefix("torch.") for name, kind in kinds.items()}


def fit_of(recipe: Recipe, *, scored: bool, present: bool = True) -> Fit:
    """What fits of the recipe's models on its device. ``present`` refuses a device that is not there."""
    device = recipe.device or "cpu"
    dtype = dtype_on(device, recipe.dtype or "auto", present=present)
    kinds: dict[str, Any] = {
        "dtype": dtype,
        "kv_dtype": kv_dtype_on(device, dtype, recipe.kv_cache_dtype or "auto"),
        "rows": (recipe.batch_size or ROWS) + FILL_TOKENS,
    }
    models = [("policy", recipe.policy, recipe.quantization, True)]
    if scored and recipe.prm not in (None, SHARED) and not str(recipe.prm).startswith(OWN):
        models += verifiers_of(str(recipe.prm), recipe.prm_family, recipe.prm_quantization)
    found = []
    for role, name, quantization, head in models:
        spec, path = read_spec(name)
        found.append(
            footprint(spec, role=role, name=name, quantization=quantization, path=path, head=head, **kinds)
        )
    return plan_memory(device, tuple(found), kv_gib=recipe.kv_memory_gb)


def verifiers_of(
    name: str, prm_family: str | None = None, how: Quantization | None = None
) -> list[tuple[str, str, Quantization | None, bool]]:
    """Role, name, quantization and whether it makes logits, of a verifier's model and of what that needs.

    Raises:
        WcseError: there is no such model, or its family is unknown.
    """
    config = read_config(name)
    family = family_named(prm_family) if prm_family else family_of(name, config)
    models = [("prm", name, how, family.head == "ratio" or family.writes > 0)]
    reference = (config.get("wcse") or {}).get("reference", family.reference)
    if family.head == "ratio" and isinstance(reference, str):
        models.append(("prm's reference", reference, how, True))
    return models


def solve(
    recipe: Recipe,
    problems: Sequence[Problem],
    on_record: Callable[[SolveRecord], None],
    on_progress: Callable[[Progress], None] = lambda _: None,
    skip: Iterable[tuple[str, str]] = (),
    models: Models | None = None,
) -> None:
    """Solve every problem by every strategy of the recipe and hand over each record as it is made.

    Args:
        recipe: what to run.
        problems: what to solve; ids must be distinct.
        on_record: hears each finished (problem, strategy).
        on_progress: hears how far the run is, after each step of the engine.
        skip: (problem id, strategy) pairs that are done already.
        models: loaded ones, to be used by several calls; they are loaded here where None.

    Raises:
        WcseError: a model cannot be loaded, a strategy lacks a verifier, a prompt is too long.
    """
    passes = plan(recipe)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    done = set(skip)
    models = models or Models.load(recipe)
    policy, engine, scorer = models.policy, models.engine, models.scorer
    default_agg = scorer.default_agg if scorer else "last"
    bounded = scorer.bounded if scorer else True
    for part in passes:
        _check_range(recipe, part, default_agg, bounded)
    meter = _Meter(engine, on_progress, total=len(problems) * len(recipe.strategies), skipped=len(done))
    with MathPool() as judge:
        for part in passes:
            config = part.config.with_default(default_agg)
            if recipe.strategy_policy and part.strategy is STRATEGIES["auto"]:
                config = _with_choices(recipe, config)
            todo = [p for p in problems if any((p.id, name) not in done for name in part.members)]
            by_id = {p.id: p for p in todo}
            charges = _charges(recipe, policy, scorer if part.scored else None)
            driver = Driver(
                engine,
                scorer if part.scored else None,
                params=_params(recipe, policy),
                rule=StepRule(recipe.delimiter, recipe.max_step_tokens),
                classify=lambda nodes: classify(nodes, judge),
                on_step=meter.tell,
            )
            for outcome in driver.run(_jobs(todo, policy, recipe, part.strategy, config, charges)):
                problem = by_id[outcome.job.name]
                aggregation = config.aggregation if part.scored else None
                graded = Graded.of(problem, outcome.solutions, aggregation, judge, bounded=bounded)
                for name in part.members:
                    if (problem.id, name) not in done:
                        on_record(_record(outcome, graded, name))
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
    sampled: dict[tuple[SearchConfig, bool], list[str]] = {}
    passes: list[_Pass] = []
    for name in recipe.strategies:
        spec = parse_strategy(name)
        strategy, config = STRATEGIES[spec.name], spec.config(recipe.search_config)
        if strategy.run in (best_of_n, majority):
            # Under a budget a sample set that nobody scores affords more samples: it is one of its own.
            alone = recipe.budget is not None and not strategy.needs_prm
            sampled.setdefault((config, alone), []).append(name)
        else:
            passes.append(_Pass((name,), strategy, config, strategy.needs_prm))
    return [_samples(names, config) for (config, _), names in sampled.items()] + passes


def _samples(names: Sequence[str], config: SearchConfig) -> _Pass:
    """One sample set for all of these; scored if any of them wants scores."""
    entries = [get_strategy(name)[1] for name in names]
    scored = [entry for entry in entries if entry.needs_prm]
    return _Pass(tuple(names), (scored or entries)[0], config, bool(scored))


def _check_range(recipe: Recipe, part: _Pass, default_agg: str, bounded: bool) -> None:
    """Refuse a product or a ratio of scores that are no probabilities. Votes take their ranks instead."""
    if bounded or not part.scored:
        return
    if part.config.with_default(default_agg).aggregation == "prod":
        raise WcseError(
            f"agg_strategy='prod': the scores of prm={recipe.prm!r} are unbounded, so their product means nothing; "
            "use last, min or mean"
        )
    if part.strategy is STRATEGIES["particle_filter"]:
        raise WcseError(
            f"strategy {part.members[0]}: the scores of prm={recipe.prm!r} are unbounded and cannot be weights; "
            "use rebase or beam_search, or a verifier that returns probabilities"
        )


def _params(recipe: Recipe, policy: LoadedModel) -> SamplingParams:
    return SamplingParams(
        stop=stop_strings(policy.tokenizer, recipe.shots),
        temperature=recipe.temperature,
        top_p=recipe.top_p,
        top_k=recipe.top_k,
        min_p=recipe.min_p,
        max_tokens=recipe.max_tokens,
    )


def _with_choices(recipe: Recipe, config: SearchConfig) -> SearchConfig:
    """The config with the table of the policy file, which must be one for the recipe's models."""
    assert recipe.strategy_policy is not None
    models = {"policy": recipe.policy, "prm": recipe.prm}
    policy = read_policy(recipe.strategy_policy, names=models, inputs=fingerprint_models(models))
    return replace(config, choices=policy.choices(config.n, config))


def fingerprint_inputs(recipe: Recipe) -> dict[str, str]:
    """Fingerprints of the recipe's models and examples on this machine, keys "policy", "prm" and "few_shot".

    Raises:
        WcseError: one of them cannot be found.
    """
    examples = {"few_shot": fingerprint_path(shots_path(recipe.few_shot))} if recipe.few_shot else {}
    return examples | fingerprint_models({"policy": recipe.policy, "prm": recipe.prm})


def _charges(recipe: Recipe, policy: LoadedModel, scorer: Scorer | None) -> Callable[[], Account]:
    """Makes the account of one problem."""
    budget = Budget.parse(recipe.budget) if recipe.budget else None
    if budget is not None and isinstance(scorer, GenerativePRM) and budget.by_token:
        raise WcseError(
            f"budget={recipe.budget!r}: prm={recipe.prm!r} writes verdicts whose length nobody knows before; "
            "limit seconds or solutions, or take a verifier that reads only"
        )
    cost = ModelCost.of(policy.spec)
    return lambda: Account(budget, cost, scorer.cost if scorer else None, scored=scorer is not None)


def _jobs(
    problems: Sequence[Problem],
    policy: LoadedModel,
    recipe: Recipe,
    strategy: Strategy,
    config: SearchConfig,
    charges: Callable[[], Account],
) -> Iterator[Job]:
    strategy.check(config)

    def search(root: Node) -> Search:
        return strategy.run(root, config)

    shots = recipe.shots
    for problem in problems:
        ids = render_problem(policy.tokenizer, problem.prompt, recipe.system_prompt, shots)
        yield Job(problem.id, ids, problem.prompt, search, recipe.seed, charges())


def _record(outcome: Outcome, graded: Graded, name: str) -> SolveRecord:
    needs_prm = get_strategy(name)[1].needs_prm
    return graded.record(
        name,
        selector=outcome.selector,
        nodes=_nodes(outcome),
        ledger=outcome.policy + outcome.verifier if needs_prm else outcome.policy,
        prompt_tokens=len(outcome.root.token_ids),
    )


def _nodes(outcome: Outcome) -> tuple[NodeRecord, ...]:
    """Every node ever written, parents before children, in path order."""
    return tuple(
        NodeRecord(
            path,
            path[:-1] or None,
            trace.token_ids,
            trace.text,
            str(trace.finish),
            trace.logprob,
            trace.score,
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
