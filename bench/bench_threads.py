"""Tokens per second of ``LLM.generate`` with one and with two threads, taking turns in one run.

Floor: twice the speed, less what one thread must do alone (Python, small row loops). Also the time of a train of
short loops after a pause, which shows whether the workers wake on cores of their own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch

from wcse import _core, zoo
from wcse.engine.llm import LLM
from wcse.engine.params import SamplingParams
from wcse.models.load import load_model

ROUNDS, PROMPT, NEW = 4, 400, 32


def on_threads(threads: int, run: Callable[[], object]) -> float:
    """Wall seconds of a run with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    finally:
        torch.set_num_threads(before)


def compare(benchmark: Any, run: Callable[[], object]) -> None:
    """One and two threads in turns; the ratio of their times goes to ``extra_info``."""
    if benchmark.disabled:
        benchmark(run)
        on_threads(2, run)
        return
    for threads in (1, 2):
        on_threads(threads, run)
    rounds = [(on_threads(1, run), on_threads(2, run)) for _ in range(ROUNDS)]
    ratios = [one / two for one, two in rounds]
    benchmark.extra_info |= {
        "times_one_thread": {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)},
        "seconds": rounds,
    }
    benchmark.pedantic(run, rounds=1)


@pytest.mark.parametrize("n", [1, 64])
def test_generation_scales(benchmark: Any, n: int) -> None:
    llm = LLM(zoo.path("tiny-wc").as_posix()) if benchmark.disabled else LLM(load_model(models.smollm2()))
    params = SamplingParams(n=n, max_tokens=4 if benchmark.disabled else NEW, ignore_eos=True)

    def run() -> None:
        ids = [(i + llm._requests) % 1000 + 10 for i in range(PROMPT)]  # a new prompt: nothing is cached
        llm.generate([ids], params, use_tqdm=False)

    compare(benchmark, run)


def test_short_loops_after_a_pause(benchmark: Any) -> None:
    def run() -> None:
        _core.set_num_threads(torch.get_num_threads())
        for _ in range(2 if benchmark.disabled else 10):
            time.sleep(0.012)
            for _ in range(60):
                _core._testing.loop(24, 1, nested=30_000)

    compare(benchmark, run)
