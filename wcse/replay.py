"""Replay: what a recorded run would have answered under another N, selector, aggregation or strategy.

Needs no model. A strategy is a pure function of the tree that it sees, and a step depends on nothing but its
path; so any strategy can be run again on a recorded tree, exactly, as long as it asks for recorded steps only.
What it asks beyond them is refused. ``reselect`` only chooses anew among the solutions that were returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from wcse.answers import Judge
from wcse.budget import Budget
from wcse.data.grading import Graded, classify, verdict
from wcse.data.record import NodeRecord, Path, Selection, SolveRecord
from wcse.ledger import Ledger
from wcse.rng import uniforms
from wcse.search import STRATEGIES, SearchConfig, Spec, parse_strategy
from wcse.types import (
    LOOKAHEAD,
    Chosen,
    Classes,
    Draw,
    Expand,
    Finish,
    Node,
    Parallel,
    Request,
    Score,
    WcseError,
)
from wcse.votes import SELECTORS, Ballot, aggregate, by_rank


def base_config(recipe: Mapping[str, Any]) -> SearchConfig:
    """The search settings of a run from its journal's header (``Header.recipe``)."""
    names = ("n", "beam_width", "num_iterations", "agg_strategy")
    config = SearchConfig(**{name: recipe[name] for name in names if name in recipe})
    limit = Budget.parse(recipe["budget"]).solutions if recipe.get("budget") else None
    return config if limit is None else replace(config, n=min(config.n, limit))


def reselect(record: SolveRecord, agg_strategy: str) -> SolveRecord:
    """The record with its solutions scored by another aggregation and every selector's choice among them.

    The tree is the one that the recorded aggregation grew; for a sample set that makes no difference.

    Raises:
        WcseError: the run recorded no scores, or ``agg_strategy`` is unknown.
    """
    if record.agg_strategy is None:
        raise WcseError(
            f"replay: strategy {record.strategy} recorded no step scores; aggregation {agg_strategy} needs "
            "a run of a strategy with a verifier"
        )

    if agg_strategy == "prod" and not _bounded(record):
        raise WcseError(
            f"replay: agg_strategy='prod' means nothing for the unbounded scores of {record.strategy}"
        )

    def score(path: Path) -> float:
        steps = [step for step in record.steps(path) if step.score is not None or step.text.strip()]
        # An unreadable score is stored as null; it is not a number then, too.
        return aggregate([float("nan") if s.score is None else s.score for s in steps], agg_strategy)

    solutions = tuple(replace(s, agg=score(s.path) if record.complete(s) else None) for s in record.solutions)
    changed = replace(record, solutions=solutions, agg_strategy=agg_strategy)
    votes = changed.ballots()
    if not _bounded(record):
        votes = by_rank(votes)
        ranks = zip(solutions, votes, strict=True)
        changed = replace(changed, solutions=tuple(replace(s, agg=vote.score) for s, vote in ranks))
    selectors = {name: _choice(changed, votes, name) for name in record.selectors}
    final = selectors.get(record.selector, Selection(None, record.answer, record.correct))
    return replace(
        changed,
        selectors=selectors,
        answer=final.answer,
        correct=final.correct,
        verdict=verdict(record.problem, final),
    )


def _bounded(record: SolveRecord) -> bool:
    """Whether the verifier's scores may be probabilities; those of others vote by rank."""
    return all(node.score is None or 0.0 <= node.score <= 1.0 for node in record.nodes)


def _choice(record: SolveRecord, votes: Sequence[Ballot], selector: str) -> Selection:
    pick = SELECTORS[selector](votes)
    if pick is None:
        return Selection(None, None, None if record.problem.answer is None else False)
    return Selection(pick, record.solutions[pick].answer, record.solutions[pick].correct)


