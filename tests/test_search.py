"""The laws of the strategies, on a fake policy: budgets, order, isolation, purity (T13 to T17, T19)."""

import dataclasses
import gc
import math
import weakref

import pytest
from fakes import FakePolicy, ToyPRM, make_path, make_root, run
from hypothesis import given, settings
from hypothesis import strategies as st

from wcse.search import ALIASES, STRATEGIES, SearchConfig, Strategy, get_strategy
from wcse.search.ranking import distinct, ranked, solutions
from wcse.types import Expand, Finish, Node, Parallel, WcseError
from wcse.votes import SELECTORS, aggregate

TREE = ("beam_search", "dvts")


def search(name, policy, order=None, root=None, **config):
    config = SearchConfig(**{"agg_strategy": "last", **config})
    return run(STRATEGIES[name].run(root or make_root(), config), policy, order)


def paths(nodes):
    return [node.path for node in nodes]


def shape(**more):
    return {
        "name": st.sampled_from(TREE),
        "n": st.sampled_from([1, 3, 4, 5, 16, 64]),
        "width": st.sampled_from([1, 3, 4]),
        "seed": st.integers(0, 10**6),
        "agg": st.sampled_from(["last", "min", "prod", "mean"]),
        **more,
    }


# --- budgets


@settings(max_examples=60, deadline=None)
@given(**shape(depth=st.sampled_from([1, 2, 5, 40]), eos=st.sampled_from([0.05, 0.15, 0.5])))
def test_budget(name, n, width, seed, agg, depth, eos):
    policy = FakePolicy(seed, eos=eos, cut=0.1)
    leaves = search(name, policy, n=n, beam_width=width, num_iterations=depth, agg_strategy=agg)
    assert len(leaves) <= n
    assert sum(policy.asked) <= n * depth
    assert len(set(paths(leaves))) == len(leaves)
    assert paths(leaves) == sorted(paths(leaves))
    assert not any(leaf.live for leaf in leaves)


@settings(max_examples=40, deadline=None)
@given(**shape(depth=st.sampled_from([1, 3, 40])))
def test_exactly_n_when_nothing_is_cut(name, n, width, seed, agg, depth):
    leaves = search(
        name, FakePolicy(seed, max_steps=10**6), n=n, beam_width=width, num_iterations=depth, agg_strategy=agg
    )
    assert all(leaf.complete for leaf in leaves)
    assert len(leaves) == n if name == "beam_search" else 1 <= len(leaves) <= n


def test_beam_costs_about_as_many_steps_as_best_of_n():
    """search-and-learn refills to n until nothing is live: 640 steps for n = 16 on such a policy."""

    def mean_steps(name):
        policies = [FakePolicy(seed, max_steps=10**6) for seed in range(100)]
        for policy in policies:
            search(name, policy, n=16)
        return sum(len(policy.tree) for policy in policies) / len(policies)

    assert mean_steps("beam_search") == pytest.approx(mean_steps("best_of_n"), rel=0.1)
    assert 95 < mean_steps("beam_search") < 115


@pytest.mark.parametrize("name", ["majority", "best_of_n", "weighted_best_of_n"])
@pytest.mark.parametrize("n", [1, 5, 16])
def test_independent_samples(name, n):
    policy = FakePolicy(3, cut=0.1)
    leaves = search(name, policy, n=n)
    assert [path[0] for path in paths(leaves)] == list(range(n))
    assert policy.asked == [n]
    assert any(not leaf.complete for leaf in leaves) or n < 16  # the truncated ones are returned, too
    scored = [score is not None for _, _, score in policy.tree.values()]
    assert all(scored) if STRATEGIES[name].needs_prm else not any(scored)


def test_greedy_is_one_greedy_solution_without_scores():
    policy = FakePolicy(3)
    (leaf,) = search("greedy", policy, n=16)
    assert leaf.path == (0,) * len(leaf.path)
    assert all(score is None for _, _, score in policy.tree.values())
    assert next(STRATEGIES["greedy"].run(make_root(), SearchConfig())).greedy


