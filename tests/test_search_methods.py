"""The newer strategies: their papers' rules, golden numbers, and agreement with a restatement (T13-T23)."""

import itertools
import math
import random
from collections import Counter

import pytest
import restated
from fakes import FakePolicy, ToyPRM, make_path, make_root, run
from hypothesis import given, settings
from hypothesis import strategies as st
from restated import World

from wcse.search import STRATEGIES, SearchConfig, parse_strategy, split_specs
from wcse.search.adaptive_vote import lead_holds, stopping_point
from wcse.search.particle_filter import effective_size, increment, multinomial, rescaled, systematic
from wcse.search.rebase import shares
from wcse.types import LOOKAHEAD, Draw, Expand, Finish, Node, Parallel, WcseError

NEW = (
    "lookahead_search",
    "rebase",
    "particle_filter",
    "speculative_rejection",
    "adaptive_vote",
    "mcts",
)
SEEDS = st.integers(0, 10**6)
AGGS = st.sampled_from(["last", "min", "prod", "mean"])


def search(spec, policy, order=None, **config):
    spec = parse_strategy(spec)
    base = SearchConfig(**{"agg_strategy": "last", **config})
    return run(STRATEGIES[spec.name].run(make_root(), spec.config(base)), policy, order)


def paths(nodes):
    return [node.path for node in nodes]


# --- laws of all


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(NEW), SEEDS, st.sampled_from([1, 4, 16, 24]), AGGS, st.sampled_from([1, 2, 5, 40]))
def test_budget_and_purity(name, seed, n, agg, depth):
    policies = [FakePolicy(seed, eos=0.2, cut=0.1, prm=ToyPRM(nan=0.05)) for _ in range(2)]
    config = {"n": n, "agg_strategy": agg, "num_iterations": depth}
    leaves = search(name, policies[0], **config)
    assert paths(leaves) == paths(search(name, policies[1], order=seed, **config))
    assert policies[0].tree == policies[1].tree
    assert len(leaves) <= n
    assert not any(leaf.live for leaf in leaves)
    assert paths(leaves) == sorted(paths(leaves))
    factor = 2 if name == "lookahead_search" else 1
    assert sum(policies[0].asked) <= factor * n * depth
    if name != "particle_filter":
        assert len(set(paths(leaves))) == len(leaves)


# --- agreement with the restated rules


@settings(max_examples=40, deadline=None)
@given(
    SEEDS, st.sampled_from([1, 3, 4, 5, 16]), st.sampled_from([1, 3, 4]), AGGS, st.sampled_from([1, 3, 40])
)
def test_beam_agrees(seed, n, m, agg, depth):
    ours, theirs = FakePolicy(seed, cut=0.05, max_steps=90), FakePolicy(seed, cut=0.05, max_steps=90)
    leaves = search("beam_search", ours, n=n, beam_width=m, agg_strategy=agg, num_iterations=depth)
    expected = restated.beam_search(World(theirs, agg), n, m, depth)
    assert [leaf.path for leaf in leaves if leaf.complete] == expected
    assert ours.tree == theirs.tree


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([(4, 4), (16, 4), (6, 3), (3, 1)]), AGGS, st.sampled_from([1, 3, 40]))
def test_dvts_agrees(seed, shape, agg, depth):
    ours, theirs = FakePolicy(seed, cut=0.05), FakePolicy(seed, cut=0.05)
    n, m = shape
    leaves = search("dvts", ours, n=n, beam_width=m, agg_strategy=agg, num_iterations=depth)
    expected = restated.dvts(World(theirs, agg), n, m, depth)
    assert [leaf.path for leaf in leaves if leaf.complete] == expected
    assert ours.tree == theirs.tree


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([1, 5, 16]))
def test_best_of_n_agrees(seed, n):
    ours, theirs = FakePolicy(seed), FakePolicy(seed)
    assert paths(search("best_of_n", ours, n=n)) == restated.best_of_n(World(theirs, "last"), n)
    assert ours.tree == theirs.tree


@settings(max_examples=40, deadline=None)
@given(
    SEEDS, st.sampled_from([1, 4, 16]), AGGS, st.sampled_from([0.05, 0.2, 1.0]), st.sampled_from([1, 3, 40])
)
def test_rebase_agrees(seed, n, agg, temperature, depth):
    ours, theirs = FakePolicy(seed, cut=0.05), FakePolicy(seed, cut=0.05)
    spec = f"rebase(softmax_temperature={temperature})"
    leaves = search(spec, ours, n=n, agg_strategy=agg, num_iterations=depth)
    expected = restated.rebase(World(theirs, agg), n, temperature, depth)
    assert [leaf.path for leaf in leaves if leaf.complete] == expected
    assert ours.tree == theirs.tree


