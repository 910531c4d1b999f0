"""A long prompt alone: its slots, and attention over them in whole and in a later piece."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import TREES, attend, grow

pytest.importorskip("triton")

from wcse.kernels.triton import prompt, work

CHAIN = [("a", None, 64), ("b", "a", 50), ("c", "b", 30)]


@pytest.mark.parametrize(
    "segments", [[("a", 64), ("b", 50), ("c", 30)], [("b", 7), ("c", 30)], [("c", 1)]], ids=str
)
@pytest.mark.parametrize("group", [1, 3])
def test_attention_of_a_path(segments: list[tuple[str, int]], group: int) -> None:
    forest = grow(CHAIN, kv_heads=2, group=group, head_dim=16, poison=0.0)
    plan = forest.plan(segments)
    slots = prompt.path_slots(plan)
    assert slots is not None and len(slots) == 144
    q = forest.queries(segments, plan)
    exact = attend(q.double(), forest.k.double(), forest.v.double(), plan, backend="torch")
    got = prompt.attend_path(q, forest.k, forest.v, torch.from_numpy(slots), scale=16**-0.5)
    torch.testing.assert_close(got.double(), exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("tree", ["wide", "ragged", "extend"])
def test_branches_are_no_path(tree: str) -> None:
    spec, segments = TREES[tree]
    forest = grow(spec, kv_heads=1, group=1, head_dim=8)
    assert prompt.path_slots(forest.plan(segments)) is None


def test_only_long_ones_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    forest = grow(CHAIN, kv_heads=1, group=1, head_dim=8)
    plan = forest.plan([("c", 30)])
    shape = (plan, torch.device("cpu"), 1, 1, 8, torch.float32)
    assert work.DevicePlan(*shape).path() is None
    monkeypatch.setattr(work, "LEAST", 30)
    path = work.DevicePlan(*shape).path()
    assert path is not None and len(path) == 144