@pytest.mark.parametrize("name", ["majority", "best_of_n"])
def test_first_samples_do_not_depend_on_n(name):
    small, large = (search(name, FakePolicy(5), n=n) for n in (4, 16))
    assert [leaf.completion for leaf in small] == [leaf.completion for leaf in large[:4]]


# --- purity


@settings(max_examples=40, deadline=None)
@given(**shape(name=st.sampled_from(sorted(set(STRATEGIES) - {"auto"})), order=st.integers(0, 100)))
def test_order_of_execution_does_not_matter(name, n, width, seed, agg, order):
    straight, shuffled = FakePolicy(seed, cut=0.05), FakePolicy(seed, cut=0.05)
    config = {"n": n, "beam_width": width, "agg_strategy": agg}
    assert paths(search(name, straight, **config)) == paths(search(name, shuffled, order, **config))
    assert straight.tree == shuffled.tree
    assert straight.asked != [] and sum(straight.asked) == sum(shuffled.asked)


@pytest.mark.parametrize("name", TREE)
def test_pruned_nodes_are_let_go(name):
    """A strategy that waits for its next results holds its frontier and its solutions, nothing else."""
    policy = FakePolicy(1, eos=0.05)
    strategy = STRATEGIES[name].run(make_root(), SearchConfig(n=16, agg_strategy="last"))
    request, alive = next(strategy), weakref.WeakSet()
    for _ in range(4):
        result = policy.answer(request)
        alive.update(child for group in result for child in group)
        frontier = None
        request = strategy.send(result)
        del result
        gc.collect()
        frontier = {part.node.path for part in request.requests}
        kept = {node.path for node in alive}
        held = frontier | {node.path for node in alive if not node.live}
        assert frontier and all(any(leaf[: len(path)] == path for leaf in held) for path in kept)


def test_aggregation_must_be_chosen():
    with pytest.raises(WcseError, match="agg_strategy"):
        search("beam_search", FakePolicy(), agg_strategy=None, n=4)


# --- rules of beam search


def script(finishes, scores=(), texts=(), n=4, width=4, depth=40):
    """Runs one round of beam search on scripted children; gives the next request, or the returned list."""
    root = make_root()
    strategy = STRATEGIES["beam_search"].run(
        root, SearchConfig(n=n, beam_width=width, num_iterations=depth, agg_strategy="last")
    )
    request = next(strategy)
    assert request == Parallel((Expand(root, n, to_end=depth == 1),))
    children = []
    for i, finish in enumerate(finishes):
        text = texts[i] if texts else f"{i}"
        score = scores[i] if scores else 0.5
        children.append(Node(root, (i,), tuple(text.encode()), text, finish, score=score))
    try:
        parts = strategy.send([children]).requests
        return [(part.node.path, part.n, part.first, part.to_end) for part in parts]
    except StopIteration as stop:
        return paths(stop.value)


D, E, CAP = Finish.DELIM, Finish.EOS, Finish.PATH_CAP


def test_best_by_score_then_path():
    assert script([D] * 4, [0.2, 0.9, 0.9, 0.1], n=4, width=4) == [((1,), 4, 0, False)]
    assert script([D] * 4, [0.2, 0.9, 0.9, 0.1], n=4, width=2) == [((1,), 2, 0, False), ((2,), 2, 0, False)]


def test_nan_never_wins():
    assert script([D] * 4, [math.nan, 0.1, math.nan, 0.0]) == [((1,), 4, 0, False)]
    assert script([D] * 2, [math.nan, -math.inf], n=2, width=1) == [((0,), 1, 0, False), ((1,), 1, 0, False)]


def test_completed_solution_keeps_its_slot():
    assert script([E, D, D, D], [0.9, 0.1, 0.2, 0.3], width=2) == [((3,), 2, 0, False), ((2,), 1, 0, False)]
    assert script([E, E, E, E]) == [(0,), (1,), (2,), (3,)]


def test_equal_completed_solutions_are_separate_votes():
    assert script([E, E, E, E], texts=["a"] * 4) == [(0,), (1,), (2,), (3,)]