# --- lookahead


def test_lookahead_pays_n_times_k_plus_1_and_commits_nothing_of_it():
    policy = FakePolicy(1, eos=0.0, words=10**6)
    strategy = STRATEGIES["beam_search"].run(
        make_root(), SearchConfig(n=4, beam_width=2, agg_strategy="last", lookahead=2)
    )
    rollout = strategy.send(policy.answer(next(strategy)))
    assert [(part.node.path, part.n, part.first) for part in rollout.requests] == [
        ((i,), 1, LOOKAHEAD) for i in range(4)
    ]
    assert all(part.greedy for part in rollout.requests)
    second = strategy.send(policy.answer(rollout))
    assert [part.node.path for part in second.requests] == [(i, LOOKAHEAD) for i in range(4)]
    ends = policy.answer(second)
    request = strategy.send(ends)
    assert len(policy.tree) == 4 * 3  # N (k + 1)
    best = sorted(range(4), key=lambda i: -ends[i][0].score)[:2]
    assert [part.node.path for part in request.requests] == [(i,) for i in best]


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from(["beam_search", "dvts"]), st.integers(1, 3))
def test_no_rollout_is_returned(seed, name, k):
    leaves = search(f"{name}(lookahead={k})", FakePolicy(seed, cut=0.05), n=8)
    assert not any(LOOKAHEAD in leaf.path for leaf in leaves)


def test_lookahead_search_is_beam_search_with_lookahead():
    policies = [FakePolicy(5) for _ in range(2)]
    same = [
        search(spec, p, n=8) for spec, p in zip(("lookahead", "beam(lookahead=1)"), policies, strict=True)
    ]
    assert paths(same[0]) == paths(same[1]) and policies[0].tree == policies[1].tree


# --- REBASE


def test_rebase_golden_shares():
    remainder, ceil = SearchConfig(), SearchConfig(rounding="ceil")
    assert shares([0.9, 0.8, 0.5, 0.1], 16, remainder) == [9, 6, 1, 0]
    assert shares([0.9, 0.8, 0.5, 0.1], 16, ceil) == [10, 5, 1, 0]
    assert shares([0.9, 0.89, 0.88, 0.87, 0.1], 4, remainder) == [1, 1, 1, 1, 0]
    assert shares([0.9, 0.89, 0.88, 0.87, 0.1], 4, ceil) == [2, 1, 1, 0, 0]


@given(
    st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), min_size=1, max_size=20),
    st.integers(0, 64),
    st.sampled_from(["remainder", "ceil"]),
    st.sampled_from([0.01, 0.2, 5.0]),
)
def test_rebase_shares_sum_to_the_budget(scores, total, rounding, temperature):
    config = SearchConfig(rounding=rounding, softmax_temperature=temperature)
    counts = shares(scores, total, config)
    assert sum(counts) == total and min(counts) >= 0
    if not all(map(math.isnan, scores)):
        assert all(count == 0 for count, score in zip(counts, scores, strict=True) if math.isnan(score))


# --- particle filter


def chain_frequencies(potential, runs, resampling):
    """A binary chain of two steps: r1 = .9 or .3, r2 = .6 or .2; returns P(x1), P(x2) over many filters."""
    seen, total = Counter(), 0
    for seed in range(runs):
        spec = f"particle_filter(potential={potential},ess_threshold=1.0,resampling={resampling})"
        root, draw = make_root(), random.Random(seed)
        strategy = STRATEGIES["particle_filter"].run(
            root, parse_strategy(spec).config(SearchConfig(n=64, agg_strategy="last"))
        )
        try:
            request = next(strategy)
            while True:
                if isinstance(request, Draw):
                    request = strategy.send([draw.random() for _ in range(request.n)])
                    continue
                groups = []
                for part in request.requests:
                    depth = len(part.node.path)
                    marks = [draw.random() < 0.5 for _ in range(part.n)]
                    rewards = ((0.3, 0.9), (0.2, 0.6))[depth]
                    groups.append(
                        [
                            Node(
                                part.node,
                                (*part.node.path, i),
                                (i,),
                                f"{int(mark)}",
                                Finish.EOS if depth else Finish.DELIM,
                                score=rewards[mark],
                            )
                            for i, mark in enumerate(marks)
                        ]
                    )
                request = strategy.send(groups)
        except StopIteration as stop:
            for node in stop.value:
                total += 1
                seen["x1"] += node.completion[0] == "1"
                seen["x2"] += node.completion[1] == "1"
    return seen["x1"] / total, seen["x2"] / total


