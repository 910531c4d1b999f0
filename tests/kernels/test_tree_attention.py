"""Tree attention: against float64 over the grid of head shapes and trees, and bit by bit across batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import (
    OPTIONS,
    TREES,
    Forest,
    Segments,
    Spec,
    assert_as_good_as_torch,
    attend,
    each_isa,
    each_thread_count,
    forests,
    grow,
)

from wcse import _core
from wcse.kernels import ops
from wcse.types import WcseError


def check_against_reference(forest: Forest, segments: Segments, softcap: float, window: int) -> None:
    plan = forest.plan(segments)
    q = forest.queries(segments, plan)
    exact = attend(q.double(), forest.k.double(), forest.v.double(), plan, softcap, window, backend="torch")
    single = attend(q, forest.k, forest.v, plan, softcap, window, backend="torch")
    for _ in each_isa():
        got = attend(q, forest.k, forest.v, plan, softcap, window)
        assert_as_good_as_torch(got, exact, single)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 4), (1, 6), (2, 7), (1, 8)], ids=str)
@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128, 256])
def test_head_shapes(shape: tuple[int, int], head_dim: int) -> None:
    spec, segments = TREES["node and descendants"]
    forest = grow(spec, kv_heads=shape[0], group=shape[1], head_dim=head_dim)
    check_against_reference(forest, segments, 0.0, 0)


@pytest.mark.parametrize("head_dim", [8, 24, 40, 72, 120])
def test_head_sizes_that_fill_half_a_register(head_dim: int) -> None:
    spec, segments = TREES["extend"]
    check_against_reference(grow(spec, kv_heads=1, group=3, head_dim=head_dim), segments, 0.0, 0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("tree", TREES)
def test_trees_and_options(tree: str, options: tuple[float, int]) -> None:
    spec, segments = TREES[tree]
    check_against_reference(grow(spec, kv_heads=2, group=3, head_dim=32), segments, *options)


def test_long_prompt_in_one_plan() -> None:
    spec: Spec = [(f"n{i}", f"n{i - 1}" if i else None, 64) for i in range(6)] + [("end", "n5", 20)]
    segments = [(label, length) for label, _, length in spec]
    check_against_reference(grow(spec, kv_heads=1, group=2, head_dim=16), segments, 0.0, 0)


def test_long_prompt_in_one_node() -> None:
    check_against_reference(grow([("a", None, 500)], kv_heads=1, group=3, head_dim=16), [("a", 450)], 0.0, 0)


def test_large_scores() -> None:
    """Scores of several hundred: the maximum must move with the blocks, and old sums be scaled away."""
    spec, segments = TREES["ragged"]
    forest = grow(spec, kv_heads=1, group=2, head_dim=64)
    plan = forest.plan(segments)
    q = forest.queries(segments, plan) * 100
    exact = attend(q.double(), forest.k.double(), forest.v.double(), plan, backend="torch")
    single = attend(q, forest.k, forest.v, plan, backend="torch")
    for _ in each_isa():
        assert_as_good_as_torch(attend(q, forest.k, forest.v, plan), exact, single, factor=8)


# ------------------------------------------------------------------------------------------------- invariance


def equal_rows(a: dict[tuple[str, int], torch.Tensor], b: dict[tuple[str, int], torch.Tensor]) -> None:
    common = a.keys() & b.keys()
    assert common
    assert all(torch.equal(a[row], b[row]) for row in common)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_row_does_not_depend_on_its_batch(options: tuple[float, int]) -> None:
    """One leaf alone, with all others, in another order of nodes and pages, and as part of a longer extend."""
    spec, segments = TREES["extend"]
    shape = {"kv_heads": 2, "group": 3, "head_dim": 48}
    for _ in each_isa():
        together = grow(spec, **shape).rows(segments, *options)
        for segment in segments:
            equal_rows(grow(spec, **shape, shuffle=1).rows([segment], *options), together)
        equal_rows(grow(spec, **shape, shuffle=2).rows(segments[::-1], *options), together)
        equal_rows(grow(spec, **shape).rows([(label, 1) for label, _ in segments], *options), together)
        reordered = [spec[i] for i in (8, 0, 1, 3, 7, 2, 6, 5, 4)]
        equal_rows(grow(reordered, **shape).rows(segments, *options), together)
        path_only = [node for node in spec if node[0] in ("prompt", "tail", "b", "ba")]
        equal_rows(grow(path_only, **shape).rows([("ba", 1)], *options), together)


def test_growing_token_by_token_gives_the_bits_of_one_extend() -> None:
    shape = {"kv_heads": 1, "group": 4, "head_dim": 32}
    for _ in each_isa():
        whole = grow([("p", None, 64), ("x", "p", 70)], **shape).rows([("x", 70)])
        for length in (1, 15, 16, 17, 64, 65, 70):
            step = grow([("p", None, 64), ("x", "p", length)], **shape).rows([("x", 1)])
            assert torch.equal(step[("x", length - 1)], whole[("x", length - 1)])


def test_threads_do_not_change_bits() -> None:
    spec, segments = TREES["wide"]
    forest = grow(spec, kv_heads=2, group=7, head_dim=64)
    plan = forest.plan(segments)
    q = forest.queries(segments, plan)
    for _ in each_isa():
        first, *others = each_thread_count(lambda: attend(q, forest.k, forest.v, plan))
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 3e38, -3e38])
def test_unused_slots_weigh_nothing(poison: float) -> None:
    spec, segments = TREES["ragged"]
    shape = {"kv_heads": 1, "group": 3, "head_dim": 40}
    for _ in each_isa():
        clean = grow(spec, **shape, poison=0.0).rows(segments)
        equal_rows(grow(spec, **shape, poison=poison).rows(segments), clean)


def test_a_nan_query_spoils_its_own_row_only() -> None:
    spec, segments = TREES["ragged"]
    forest = grow(spec, kv_heads=1, group=2, head_dim=32)
    plan = forest.plan(segments)
    q = forest.queries(segments, plan)
    spoiled = q.clone()
    spoiled[2, 1] = float("nan")
    for _ in each_isa():
        clean = attend(q, forest.k, forest.v, plan)
        got = attend(spoiled, forest.k, forest.v, plan)
        assert got[2, 1].isnan().all()
        got[2, 1] = clean[2, 1]
        assert torch.equal(got, clean)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(forests(), st.sampled_from(OPTIONS), st.sampled_from([(1, 1), (2, 3), (1, 7)]))
def test_random_forests(
    case: tuple[Spec, Segments], options: tuple[float, int], heads: tuple[int, int]
) -> None:
    spec, segments = case
    shape = {"kv_heads": heads[0], "group": heads[1], "head_dim": 16}
    forest = grow(spec, **shape)
    check_against_reference(forest, segments, *options)
    together = forest.rows(segments, *options)
    equal_rows(grow(spec, **shape, shuffle=3).rows(segments[:1], *options), together)


# -------------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def small() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, _core.Plan]:
    forest = grow([("a", None, 20)], kv_heads=2, group=2, head_dim=32, pages=4)
    plan = forest.plan([("a", 3)])
    return forest.queries([("a", 3)], plan), forest.k, forest.v, plan


def test_strided_input_is_refused(small: tuple[torch.Tensor, torch.Tensor, torch.Tensor, _core.Plan]) -> None:
    q, k, v, plan = small
    strided = torch.empty(3, 32, 4).transpose(1, 2)
    with pytest.raises(WcseError, match=r"q is not contiguous .*q\.contiguous\(\)"):
        attend(strided, k, v, plan)
    with pytest.raises(WcseError, match="k_pages is not contiguous"):
        attend(q, k.transpose(0, 1).contiguous().transpose(0, 1), v, plan)


def test_wrong_tensors_are_refused(
    small: tuple[torch.Tensor, torch.Tensor, torch.Tensor, _core.Plan],
) -> None:
    q, k, v, plan = small
    with pytest.raises(WcseError, match=r"q has dtype torch\.float64.*torch\.float32"):
        attend(q.double(), k, v, plan)
    with pytest.raises(WcseError, match="q has 2 rows but the plan has 3"):
        attend(q[:2], k, v, plan)
    with pytest.raises(WcseError, match=r"v_pages has shape \(4, 2, 32, 16\); expected \(4, 2, 16, 32\)"):
        attend(q, k, k, plan)
    with pytest.raises(WcseError, match="q has 3 heads; expected a multiple of the 2"):
        attend(q[:, :3].contiguous(), k, v, plan)
    with pytest.raises(WcseError, match="head size 12"):
        attend(torch.zeros(3, 4, 12), torch.zeros(4, 2, 12, 16), torch.zeros(4, 2, 16, 12), plan)
    with pytest.raises(WcseError, match="window=-1"):
        attend(q, k, v, plan, window=-1)
    with pytest.raises(WcseError, match="backend='gpu' is unknown"):
        attend(q, k, v, plan, backend="gpu")  # type: ignore[arg-type]


def test_a_plan_of_a_larger_pool_is_refused() -> None:
    forest = grow([("a", None, 100)], kv_heads=1, group=1, head_dim=16, pages=16)
    plan = forest.plan([("a", 1)])
    with pytest.raises(WcseError, match="the plan reads page"):
        ops.tree_attention(torch.zeros(1, 1, 16), forest.k[:1], forest.v[:1], plan, scale=1.0)