def test_equal_live_siblings_are_filtered():
    assert script([D, D, D, D], [0.1, 0.9, 0.9, 0.2], texts=["a", "b", "b", "c"], width=2) == [
        ((1,), 2, 0, False),
        ((3,), 2, 0, False),
    ]


def test_truncated_solutions_take_no_slot_and_fill_the_answer():
    assert script([CAP, D, CAP, E], [0.9, 0.1, 0.9, 0.9], width=3) == [((1,), 3, 0, False)]
    assert script([CAP, CAP, E, CAP]) == [(0,), (1,), (2,), (3,)]
    assert script([CAP, Finish.ERROR, Finish.CTX, Finish.BUDGET], [None] * 4) == [(0,), (1,), (2,), (3,)]


def test_last_round_writes_to_the_end():
    assert script([D] * 4, depth=2) == [((0,), 4, 0, True)]
    assert script([E] * 4, depth=1) == [(0,), (1,), (2,), (3,)]


def test_slots_are_spread_evenly():
    assert [part[1] for part in script([D] * 16, n=16, width=4)] == [4, 4, 4, 4]
    assert [part[1] for part in script([E] * 3 + [D] * 13, n=16, width=4)] == [4, 3, 3, 3]


def test_best_completed_is_returned_though_its_family_was_pruned():
    class Falling(ToyPRM):
        """The first solution to end scores highest of all; what lives on next to it scores lowest."""

        def score(self, node):
            return 0.99 if node.complete and len(node.path) == 2 else super().score(node) * 0.5

    for seed in range(20):
        policy = FakePolicy(seed, eos=0.2, prm=Falling())
        leaves = search("beam_search", policy, n=8, beam_width=4)
        best = max((item for item in policy.tree.items() if item[1][0] == "eos"), key=lambda item: item[1][2])
        assert best[0] in paths(leaves)


# --- rules of DVTS


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.sampled_from([1, 3, 4]))
def test_subtrees_are_isolated(seed, width):
    """A run with fewer subtrees is the first subtrees of a larger run, steps and answers alike."""
    small, large = FakePolicy(seed, cut=0.05), FakePolicy(seed, cut=0.05)
    few = search("dvts", small, n=2 * width, beam_width=width)
    many = search("dvts", large, n=5 * width, beam_width=width)
    assert paths(few) == [path for path in paths(many) if path[0] < 2 * width]
    assert small.tree == {path: step for path, step in large.tree.items() if path[0] < 2 * width}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.sampled_from([4, 5, 16]), width=st.sampled_from([3, 4]))