@pytest.mark.parametrize(
    ("potential", "expected"),
    [("ratio", (0.50, 0.75)), ("product", (0.75, 0.75)), ("odds", (0.9545, 0.8571))],
)
@pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
def test_particle_filter_golden_chain(potential, expected, resampling):
    found = chain_frequencies(potential, runs=150, resampling=resampling)
    assert found == pytest.approx(expected, abs=0.035)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=30).filter(lambda w: sum(w) > 0), st.floats(0, 0.999))
def test_systematic_resampling_is_within_one_of_its_share(weights, u):
    counts = Counter(systematic(weights, u))
    n = len(weights)
    assert sum(counts.values()) == n
    for index, weight in enumerate(weights):
        assert abs(counts[index] - n * weight / math.fsum(weights)) < 1 + 1e-6


@given(st.lists(st.floats(0, 5), min_size=1, max_size=30).filter(lambda w: sum(w) > 0), st.data())
def test_multinomial_resampling_inverts_the_distribution(weights, data):
    draws = data.draw(st.lists(st.floats(0, 0.999999), min_size=1, max_size=30))
    total, chosen = math.fsum(weights), multinomial(weights, draws)
    for index, u in zip(chosen, sorted(draws), strict=True):
        below = math.fsum(weights[:index]) / total
        assert below - 1e-9 <= u <= below + weights[index] / total + 1e-9


def test_effective_size():
    assert effective_size([2.0] * 8) == pytest.approx(8)
    assert effective_size([1.0, 0.0, 0.0]) == pytest.approx(1)
    assert effective_size([0.0, 0.0]) == 0.0


def test_forty_sure_steps_leave_no_floats_range():
    class Sure(ToyPRM):
        def score(self, node):
            return 1.0 - 1e-9 * (node.path[0] % 2)

    for spec in ("particle_filter(potential=odds,ess_threshold=0)", "particle_filter(potential=odds)"):
        leaves = search(spec, FakePolicy(1, eos=0.0, max_steps=60, prm=Sure()), n=4, num_iterations=60)
        assert len(leaves) == 4
    assert rescaled([3.0, 1.5, 0.0]) == [0.75, 0.375, 0.0]
    assert rescaled([0.0, 0.0]) == [0.0, 0.0]


def test_a_cut_particle_weighs_nothing():
    cut, nan = make_path(0.9, finish=Finish.PATH_CAP), make_path(math.nan, finish=Finish.DELIM)
    assert increment(cut.parent, cut, "ratio", "last") == 0.0
    assert increment(nan.parent, nan, "odds", "last") == increment(nan.parent, nan, "ratio", "last") == 0.0
    good = make_path(0.5, 0.8)
    assert increment(good.parent, good, "ratio", "last") == pytest.approx(1.6)
    assert increment(good.parent, good, "odds", "last") == pytest.approx(4.0)


def test_equal_weights_draw_nothing():
    class Flat(ToyPRM):
        def score(self, node):
            return 0.5

    policy = FakePolicy(3, prm=Flat(), max_steps=10**6)
    leaves = search("particle_filter", policy, n=8)
    assert [path[0] for path in paths(leaves)] == list(range(8))  # no one was resampled


# --- speculative rejection


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([4, 16]), st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.sampled_from([8, 20]), AGGS)
def test_rejection_keeps_samples_of_best_of_n(seed, n, rate, tokens, agg):
    whole, ours = FakePolicy(seed, eos=0.1), FakePolicy(seed, eos=0.1)
    samples = {leaf.path: leaf.completion for leaf in search("best_of_n", whole, n=n, agg_strategy=agg)}
    spec = f"speculative_rejection(rejection_rate={rate},checkpoint_tokens={tokens})"
    leaves = search(spec, ours, n=n, agg_strategy=agg)
    assert leaves and all(samples[leaf.path] == leaf.completion for leaf in leaves)
    assert ours.tree.items() <= whole.tree.items()
    if rate == 0.0:
        assert set(samples) == set(paths(leaves))


