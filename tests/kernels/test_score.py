"""Step scores, sums along paths, best of groups: native op against reference, extremes, any batches, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from itertools import accumulate, pairwise
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wcse.kernels import ops
from wcse.types import PathScores, WcseError
from wcse.votes import AGGREGATIONS, aggregate, rank_key


def head(sizes: list[int], seed: int = 0) -> list[tuple[ops.PackedLinear, torch.Tensor | None]]:
    generator = torch.Generator().manual_seed(seed)
    pairs = zip(sizes[1:], sizes, strict=False)
    return [
        (
            ops.pack_linear(torch.randn(n, k, generator=generator) / k**0.5),
            torch.randn(n, generator=generator),
        )
        for n, k in pairs
    ]


@pytest.mark.parametrize("sizes", [[64, 1], [64, 2], [48, 33, 2], [40, 40, 1]])
@pytest.mark.parametrize("bounded", [True, False])
def test_the_native_op_equals_its_reference(sizes: list[int], bounded: bool) -> None:
    hidden = torch.randn(19, sizes[0], generator=torch.Generator().manual_seed(1))
    rows = torch.tensor([3, 18, 0, 3, 7], dtype=torch.int32)
    layers = head(sizes)
    found = ops.score_steps(hidden, rows, layers, bounded=bounded)
    expected = ops.score_steps(hidden.double(), rows, layers, bounded=bounded, backend="torch")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, equal_nan=True)
    assert found.dtype == torch.float64 and found[0].tolist()[0] == found[3].tolist()[0]
    each = [ops.score_steps(hidden, rows[i : i + 1], layers, bounded=bounded) for i in range(5)]
    torch.testing.assert_close(torch.cat(each), found, atol=0, rtol=0, equal_nan=True)
    assert ops.score_steps(hidden, rows[:0], layers).shape == (0, 5)


SCORES = st.sampled_from([0.0, 1.0, 0.25, 0.5, 0.9, 0.1, 1e-30, -2.0, 3.0, math.nan, math.inf])


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[float], list[int], int]:
    """Scores of a tree's steps, the step above each (-1: none), and how many of them come in a first call."""
    scores = draw(st.lists(SCORES, min_size=1, max_size=20))
    above = [draw(st.integers(-1, i - 1)) for i in range(len(scores))]
    return scores, above, draw(st.integers(0, len(scores)))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(trees())
def test_sums_along_paths_equal_aggregation_from_scratch(tree: tuple[list[float], list[int], int]) -> None:
    scores, above, split = tree
    hidden = torch.tensor(scores)[:, None]
    layers = [(ops.pack_linear(torch.ones(1, 1)), None)]
    rows, places = (torch.tensor(x, dtype=torch.int32) for x in (range(len(scores)), above))
    for backend in ("cpp", "torch"):
        first, second = (
            partial(ops.score_steps, hidden, part, layers, bounded=False, backend=backend)
            for part in (rows[:split], rows[split:])
        )
        known = first(above=places[:split])
        found = torch.cat([known, second(above=places[split:], known=known)])
        for i, row in enumerate(found.tolist()):
            path, place = list[float](), i
            while place >= 0:
                path.insert(0, hidden[place].item())
                place = above[place]
            if backend == "cpp":  # to the last bit what a node computes by itself
                same = reduce(PathScores.then, path, PathScores())
                assert list(map(repr, row)) == list(map(repr, same))
            for how, exact in EXACT.items():
                value = aggregate(PathScores(*row), how)
                if how != "last" and any(map(math.isnan, path)):
                    assert math.isnan(value)
                elif how != "prod" or min(path) >= 0:
                    assert value == pytest.approx(exact(path), rel=1e-12, nan_ok=True)


EXACT: dict[str, Callable[[list[float]], float]] = {
    "last": lambda path: path[-1],
    "min": min,
    "prod": math.prod,
    "mean": lambda path: math.fsum(path) / len(path),
}


def test_a_product_too_small_for_single_precision_keeps_its_rank() -> None:
    layers = [(ops.pack_linear(torch.ones(1, 1)), None)]
    hidden, rows = torch.tensor([[1e-5], [2e-5]]), torch.tensor([0] * 20 + [1] * 20, dtype=torch.int32)
    above = torch.tensor([i - 1 if i % 20 else -1 for i in range(40)], dtype=torch.int32)
    found = ops.score_steps(hidden, rows, layers, above=above, bounded=False)
    low, high = (aggregate(PathScores(*found[i].tolist()), "prod") for i in (19, 39))
    assert 0 < low < high < 1e-90


@st.composite
def contests(draw: st.DrawFn) -> tuple[list[float], list[int], list[tuple[int, str]], list[int]]:
    """Scores of candidates, the group of each (-1: none), (places, aggregation) of the groups, and cuts into calls."""
    scores = draw(st.lists(SCORES | st.just(-0.0), min_size=1, max_size=16))
    kinds = draw(
        st.lists(st.tuples(st.integers(0, 5), st.sampled_from(list(AGGREGATIONS))), min_size=1, max_size=3)
    )
    group = [draw(st.integers(-1, len(kinds) - 1)) for _ in scores]
    cuts = sorted(draw(st.lists(st.integers(0, len(scores)), max_size=3)))
    return scores, group, kinds, [0, *cuts, len(scores)]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(contests(), st.randoms(use_true_random=False))
