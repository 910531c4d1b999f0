"""Tree attention in Triton against float64: on a GPU where there is one, else in Triton's interpreter.

The interpreter does bfloat16 arithmetic wrongly without a word, so there it is float32 and float16 only.
"""

from __future__ import annotations

import gpu_trees
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import OPTIONS, RAGGED, TREES, Forest, Segments, Spec, attend, forests, grow

from wcse import _core
from wcse.kernels import ops
from wcse.types import WcseError

pytest.importorskip("triton")

from wcse.kernels.triton import attention, work

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE.type == "cuda" else [])
ALLOWED = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def pools_of(k: torch.Tensor, v: torch.Tensor, plan: _core.Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """One layer of an engine's pool: between its pages lie other layers', and pages that the plan does not name hold
    other models' bytes; here both are NaN.
    """
    pages = torch.from_numpy(np.unique(plan.pages)).long()
    room = torch.full((len(v), 3, 2, *v.shape[1:]), torch.nan, dtype=v.dtype)
    room[pages, 1, 0], room[pages, 1, 1] = k[pages].transpose(2, 3), v[pages]
    keys, values = room.to(DEVICE)[:, 1].unbind(1)
    return keys.transpose(2, 3), values


def check(
    forest: Forest,
    segments: Segments,
    softcap: float = 0.0,
    window: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    tile_m: int | None = None,
    chunks: int | None = None,
) -> work.DeviceList:
    """Compare with float64 on the same rounded inputs; returns the work list that was used."""
    plan = forest.plan(segments)
    q, k, v = (x.to(dtype) for x in (forest.queries(segments, plan), forest.k, forest.v))
    exact = attend(q.double(), k.double(), v.double(), plan, softcap, window, backend="torch")
    kv_heads, group, head_dim = forest.shape
    placed = work.DevicePlan(plan, DEVICE, group, kv_heads, head_dim, dtype, tile_m, chunks)
    keys, values = pools_of(k, v, plan)
    got = ops.tree_attention(
        q.to(DEVICE),
        keys,
        values,
        placed,  # type: ignore[arg-type]
        scale=head_dim**-0.5,
        softcap=softcap,
        window=window,
        backend="triton",
    )
    assert got.dtype == dtype
    torch.testing.assert_close(got.cpu().double(), exact, rtol=ALLOWED[dtype], atol=ALLOWED[dtype])
    return placed.list(window)


def forest_of(name: str, *, kv_heads: int = 2, group: int = 3, head_dim: int = 16) -> tuple[Forest, Segments]:
    spec, segments = TREES[name]
    return grow(spec, kv_heads=kv_heads, group=group, head_dim=head_dim, poison=0.0), segments


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("tree", TREES)
def test_trees_and_options(tree: str, options: tuple[float, int]) -> None:
    check(*forest_of(tree), *options)


@pytest.mark.parametrize(
    ("shape", "tile_m"),
    [((1, 1), 16), ((8, 1), 32), ((2, 4), 16), ((1, 4), 128), ((1, 6), 64), ((1, 7), 128), ((1, 8), 32)],
    ids=str,
)
def test_groups_and_tiles(shape: tuple[int, int], tile_m: int) -> None:
    forest, segments = forest_of("extend", kv_heads=shape[0], group=shape[1])
    check(forest, segments, tile_m=tile_m)


@pytest.mark.parametrize("head_dim", [32, 48, 64, 80, 96, 128, 256])
def test_head_sizes(head_dim: int) -> None:
    check(*forest_of("node and descendants", kv_heads=1, group=2, head_dim=head_dim))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("tree", ["wide", "extend"])
def test_half_precision(dtype: torch.dtype, tree: str) -> None:
    for options in ((0.0, 0), (5.0, 70)):
        check(*forest_of(tree, head_dim=32), *options, dtype=dtype, tile_m=32, chunks=8)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("tree", ["wide", "extend", "ragged"])
def test_split_lists(tree: str, options: tuple[float, int]) -> None:
    """Chunks in which a row sees nothing weigh nothing in the merge."""
    used = check(*forest_of(tree), *options, tile_m=64, chunks=40)
    assert used.n_slots > 0 and used.n_items > 1


def test_large_scores() -> None:
    forest, segments = forest_of("ragged", head_dim=64)
    plan = forest.plan(segments)
    q = forest.queries(segments, plan) * 100
    exact = attend(q.double(), forest.k.double(), forest.v.double(), plan, backend="torch")
    stored = forest.k.transpose(2, 3).contiguous().to(DEVICE).transpose(2, 3)
    got = attend(q.to(DEVICE), stored, forest.v.to(DEVICE), plan, backend="triton")
    torch.testing.assert_close(got.cpu().double(), exact, rtol=1e-3, atol=1e-3)


def test_a_nan_query_spoils_its_own_head_only() -> None:
    forest, segments = forest_of("ragged")
    plan = forest.plan(segments)
    q = forest.queries(segments, plan)
    spoiled = q.clone()
    spoiled[2, 1] = float("nan")
    k, v = forest.k.transpose(2, 3).contiguous().to(DEVICE).transpose(2, 3), forest.v.to(DEVICE)
    clean = attend(q.to(DEVICE), k, v, plan, backend="triton")
    got = attend(spoiled.to(DEVICE), k, v, plan, backend="triton")
    assert got[2, 1].isnan().all()
    got[2, 1] = clean[2, 1]
    assert torch.equal(got, clean)


@settings(max_examples=8 if DEVICE.type == "cpu" else 50, deadline=None, derandomize=True)
@given(
    forests(),
    st.sampled_from(OPTIONS),
    st.sampled_from([(1, 1), (2, 3), (1, 7)]),
    st.sampled_from(work.TILE_M),
    st.sampled_from([None, 7]),
)
def test_random_forests(
    case: tuple[Spec, Segments],
    options: tuple[float, int],
    heads: tuple[int, int],
    tile_m: int,
    chunks: int | None,
) -> None:
    spec, segments = case
    forest = grow(spec, kv_heads=heads[0], group=heads[1], head_dim=16, poison=0.0)
    check(forest, segments, *options, tile_m=tile_m, chunks=chunks)


# ------------------------------------------------------------------------------------------------- work lists


def expand(list_: _core.WorkList, plan: _core.Plan, window: int) -> list[list[tuple[int, int]]]:
    """For every row the (page, offset) of the tokens that the list shows it, in order."""
    seen: list[list[tuple[int, int]]] = [[] for _ in range(plan.n_rows)]
    for row0, n_rows, begin, end, _ in np.asarray(list_.items).reshape(-1, 5).tolist():
        for i in range(begin, end):
            page, rows, pos = (int(x[i]) for x in (list_.page, list_.rows, list_.pos))
            low, high, causal = rows & 255, rows >> 8 & 255, (rows >> 16 & 255) - 128
            for e in range(max(low, 0), min(high, n_rows)):
                p = plan.positions[row0 + e]
                for t in range(page >> 27 & 31):
                    if t < causal + e and (not window or pos + t > p - window):
                        seen[row0 + e].append((page & 0x7FFFFFF, t))
    return seen


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    forests(),
    st.integers(1, 128),
    st.integers(1, 4),
    st.integers(1, 30),
    st.sampled_from([0, 9, 70]),
)
def test_every_row_sees_each_of_its_tokens_once(
    case: tuple[Spec, Segments], tile_rows: int, block_pages: int, items: int, window: int
) -> None:
    spec, segments = case
    forest = grow(spec, kv_heads=1, group=1, head_dim=1)
    plan = forest.plan(segments)
    list_ = _core.work_list(
        plan, tile_rows=tile_rows, block_pages=block_pages, items=items, least_pages=1, window=window
    )
    nodes = plan.nodes
    for row, got in enumerate(expand(list_, plan, window)):
        want = []
        for x in range(len(nodes)):
            if not nodes.lo[x] <= row < nodes.hi[x]:
                continue
            for t in range(min(nodes.length[x], nodes.seen[x] + row - nodes.lo[x])):
                if not window or nodes.pos[x] + t > plan.positions[row] - window:
                    want.append((int(plan.pages[nodes.page_begin[x] + t // 16]), t % 16))
        assert sorted(got) == sorted(want)
    items_ = np.asarray(list_.items).reshape(-1, 5)
    assert (np.diff(items_[:, 3] - items_[:, 2]) <= 0).all()  # longest first
    slots = []
    for row, (first, step, chunks) in enumerate(np.asarray(list_.merge).reshape(-1, 3).tolist()):
        slots += [first + i * step for i in range(chunks)]
        mine = items_[(items_[:, 0] <= row) & (row < items_[:, 0] + items_[:, 1])]
        assert len(mine) == max(1, chunks)
        assert sorted(s + row - r for r, _, _, _, s in mine.tolist() if s >= 0) == sorted(
            slots[-chunks:] if chunks else []
        )
    assert sorted(slots) == list(range(list_.slots))


@pytest.mark.parametrize(
    ("kind", "most"), [("beam", 1.45), ("dvts", 1.45), ("best-of-n", 1.26), ("rebase", 1.55), ("chain", 1.01)]
)
def test_planned_traffic(kind: str, most: float) -> None:
    """Tokens that the chosen tiles read, over unique tokens: whole pages, and the path once a tile."""
    plan = gpu_trees.grow(kind, leaves=64, depth=10).plan
    placed = work.DevicePlan(plan, torch.device("cpu"), 4, 8, 64)
    traffic = placed.list(0).traffic
    assert 1.0 <= traffic.ratio <= most, traffic
    per_sequence = sum(int(p) + 1 for p in plan.positions)
    assert traffic.read <= per_sequence * 1.1


def test_tile_model_counts_what_the_lists_hold() -> None:
    forest, segments = forest_of("wide")
    plan = forest.plan(segments)
    for rows in (1, 4, 16, 64):
        list_ = _core.work_list(plan, tile_rows=rows, block_pages=4, items=1, least_pages=1)
        assert work.tile_pages(plan, rows) == list_.entries


def test_bad_input_is_refused() -> None:
    forest, segments = forest_of("one leaf")
    plan = forest.plan(segments)
    q = forest.queries(segments, plan).to(DEVICE)
    stored = forest.k.transpose(2, 3).contiguous().to(DEVICE).transpose(2, 3)
    v = forest.v.to(DEVICE)
    with pytest.raises(WcseError, match=r"k_pages has strides .*pool\.transpose\(2, 3\)"):
        attend(q, stored.contiguous(), v, plan, backend="triton")
    with pytest.raises(WcseError, match=r"v_pages has dtype torch\.float16"):
        attend(q, stored, v.half(), plan, backend="triton")
    with pytest.raises(WcseError, match="the plan reads page"):
        attend(q, stored[:1], v[:1], plan, backend="triton")
    for option, value in (("tile_rows", 129), ("block_pages", 0), ("items", 0), ("window", -1)):
        options = {"tile_rows": 4, "block_pages": 4, "items": 1, "least_pages": 1} | {option: value}
        with pytest.raises(ValueError, match=f"work_list: {option}={value}"):
            _core.work_list(plan, **options)


def test_the_mask_of_wide_tiles_is_selected() -> None:
    """More tree rows in a tile than ``ONE_HOT``: the other way of masking, in decode and extend."""
    assert attention.tile_options(64, 1, 16, torch.float32, 0, 0.0, 1)["E"] == 0
    for options in OPTIONS:
        forest = grow(RAGGED, kv_heads=1, group=1, head_dim=16, poison=0.0)
        check(forest, TREES["extend"][1], *options, tile_m=64, chunks=5)