def test_rejection_drops_the_worst_half_of_the_unfinished():
    root = make_root()
    strategy = STRATEGIES["speculative_rejection"].run(
        root, SearchConfig(n=4, agg_strategy="last", checkpoint_tokens=2)
    )
    assert next(strategy) == Expand(root, 4)
    finishes = (Finish.DELIM, Finish.EOS, Finish.DELIM, Finish.DELIM)
    children = [
        Node(root, (i,), (7, 7), "x", finish, score=score)
        for i, (finish, score) in enumerate(zip(finishes, (0.2, 0.1, 0.9, 0.8), strict=True))
    ]
    request = strategy.send(children)  # 2 of 4 stay: (2,) and (3,); (1,) is finished and stays, too
    assert request == Parallel((Expand(children[2], 1), Expand(children[3], 1)))


def test_rejection_costs_less_than_best_of_n():
    def steps(spec):
        policies = [FakePolicy(seed, eos=0.1) for seed in range(40)]
        for policy in policies:
            search(spec, policy, n=16)
        return sum(len(policy.tree) for policy in policies)

    assert steps("speculative_rejection(checkpoint_tokens=16)") < 0.5 * steps("best_of_n")


# --- adaptive vote


def test_beta_rule_goldens():
    golden = {(3, 0): 0.9375, (4, 0): 0.96875, (6, 1): 0.9648, (8, 2): 0.9673}
    for votes, chance in golden.items():
        assert lead_holds(*votes) == pytest.approx(chance, abs=5e-5)
    smallest = [
        next(v for v in itertools.count(second) if lead_holds(v, second) >= 0.95) for second in range(8)
    ]
    assert smallest == [4, 6, 8, 9, 11, 12, 14, 15]


def test_certain_stop_equals_the_full_vote():
    config = SearchConfig(n=6, stop_rule="certain")
    for labels in itertools.product((0, 1, 2, None), repeat=6):
        end = stopping_point(labels, config)
        expected = restated.votes_until_settled(
            list(labels), lambda first, second, left: first - second > left
        )
        assert (end or 6) == expected
        if end is not None:
            full = Counter(label for label in labels if label is not None).most_common()
            assert (
                Counter(label for label in labels[:end] if label is not None).most_common(1)[0][0]
                == full[0][0]
            )
            assert len(full) == 1 or full[0][1] > full[1][1]


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([1, 3, 4, 16]), st.sampled_from(["beta", "certain"]))
def test_adaptive_vote_does_not_depend_on_the_chunk(seed, chunk, rule):
    spec = f"adaptive_vote(chunk={chunk},stop_rule={rule})"
    leaves = search(spec, FakePolicy(seed, words=3), n=16)
    single = search(f"adaptive_vote(chunk=1,stop_rule={rule})", FakePolicy(seed, words=3), n=16)
    assert paths(leaves) == paths(single)
    samples = search("majority", FakePolicy(seed, words=3), n=16)
    assert paths(leaves) == paths(samples[: len(leaves)])


# --- MCTS


def scripted_mcts(scores, **config):
    """The paths that MCTS expands when the child at a path scores ``scores[path]``."""
    root = make_root()
    options = {"n": 4, "beam_width": 2, "agg_strategy": "last"} | config
    strategy = STRATEGIES["mcts"].run(root, SearchConfig(**options))
    request, visited = next(strategy), []
    while len(visited) < 4:
        visited.append(request.node.path)
        nodes = []
        for i in range(request.n):
            path = (*request.node.path, i)
            nodes.append(Node(request.node, path, (i,), "x", Finish.DELIM, score=scores.get(path, 0.1)))
        request = strategy.send(nodes)
    return visited


def test_mcts_follows_value_and_explores():
    scores = {(0,): 0.3, (1,): 0.9, (1, 0): 0.8, (1, 0, 0): 0.8}
    assert scripted_mcts(scores, exploration=0.0) == [(), (1,), (1, 0), (1, 0, 0)]
    # Mean value of (1,) after its children: (0.9 + 0.8 + 0.1) / 3 = 0.6, and 0.3 for the unvisited (0,). The
    # bonus is c / 2 * sqrt(4) / (1 + visits): c / 4 for (1,) with 3 visits, c / 2 for (0,) with 1.
    assert scripted_mcts(scores, exploration=1.19)[:3] == [(), (1,), (1, 0)]
    assert scripted_mcts(scores, exploration=1.21)[:3] == [(), (1,), (0,)]


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([1, 4, 16]), st.sampled_from([0.0, 1.0, 50.0]))
def test_mcts_returns_n_solutions_within_its_steps(seed, n, exploration):
    policy = FakePolicy(seed, eos=0.3, max_steps=10**6)
    leaves = search(f"mcts(exploration={exploration})", policy, n=n, num_iterations=400)
    assert len(leaves) == n and all(leaf.complete for leaf in leaves)