def rerun(
    record: SolveRecord,
    strategy: str,
    recipe: Mapping[str, Any],
    *,
    selector: str | None = None,
    judge: Judge | None = None,
) -> SolveRecord:
    """The record that ``strategy`` would have made, grown from the recorded tree alone.

    Args:
        record: any record of the same problem whose tree holds what the strategy will ask for: best-of-N at a
            smaller N, speculative rejection or an adaptive vote from a sample set; DVTS at fewer subtrees.
        strategy: as in a recipe, say ``best_of_n(n=4)``.
        recipe: the run's recipe (``Header.recipe``): its seed and search settings hold here, too.
        selector: picks the answer instead of the strategy's own.

    Returns:
        A record whose ledger counts each token once, as if it had run alone with an ideal cache.

    Raises:
        WcseError: the strategy asks for steps or scores that the run did not record.
    """
    spec = parse_strategy(strategy)
    entry = STRATEGIES[spec.name]
    agg_strategy = spec.options.get("agg_strategy", record.agg_strategy)
    if entry.needs_prm and agg_strategy is None:
        raise WcseError(
            f"replay: strategy {spec} needs step scores, and {record.strategy} recorded none; replay it from a "
            "run of a strategy with a verifier"
        )
    config = replace(spec.config(base_config(recipe)), agg_strategy=agg_strategy)
    entry.check(config)
    tree = _Tree(record, spec, recipe.get("seed", 0), judge)
    result = tree.run(entry.run(tree.root, config))
    solutions = result.solutions if isinstance(result, Chosen) else result
    aggregation = agg_strategy if entry.needs_prm else None
    graded = Graded.of(record.problem, solutions, aggregation, judge, bounded=_bounded(record))
    return graded.record(
        str(spec),
        selector=result.selector if isinstance(result, Chosen) else selector,
        nodes=tuple(tree.seen[path] for path in sorted(tree.seen)),
        ledger=_ledger(record, tree.seen.values(), scored=entry.needs_prm),
        prompt_tokens=record.prompt_tokens,
    )


def _ledger(record: SolveRecord, nodes: Iterable[NodeRecord], *, scored: bool) -> Ledger:
    written = sum(len(node.token_ids) for node in nodes)
    whole = record.prompt_tokens + sum(len(node.token_ids) for node in record.nodes)
    # A head on the policy's own states reads nothing, a verifier of two models each token twice.
    times = record.ledger.prm_computed / whole if scored and whole else 0.0
    return Ledger(
        policy_computed=record.prompt_tokens + written,
        policy_sampled=written,
        prm_computed=round(times * (record.prompt_tokens + written)),
    )


@dataclass
class _Tree:
    """A recorded tree as a policy and a verifier: it answers the requests of a strategy."""

    record: SolveRecord
    spec: Spec
    seed: int
    judge: Judge | None
    seen: dict[Path, NodeRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = Node(None, (), ())

    def run(self, search: Any) -> list[Node] | Chosen:
        try:
            request = next(search)
            while True:
                request = search.send(self.answer(request))
        except StopIteration as stop:
            result: list[Node] | Chosen = stop.value
            return result

    def answer(self, request: Request) -> Any:
        match request:
            case Parallel(requests):
                return [self.answer(part) for part in requests]
            case Score(nodes):
                return [node.score for node in nodes]
            case Classes(nodes):
                return classify(nodes, self.judge)
            case Draw(label, n):
                return uniforms(self.seed, self.record.problem.id, label, n)
            case Expand():
                return [self._reach(request, request.first + i) for i in range(request.n)]

    def _reach(self, request: Expand, index: int) -> Node:
        node = self._step(request.node, index, request)
        while request.to_end and node.live:
            node = self._step(node, 0, request)
        return node

    def _step(self, parent: Node, index: int, request: Expand) -> Node:
        path = (*parent.path, index)
        stored = self.record.by_path.get(path)
        greedy = self.record.strategy.partition("(")[0] == "greedy" or LOOKAHEAD in path
        if stored is None or greedy != request.greedy:
            raise WcseError(
                f"replay: {self.spec} asks for step {'.'.join(map(str, path))} of problem "
                f"{self.record.problem.id!r}, which {self.record.strategy} did not record; "
                "lower n, or run it with a model"
            )
        if stored.finish == Finish.BUDGET and str(self.spec) != self.record.strategy:
            raise WcseError(
                f"replay: step {'.'.join(map(str, path))} of problem {self.record.problem.id!r} was cut by the budget "
                f"of {self.record.strategy}, and {self.spec} would have had more or less of it; run it with a model"
            )
        self.seen[path] = stored
        score = stored.score
        if score is None and self.record.agg_strategy is not None and stored.text.strip():
            score = float("nan")  # it was scored, and the score could not be read
        return Node(parent, path, stored.token_ids, stored.text, Finish(stored.finish), (), score)
