"""Goldens, and brute force over all subsets (T27)."""

import math
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wcse.metrics import (
    best_of_k,
    bootstrap,
    diversity_at_k,
    majority_at_k,
    mcnemar,
    mean_and_error,
    pass_at_k,
    selection_efficiency,
    wilson,
)
from wcse.types import WcseError


def rounded(pair):
    return tuple(round(value, 4) for value in pair)


def test_wilson_goldens():
    assert rounded(wilson(5, 50)) == (0.0435, 0.2136)
    assert rounded(wilson(0, 50)) == (0.0, 0.0713)
    assert rounded(wilson(50, 500)) == (0.0767, 0.1294)
    assert rounded(wilson(50, 50)) == (0.9287, 1.0)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10**4)[0] == 0.0 and wilson(10**4, 10**4)[1] == 1.0


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (1, 0)])
def test_wilson_refuses(k, n):
    with pytest.raises(WcseError, match=f"k={k} successes of n={n}"):
        wilson(k, n)


def test_pass_at_k_goldens():
    assert pass_at_k(10, 3, 5) == pytest.approx(0.91667, abs=1e-5)
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(4, 4, 1) == pass_at_k(4, 1, 4) == 1.0
    assert math.isnan(pass_at_k(4, 4, 5)) and math.isnan(pass_at_k(0, 0, 1))
    assert pass_at_k(10**4, 3, 5000) == pytest.approx(0.875, abs=1e-3)
    with pytest.raises(WcseError, match="c=5"):
        pass_at_k(4, 5, 1)
    with pytest.raises(WcseError, match="k=0"):
        pass_at_k(4, 1, 0)


def test_majority_at_k_goldens():
    assert majority_at_k([2, 1], 2, 0, 3) == pytest.approx(13 / 30)
    assert majority_at_k([2, 1], 2, 1, 3) == pytest.approx(5 / 12)
    assert math.isnan(majority_at_k([], 2, 0, 3))
    assert majority_at_k([], 0, 5, 3) == 0.0
    assert majority_at_k([200], 1800, 0, 5) == pytest.approx(0.99, abs=0.01)  # C(n, k) beyond a float


def test_best_of_k_goldens():
    assert best_of_k([0.9, 0.8, 0.8, 0.2], [False, True, False, True], 2) == pytest.approx(1 / 4)
    assert best_of_k([math.nan, 0.1], [True, False], 2) == 0.0
    assert math.isnan(best_of_k([0.1], [True], 2))
    assert best_of_k([0.5] * 2000, [True, False] * 1000, 1000) == pytest.approx(0.5)
    with pytest.raises(WcseError, match="2 scores, 1 marks"):
        best_of_k([0.1, 0.2], [True], 1)


labels = st.lists(st.sampled_from(["gold", "a", "b", "c", None]), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(labels, st.data())
def test_against_all_subsets(answers, data):
    n = len(answers)
    k = data.draw(st.integers(1, n))
    scores = data.draw(st.lists(st.sampled_from([0.1, 0.5, 0.9, math.nan]), min_size=n, max_size=n))
    subsets = list(combinations(range(n), k))
    correct = [answer == "gold" for answer in answers]

    def mean(value):
        return pytest.approx(sum(map(value, subsets)) / len(subsets))

    def wins_vote(subset):
        drawn = [answers[i] for i in subset if answers[i] is not None]
        most = [label for label in set(drawn) if drawn.count(label) == max(map(drawn.count, drawn))]
        return ("gold" in most) / max(len(most), 1)

    def best_is_right(subset):
        level = [-math.inf if math.isnan(scores[i]) else scores[i] for i in subset]
        tied = [correct[i] for i, score in zip(subset, level, strict=True) if score == max(level)]
        return sum(tied) / len(tied)

    wrong = [answers.count(label) for label in "abc"]
    assert pass_at_k(n, sum(correct), k) == mean(lambda subset: any(correct[i] for i in subset))
    assert majority_at_k(wrong, sum(correct), answers.count(None), k) == mean(wins_vote)
    assert best_of_k(scores, correct, k) == mean(best_is_right)


def test_diversity_goldens():
    assert diversity_at_k([3, 1], 6, 2) == pytest.approx(17 / 15)
    assert diversity_at_k([], 6, 2) == 0.0
    assert diversity_at_k([1] * 6, 6, 6) == pytest.approx(6)
    assert math.isnan(diversity_at_k([1], 2, 3))
    with pytest.raises(WcseError, match="multiplicities="):
        diversity_at_k([3, 4], 6, 2)


@given(st.lists(st.sampled_from("abcd-"), min_size=1, max_size=7), st.data())
def test_diversity_against_all_subsets(texts, data):
    k = data.draw(st.integers(1, len(texts)))
    counts = [texts.count(text) for text in "abcd" if text in texts]
    drawn = [len({t for t in subset if t != "-"}) for subset in combinations(texts, k)]
    assert diversity_at_k(counts, len(texts), k) == pytest.approx(sum(drawn) / len(drawn))


def test_selection_efficiency():
    assert selection_efficiency(0.7, 0.6, 0.8) == pytest.approx(0.5)
    assert selection_efficiency(0.5, 0.6, 0.8) == pytest.approx(-0.5)
    assert math.isnan(selection_efficiency(0.8, 0.8, 0.8))


def test_mcnemar_goldens():
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(2, 10) == pytest.approx(0.0385742, abs=1e-6)
    assert mcnemar(2, 10) == mcnemar(10, 2)
    assert mcnemar(5000, 6000) < 1e-9
    with pytest.raises(WcseError, match="only_a=-1"):
        mcnemar(-1, 2)


def test_bootstrap_is_seeded_and_near_the_normal_interval():
    values = [1.0] * 60 + [0.0] * 40
    low, high = bootstrap(values)
    assert (low, high) == bootstrap(values)
    assert (low, high) == pytest.approx((0.6 - 1.96 * 0.049, 0.6 + 1.96 * 0.049), abs=0.015)
    assert bootstrap([0.5] * 10) == (0.5, 0.5)
    assert all(map(math.isnan, bootstrap([])))


def test_mean_and_error():
    mean, error = mean_and_error([0.1, 0.2, 0.3])
    assert mean == pytest.approx(0.2) and error == pytest.approx(0.1 / math.sqrt(3))
    assert math.isnan(mean_and_error([0.5])[1])
    with pytest.raises(WcseError, match="at least one"):
        mean_and_error([])