def test_the_best_of_groups_do_not_depend_on_the_order_of_calls(
    case: tuple[list[float], list[int], list[tuple[int, str]], list[int]], random: Random
) -> None:
    scores, group, kinds, cuts = case
    order = random.sample(range(len(scores)), len(scores))  # which candidate comes first among equals
    layers = [(ops.pack_linear(torch.ones(1, 1)), None)]
    bounds = torch.tensor([0, *accumulate(k for k, _ in kinds)], dtype=torch.int32)
    how = torch.tensor([list(AGGREGATIONS).index(name) for _, name in kinds], dtype=torch.int32)
    for backend in ("cpp", "torch"):
        best = torch.tensor([ops.NOBODY] * int(bounds[-1]), dtype=torch.float64).reshape(-1, 2)
        for begin, end in pairwise(cuts):
            part = ops.Groups(
                best,
                bounds,
                how,
                torch.tensor(group[begin:end], dtype=torch.int32),
                torch.tensor(order[begin:end], dtype=torch.float64),
            )
            rows = torch.arange(begin, end, dtype=torch.int32)
            ops.score_steps(
                torch.tensor(scores)[:, None], rows, layers, groups=part, bounded=False, backend=backend
            )
        for g, (k, name) in enumerate(kinds):
            mine = [i for i in range(len(scores)) if group[i] == g]
            worth = {i: aggregate([torch.tensor(scores[i]).item()], name) for i in mine}
            ranked = sorted(mine, key=lambda i: rank_key(worth[i], (order[i],)))[:k]
            found = best[bounds[g] : bounds[g + 1]].tolist()
            assert [place[1] for place in found if place[1] < math.inf] == [order[i] for i in ranked]
            exact = [-math.inf if math.isnan(worth[i]) else worth[i] for i in ranked]
            assert [place[0] for place in found[: len(ranked)]] == pytest.approx(exact, rel=1e-12)


def test_extremes_stay_finite_and_ordered() -> None:
    layers = [(ops.pack_linear(torch.tensor([[-1.0], [1.0]])), None)]
    z = torch.tensor([[-300.0], [-40.0], [-20.0], [0.0], [8.0]])
    scores = ops.score_steps(z, torch.arange(5, dtype=torch.int32), layers)[:, 0]
    assert torch.isfinite(scores).all()
    assert scores.tolist() == sorted(scores.tolist())
    assert scores[3] == 0.5 and scores[1] > 0
    broken = ops.score_steps(torch.tensor([[float("nan")]]), torch.zeros(1, dtype=torch.int32), layers)
    assert broken[0, :4].isnan().all() and broken[0, 4] == 1


def test_what_does_not_fit_is_refused() -> None:
    hidden = torch.zeros(3, 8)
    with pytest.raises(WcseError, match=r"rows\[0\]=3 is outside the 3 hidden states"):
        ops.score_steps(hidden, torch.tensor([3], dtype=torch.int32), head([8, 2]))
    with pytest.raises(
        WcseError, match=r"above\[1\]=1 is neither -1 nor one of the 0 known paths and the st"
    ):
        ops.score_steps(
            hidden, torch.tensor([0, 0], dtype=torch.int32), head([8, 2]), above=torch.tensor([-1, 1]).int()
        )
    for wrong, message in (
        ({"bounds": [0, 4]}, r"bounds\[1\]=4 does not lie between the one before and the 3 places"),
        ({"bounds": [2, 1]}, r"bounds\[1\]=1 does not lie between the one before and the 3 places"),
        ({"bounds": [-1, 2]}, r"bounds\[0\]=-1 does not lie between the one before and the 3 places"),
        ({"group": [1]}, r"group\[0\]=1 is neither -1 nor one of the 1 groups"),
        ({"how": [4]}, r"how\[0\]=4 is no aggregation"),
    ):
        fields = {"bounds": [0, 3], "how": [0], "group": [0]} | wrong
        tensors = {name: torch.tensor(numbers).int() for name, numbers in fields.items()}
        groups = ops.Groups(torch.zeros(3, 2).double(), order=torch.zeros(1).double(), **tensors)
        with pytest.raises(WcseError, match=message):
            ops.score_steps(hidden, torch.tensor([0]).int(), head([8, 2]), groups=groups)
    with pytest.raises(WcseError, match=r"known has dtype torch.float32"):
        ops.score_steps(hidden, torch.tensor([0]).int(), head([8, 2]), known=torch.zeros(1, 5))
    with pytest.raises(WcseError, match="layer 0 takes 9 columns and gets 8"):
        ops.score_steps(hidden, torch.tensor([0], dtype=torch.int32), head([9, 2]))
    with pytest.raises(WcseError, match="the head has 3 outputs"):
        ops.score_steps(hidden, torch.tensor([0], dtype=torch.int32), head([8, 3]))
