"""The best of a group: the same whatever the order of scores and whoever enters them; the beaten are let go at once."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random
from weakref import WeakSet

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reward import RULE, policy  # noqa: F401 - a fixture

from wcse.engine.driver import Done, Driver, Job
from wcse.engine.engine import Engine
from wcse.engine.growth import Root
from wcse.engine.params import SamplingParams
from wcse.models.load import LoadedModel
from wcse.reward.head import Head
from wcse.reward.load import load_shared_head
from wcse.reward.scorer import SharedHead
from wcse.search import STRATEGIES, SearchConfig
from wcse.search.best import Best
from wcse.search.ranking import distinct, ranked
from wcse.types import LIVE, Expand, Finish, Node, Search
from wcse.votes import AGGREGATIONS

SCORES = st.sampled_from([0.0, 0.25, 0.5, 0.9, 1e-30, math.nan])
IDENTITY = Head([(torch.ones(1, 1), None)], bounded=False)


@st.composite
def candidates(draw: st.DrawFn) -> list[Node]:
    """Children of three scored nodes; siblings of equal text have equal scores."""
    worth = draw(st.lists(SCORES, min_size=5, max_size=5))
    root = Node(None, (), ())
    beam = [Node(root, (i,), (i,), "s", Finish.DELIM, score=draw(SCORES)) for i in range(3)]
    words = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=12))
    return [
        Node(beam[b], (b, i), (b, word), f"{b} {word}", Finish.DELIM, score=worth[word])
        for i, (b, word) in enumerate(words)
    ]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    candidates(), st.integers(0, 5), st.sampled_from(list(AGGREGATIONS)), st.randoms(use_true_random=False)
)
def test_any_order_and_any_way_to_enter(nodes: list[Node], k: int, how: str, random: Random) -> None:
    expected = [node.path for node in ranked(distinct(sorted(nodes, key=lambda n: n.path)), how)[:k]]
    one_by_one, natively, mixed = Best(k, how), Best(k, how), Best(k, how)
    order = random.sample(nodes, len(nodes))
    for node in order * 2:
        one_by_one.enter(node)
    for best in (natively, mixed):
        todo = list(order)
        while todo:
            part, todo = todo[:3], todo[3:]
            if best is mixed and random.random() < 0.5:
                for node in part:
                    best.enter(node)
                continue
            for node in part:
                node.contest, node.summed = best, None
            scores = torch.tensor([[node.score] for node in part])
            IDENTITY.score_nodes(scores, part, range(len(part)))
            assert all(node.contest is None for node in part)
    assert [[node.path for node in best.nodes] for best in (one_by_one, natively, mixed)] == [expected] * 3


def test_what_is_beaten_is_pruned_while_its_siblings_are_written(policy: LoadedModel) -> None:  # noqa: F811
    engine = Engine(policy, max_rows=32)
    scorer, written = load_shared_head(engine), WeakSet[Node]()
    best, most = Best(2, "last"), 0

    class Watched(SharedHead):
        """Counts the live children whenever one is scored."""

        def submit(self, root: Root, problem: str, node: Node, done: Done) -> None:
            nonlocal most
            written.add(node)
            most = max(most, len(written))
            super().submit(root, problem, node, done)

    def search(root: Node) -> Search:
        ended = yield Expand(root, 24, best=best)
        assert not any(node.live for node in ended)
        seen.extend(ended)
        return best.nodes

    seen: list[Node] = []
    watched = Watched(engine, scorer.head)
    driver = Driver(engine, watched, params=SamplingParams(max_tokens=40), rule=RULE)
    (outcome,) = driver.run([Job("p", policy.tokenizer.encode("Anna has"), "Anna has", search, seed=3)])
    scores = {path: trace.score for path, trace in outcome.nodes.items() if trace.finish in LIVE}
    texts = {outcome.nodes[path].token_ids: path for path in sorted(scores, reverse=True)}
    top = sorted(texts.values(), key=lambda path: (-(scores[path] or 0.0), path))[:2]
    assert [node.path for node in outcome.solutions] == top
    assert len(outcome.nodes) == 24
    assert most - len(seen) < len(scores) - 2  # never all of them at once


def test_a_strategy_without_early_entries_grows_the_same_tree(policy: LoadedModel) -> None:  # noqa: F811
    trees = []
    for early in (True, False):
        engine = Engine(policy, max_rows=32)
        driver = Driver(engine, load_shared_head(engine), params=SamplingParams(max_tokens=40), rule=RULE)
        if not early:
            expand = driver._expand
            driver._expand = lambda run, request, *rest, expand=expand: expand(  # type: ignore[method-assign,misc]
                run, replace(request, best=None), *rest
            )
        for name in ("beam_search", "dvts"):
            config = SearchConfig(n=8, beam_width=2, agg_strategy="min")
            job = Job(
                "p",
                policy.tokenizer.encode("Anna has"),
                "Anna has",
                lambda root, name=name, config=config: STRATEGIES[name].run(root, config),
                seed=3,
            )
            (outcome,) = driver.run([job])
            trees.append({path: (t.token_ids, t.score) for path, t in outcome.nodes.items()})
    assert trees[:2] == trees[2:]