# --- search-and-learn


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([(4, 4), (16, 4)]), AGGS, st.sampled_from([1, 5, 40]))
def test_compat_beam_agrees(seed, shape, agg, depth):
    n, m = shape
    ours, theirs = FakePolicy(seed, cut=0.05), FakePolicy(seed, cut=0.05)
    config = {"n": n, "beam_width": m, "agg_strategy": agg, "num_iterations": depth}
    leaves = search("beam_search(compat=search-and-learn)", ours, **config)
    assert paths(leaves) == restated.search_and_learn_beam(World(theirs, agg), n, m, depth)
    assert ours.tree == theirs.tree


def test_compat_beam_runs_on_while_ours_stops_at_the_budget():
    def steps(spec):
        policies = [FakePolicy(seed, eos=0.15, max_steps=10**6) for seed in range(20)]
        for policy in policies:
            search(spec, policy, n=16)
        return sum(sum(policy.asked) for policy in policies) / 20

    assert steps("beam_search(compat=search-and-learn)") == 640  # n x 40 rounds, whatever had ended
    assert steps("beam_search") < 120


def test_compat_dvts_returns_the_last_children_finished_or_not():
    leaves = search("dvts(compat=search-and-learn)", FakePolicy(2, eos=0.3), n=16)
    assert len(leaves) == 16
    assert any(leaf.live for leaf in leaves) and any(leaf.complete for leaf in leaves)


@pytest.mark.parametrize(
    "spec", ["dvts(compat=search-and-learn)", "beam_search(compat=search-and-learn,sort_completed=true)"]
)
def test_compat_goes_on_when_a_step_fails(spec):
    class Failing(FakePolicy):
        def _finish(self, u, depth):
            return Finish.ERROR if u > 0.8 else super()._finish(u, depth)

        def _scored(self, node):  # the driver sends no failed step to the verifier
            return None if node.finish is Finish.ERROR else super()._scored(node)

    failed = 0
    for seed in range(10):
        policy = Failing(seed, eos=0.2, prm=ToyPRM(nan=0.1))
        assert len(search(spec, policy, n=8)) <= 8
        failed += sum(finish == "error" for finish, _, _ in policy.tree.values())
    assert failed > 10


# --- how a strategy is written


def test_specs():
    assert split_specs("greedy, beam(n=4,lookahead=1) ,dvts") == ("greedy", "beam(n=4,lookahead=1)", "dvts")
    spec = parse_strategy(" beam( lookahead=2 , n=8 ) ")
    assert str(spec) == "beam_search(n=8,lookahead=2)"
    assert spec.config(SearchConfig(n=4)) == SearchConfig(n=8, lookahead=2)
    assert str(parse_strategy("smc(ess_threshold=1)")) == "particle_filter(ess_threshold=1.0)"
    assert str(parse_strategy("mcts()")) == "mcts"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("reebase", "strategy='reebase' is unknown .did you mean 'rebase'"),
        ("beam(n=4", "parenthesis is not closed"),
        ("beam(lokahead=1)", "beam_search has no option 'lokahead' .did you mean 'lookahead'"),
        ("best_of_n(lookahead=1)", "best_of_n has no option 'lookahead'; it has n, num_iterations"),
        ("beam(n=many)", "n='many' must be a whole number"),
        ("mcts(exploration=x)", "exploration='x' must be a number"),
        ("beam(n=4,n=8)", "n is given twice"),
        ("beam(compat=search-and-learn,sort_completed=yes)", "sort_completed='yes' must be true or false"),
    ],
)
def test_bad_specs_are_refused(spec, reason):
    with pytest.raises(WcseError, match=reason):
        parse_strategy(spec)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lookahead", -1),
        ("chunk", 0),
        ("softmax_temperature", 0.0),
        ("ess_threshold", 1.5),
        ("rejection_rate", 1.0),
        ("confidence", math.nan),
        ("potential", "log"),
        ("stop_rule", "soon"),
        ("rounding", "floor"),
        ("compat", "its_hub"),
    ],
)
def test_bad_options_are_refused(field, value):
    with pytest.raises(WcseError, match=f"{field}="):
        SearchConfig(**{field: value})
