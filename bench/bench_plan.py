"""Planning after a change of the tree: depth-first plan, choice of the tile, work list, one buffer for the upload.

It is done once a topology, by one host thread, for all layers. Goal: less than 1 ms at 1024 leaves. The floor is a copy
of what the plan holds.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu_trees import grow
from timing import alternate, spread

from wcse import _core

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 64


@pytest.mark.parametrize("kind", ["beam", "dvts"])
@pytest.mark.parametrize("leaves", [64, 256, 1024, 4096])
def test_plan(benchmark: Any, leaves: int, kind: str) -> None:
    pytest.importorskip("triton")
    from wcse.kernels.triton.rates import H200
    from wcse.kernels.triton.work import DevicePlan

    if benchmark.disabled and leaves > 64:
        pytest.skip("one size is enough without timing")
    grown = grow(kind, leaves=64, depth=10, trees=leaves // 64)
    new = [1] * leaves
    device = torch.device("cpu")

    def order() -> _core.Plan:
        return _core.plan(grown.tree, grown.nodes, new)

    def cut(plan: _core.Plan = grown.plan) -> Any:
        return DevicePlan(plan, device, HEADS // KV_HEADS, KV_HEADS, HEAD_DIM, rates=H200).list(0)

    def all_of_it() -> Any:
        return cut(order())

    assert all_of_it().n_rows == leaves
    if not benchmark.disabled:
        torch.set_num_threads(1)  # the clock is the thread's own
        seconds = alternate({"plan": order, "work list": cut, "both": all_of_it}, 20)
        benchmark.extra_info |= {f"{name}_ms": spread(found) for name, found in seconds.items()}
        benchmark.extra_info |= {"bytes": cut().buffer.nbytes, "flops": 0.0}
    benchmark.pedantic(all_of_it, rounds=3)
