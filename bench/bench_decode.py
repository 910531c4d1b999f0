"""A decode step of SmolLM2-135M below a 400-token prompt: its parts, and its share of the machine's fp32 peaks.

In each round torch's product of two 1024 x 1024 matrices and bare multiply-adds (``fma_peak``) are timed, then steps of
the engine under the profile. One thread, of which the own time counts. Model FLOPs are those of the weights
(``gemm_share``, which no fp32 product of torch exceeds 1 with) and with attention (``fma_share``, the roofline).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import models
import pytest
import torch

from wcse import _core
from wcse.engine.driver import Driver, Job
from wcse.engine.engine import Engine
from wcse.engine.params import WHOLE, SamplingParams
from wcse.flops import ModelCost
from wcse.models.load import load_model
from wcse.profile import TREE, Profile
from wcse.types import Expand, Node, Search

PROMPT, NEW, ROUNDS, STEPS = 400, 128, 5, 6
SIDE = 1024


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mm_peak(a: torch.Tensor, b: torch.Tensor) -> float:
    """FLOP/s of the best of three products."""
    best = float("inf")
    for _ in range(3):
        start = time.thread_time()
        torch.mm(a, b)
        best = min(best, time.thread_time() - start)
    return 2 * SIDE**3 / best


def decoding(n: int) -> Driver:
    """A driver whose ``n`` rows are in the midst of their completions."""

    def strategy(root: Node) -> Search:
        leaves = yield Expand(root, n, to_end=True)
        return leaves

    engine = Engine(load_model(models.smollm2()), max_rows=n, num_pages=PROMPT // 16 + 9 * n)
    params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=NEW, ignore_eos=True)
    driver = Driver(engine, None, params=params, rule=WHOLE)
    driver.submit(Job("p", [7 * i % 1000 + 10 for i in range(PROMPT)], "p", strategy, seed=1))
    for _ in range(4):
        driver.advance()
    assert len(engine.rows) == n
    return driver


@pytest.mark.parametrize("n", [64, 256])
def test_decode_step(benchmark: Any, one_thread: None, n: int) -> None:
    if benchmark.disabled and n > 64:
        pytest.skip("one size is enough without timing")
    driver = decoding(n)
    if benchmark.disabled:
        benchmark(driver.advance)
        return
    cost = ModelCost.of(driver.engine.model.spec)
    a, b = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)
    rounds: list[dict[str, float]] = []
    for i in range(ROUNDS):
        peaks = {"torch_mm": mm_peak(a, b), "fma": _core.fma_peak(1)}
        start = time.thread_time()
        with Profile() as profile:
            for _ in range(STEPS):
                driver.advance()
        step = (time.thread_time() - start) / STEPS
        parts = {name: seconds / profile.times.wall for name, seconds in profile.times.parts.items()}
        context = PROMPT + 4 + STEPS * i + STEPS // 2
        rounds.append(
            parts
            | {f"{name}_gflops": peak / 1e9 for name, peak in peaks.items()}
            | {
                "step_ms": step * 1e3,
                "gemm_share": 2 * n * cost.params / step / peaks["torch_mm"],
                "fma_share": n * cost.flops(1, context) / step / peaks["fma"],
                "host_share": parts["Python"] + parts[TREE] + parts["tokenizer"],
            }
        )
    benchmark.extra_info |= {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    benchmark.extra_info |= {"isa": _core.cpu_isa(), "rows": n}
    benchmark.pedantic(driver.advance, rounds=3)