def test_subtree_returns_its_best_and_no_more_than_its_width(seed, n, width):
    policy = FakePolicy(seed)
    leaves = search("dvts", policy, n=n, beam_width=width)
    count = math.ceil(n / width)
    for tree in range(count):
        own = range(tree * n // count, (tree + 1) * n // count)
        ended = [path for path, step in policy.tree.items() if step[0] == "eos" and path[0] in own]
        ended.sort(key=lambda path: (-policy.tree[path][2], path))
        assert [path for path in paths(leaves) if path[0] in own] == sorted(ended[: len(own)])


def test_subtree_stops_when_its_best_is_complete():
    root = make_root()
    strategy = STRATEGIES["dvts"].run(root, SearchConfig(n=4, beam_width=2, agg_strategy="last"))
    assert next(strategy) == Parallel((Expand(root, 2, first=0), Expand(root, 2, first=2)))
    first = [Node(root, (i,), (i,), "", f, score=s) for i, f, s in ((0, E, 0.9), (1, D, 0.8))]
    second = [Node(root, (i,), (i,), "", f, score=s) for i, f, s in ((2, E, 0.7), (3, D, 0.8))]
    assert strategy.send([first, second]) == Parallel((Expand(second[1], 2),))
    third = [Node(second[1], (3, i), (i,), "", f, score=s) for i, f, s in ((0, CAP, 0.1), (1, E, 0.5))]
    with pytest.raises(StopIteration) as stop:
        strategy.send([third])
    assert paths(stop.value.value) == [(0,), (2,), (3, 1)]


# --- pieces


def test_ranked_uses_the_whole_path():
    nodes = [
        make_path(0.1, 0.9, path=(0, 0)),
        make_path(0.5, 0.5, path=(1, 0)),
        make_path(0.5, 0.5, path=(0, 1)),
    ]
    assert paths(ranked(nodes, "last")) == [(0, 0), (0, 1), (1, 0)]
    assert paths(ranked(nodes, "min")) == [(0, 1), (1, 0), (0, 0)]
    with pytest.raises(WcseError, match="not every step was scored"):
        ranked([Node(make_root(), (0,), (1,), "x", D)], "last")


def test_distinct_compares_whole_texts():
    root = make_root()
    left, right = (Node(root, (i,), (i,), "", D) for i in (0, 1))
    cousins = [Node(parent, (*parent.path, 0), (7,), "", D) for parent in (left, right)]
    assert distinct(cousins) == cousins
    twins = [Node(left, (0, i), (7,), "", D) for i in (1, 2)]
    assert distinct(twins) == twins[:1]
    split = Node(Node(root, (2,), (0, 7), "", D), (2, 0), (8,), "", D)  # the same ids, cut elsewhere
    whole = Node(left, (0, 3), (7, 8), "", D)
    assert distinct([split, whole]) == [split]


def test_solutions_prefers_complete_ones():
    done = [make_path(0.5, path=(i,)) for i in (3, 1)]
    cut = [make_path(0.5, path=(i,), finish=CAP) for i in (2, 0)]
    assert paths(solutions(done, cut, 3)) == [(0,), (1,), (3,)]
    assert paths(solutions(done, cut, 1)) == [(1,)]


# --- config and registry


@pytest.mark.parametrize("field", ["n", "beam_width", "num_iterations"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "4", None])
def test_config_refuses(field, value):
    with pytest.raises(WcseError, match=f"{field}="):
        SearchConfig(**{field: value})


def test_config_aggregation():
    with pytest.raises(WcseError, match=r"agg_strategy='sum' .*last, min, prod, mean"):
        SearchConfig(agg_strategy="sum")
    assert SearchConfig().with_default("prod").aggregation == "prod"
    assert SearchConfig(agg_strategy="min").with_default("prod").aggregation == "min"
    with pytest.raises(TypeError):
        SearchConfig(beam=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        SearchConfig().n = 2


@pytest.mark.parametrize("name", TREE)
@pytest.mark.parametrize(("n", "fix"), [(18, "n=16 or 20"), (3, "n=4,")])
def test_budget_must_be_divisible(name, n, fix):
    with pytest.raises(WcseError, match=f"n={n} is not divisible by beam_width=4; use {fix}"):
        STRATEGIES[name].check(SearchConfig(n=n, beam_width=4))
    STRATEGIES[name].check(SearchConfig(n=16, beam_width=4))


def test_registry():
    for entry in STRATEGIES.values():
        assert entry.selector in SELECTORS
    for name in ("greedy", "majority", "best_of_n", "weighted_best_of_n"):
        STRATEGIES[name].check(SearchConfig(n=5, beam_width=4))
    assert get_strategy("beam") == ("beam_search", STRATEGIES["beam_search"])
    assert set(ALIASES.values()) <= set(STRATEGIES)
    with pytest.raises(
        WcseError, match=r"strategy='bream' is unknown; use one of greedy, majority, best_of_n"
    ):
        get_strategy("bream")


def test_adding_a_strategy_takes_a_function_and_an_entry():
    def until_good(root, config):
        found = []
        while len(found) < config.n:
            found += yield Expand(root, min(2, config.n - len(found)), first=len(found), to_end=True)
            if any(node.complete and aggregate(node.scores, config.aggregation) > 0.9 for node in found):
                break
        return found

    mine = Strategy(run=until_good, selector="argmax", needs_prm=True)
    lengths = {
        len(run(mine.run(make_root(), SearchConfig(n=9, agg_strategy="last")), FakePolicy(seed)))
        for seed in range(30)
    }
    assert lengths <= {2, 4, 6, 8, 9} and len(lengths) > 2
