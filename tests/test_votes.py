"""Aggregation and selection: goldens, ties, and what may not vote (T24)."""

import itertools
import math

import pytest
from fakes import make_path
from hypothesis import given
from hypothesis import strategies as st

from wcse.types import Finish, Node, WcseError
from wcse.votes import (
    SELECTORS,
    Ballot,
    aggregate,
    argmax,
    ballots,
    get_selector,
    majority,
    rank_key,
    weighted,
)


def vote(*rows):
    """Ballots from (class, score) or (class, score, complete) at paths (0,), (1,), ..."""
    return [Ballot((i,), row[2] if len(row) > 2 else True, row[0], row[1]) for i, row in enumerate(rows)]


# --- aggregate


def test_aggregate_goldens():
    scores = [0.9, 0.8, 0.5]
    assert aggregate(scores, "last") == 0.5
    assert aggregate(scores, "min") == 0.5
    assert aggregate(scores, "prod") == pytest.approx(0.36)
    assert aggregate(scores, "mean") == pytest.approx(0.7333, abs=1e-4)
    assert aggregate([0.5, 0.0], "prod") == 0.0
    assert aggregate([0.5] * 40, "prod") == pytest.approx(0.5**40, rel=1e-13)


@pytest.mark.parametrize("how", ["min", "prod", "mean"])
def test_aggregate_does_not_hide_a_nan(how):
    for scores in itertools.permutations([0.5, math.nan, 0.1]):
        assert math.isnan(aggregate(scores, how))
    assert math.isnan(aggregate([0.0, math.nan], how))


@pytest.mark.parametrize("how", ["last", "min", "prod", "mean"])
def test_nothing_scored_ranks_last(how):
    assert math.isnan(aggregate([], how))


def test_last_reads_only_the_last():
    assert aggregate([math.nan, 0.5], "last") == 0.5
    assert math.isnan(aggregate([0.5, math.nan], "last"))


def test_aggregate_refuses():
    with pytest.raises(WcseError, match=r"agg_strategy='geo' .*last, min, prod, mean"):
        aggregate([0.5], "geo")


def test_rank_key_puts_nan_last_and_breaks_ties_by_path():
    keys = [(math.nan, (0,)), (0.1, (2, 0)), (0.1, (1, 9)), (-math.inf, (1,)), (0.9, (5,))]
    assert sorted(keys, key=lambda key: rank_key(*key)) == [keys[4], keys[2], keys[1], keys[0], keys[3]]


# --- selectors


def test_three_selectors_three_answers():
    votes = vote((0, 0.9), (1, 0.5), (1, 0.6), (2, 0.1), (2, 0.1), (2, 0.1))
    assert argmax(votes) == 0
    assert weighted(votes) == 2
    assert majority(votes) == 3


def test_the_winner_is_the_best_of_its_class():
    assert majority(vote((0, 0.1), (0, 0.9), (0, 0.9), (1, 1.0))) == 1


def test_unfinished_and_empty_never_vote():
    votes = vote((None, 0.9), (0, 0.8, False), (0, 0.8, False), (1, 0.1))
    assert majority(votes) == weighted(votes) == 3
    assert argmax(votes) == 0  # complete, though its answer is none
    assert argmax(vote((0, 0.9, False), (1, 0.1))) == 1


@pytest.mark.parametrize("selector", SELECTORS.values())
def test_nobody_votes(selector):
    assert selector([]) is None
    assert selector(vote((0, 0.9, False))) is None


def test_no_answer_at_all():
    assert majority(vote((None, 0.9), (None, 0.1))) is None
    assert weighted(vote((None, 0.9))) is None


def test_ties():
    assert majority(vote((0, 0.1), (1, 0.2))) == 1  # larger sum
    assert majority(vote((0, 0.6), (0, 0.1), (1, 0.4), (1, 0.4))) == 2  # before the larger single score
    assert majority(vote((0, 0.4), (0, 0.4), (1, 0.5), (1, 0.3))) == 2  # equal sums, larger single score
    assert weighted(vote((0, 0.25), (0, 0.25), (1, 0.5))) == 2
    assert majority(vote((1, 0.5), (0, 0.5))) == 0  # smallest path
    assert majority(vote((1, None), (0, None), (0, None))) == 1  # no verifier
    assert majority(vote((1, None), (0, None))) == 0


def test_nan_weighs_nothing():
    votes = vote((0, math.nan), (1, 0.1))
    assert argmax(votes) == weighted(votes) == majority(votes) == 1
    assert weighted(vote((0, math.nan))) == argmax(vote((0, math.nan))) == 0


@pytest.mark.parametrize("score", [-0.1, 1.5, math.inf])
def test_weighted_refuses_unbounded_scores(score):
    with pytest.raises(WcseError, match=rf"score={score:g} of solution \(1,\).*\[0, 1\]"):
        weighted(vote((0, 0.5), (0, score)))
    weighted(vote((0, 0.5), (0, score, False), (None, score)))  # those do not vote
    assert majority(vote((0, 0.5), (0, score))) is not None


@pytest.mark.parametrize("selector", [argmax, weighted])
def test_scores_are_needed(selector):
    with pytest.raises(WcseError, match=r"solution \(0,\) has no score"):
        selector(vote((0, None)))


rows = st.lists(st.tuples(st.none() | st.integers(0, 3), st.sampled_from([0.1, 0.2, 0.3, 0.7])), max_size=8)


@given(rows, st.randoms())
def test_order_of_the_votes_does_not_matter(rows, shuffle):
    votes = vote(*rows)
    mixed = list(votes)
    shuffle.shuffle(mixed)
    for selector in SELECTORS.values():
        chosen, again = selector(votes), selector(mixed)
        assert (chosen is None) == (again is None)
        assert chosen is None or votes[chosen] == mixed[again]


def test_get_selector():
    assert get_selector("majority") is majority
    with pytest.raises(WcseError, match=r"selector='vote' is unknown; use one of argmax, majority, weighted"):
        get_selector("vote")


# --- ballots


def test_ballots_of_solutions():
    done, cut = make_path(0.9, 0.5, path=(1, 0)), make_path(0.7, path=(0,), finish=Finish.PATH_CAP)
    assert ballots([cut, done], [None, 0], "mean") == [
        Ballot((0,), False, None, None),
        Ballot((1, 0), True, 0, pytest.approx(0.7)),
    ]
    assert ballots([done], [0], None) == [Ballot((1, 0), True, 0, None)]


def test_ballots_refuse():
    with pytest.raises(WcseError, match="1 solutions but 2 answer classes"):
        ballots([make_path(0.5)], [0, 1], "last")
    unscored = make_path(0.5)
    unscored = Node(unscored.parent, (0,), (1,), "x", Finish.EOS)
    with pytest.raises(WcseError, match="not every step was scored"):
        ballots([unscored], [0], "last")
