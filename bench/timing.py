"""Timing of rivals in one run: sides take turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from wcse import _core

PAUSE, WARM, CALLS = 0.01, 0.003, 3


def alternate(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every timed call of every side; ``CALLS`` calls a turn, ``rounds`` turns, sides taking turns.

    A turn begins with a pause, in which the idle threads of the side before stop spinning (OpenMP's hold a core for
    milliseconds after a parallel region), and some milliseconds of untimed calls, in which the side's own threads
    wake up, as they are in a model's step. With one thread it is the thread's own time, which other processes do
    not lengthen; with more, wall time.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            time.sleep(PAUSE)
            begin = time.perf_counter()
            run()
            while time.perf_counter() - begin < WARM:
                run()
            for _ in range(CALLS):
                start = clock()
                run()
                seconds[name].append(clock() - start)
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: the 20th, 50th and 80th percentile and the least."""
    ordered = sorted(seconds)
    at = {f"p{p}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (20, 50, 80)}
    return {name: value * 1e3 for name, value in (at | {"min": ordered[0]}).items()}


def copy_rate() -> float:
    """Bytes a second, read and written, of the best of five copies that no cache holds."""
    source = torch.zeros(2**26, dtype=torch.int8)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() / best


def versus(
    benchmark: Any,
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    flops: float,
    bytes: float,
    rounds: int = 30,
) -> None:
    """Time ``ours`` beside ``peer``; how many times faster, and the roofline, go to ``extra_info``.

    The roofline: the FLOPs and bytes that any kernel must at least do and move, the shares of the peaks that are
    measured in the same run, and which of the two is the nearer one. The ratio is the median over rounds. The shares
    use the 20th percentile of our time: the peak, too, is that of undisturbed moments. With benchmarks
    disabled both sides run once.
    """
    if benchmark.disabled:
        benchmark(ours)
        peer()
        return
    threads = torch.get_num_threads()
    seconds = alternate({"ours": ours, "peer": peer}, rounds)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["peer"], strict=True)]
    benchmark.extra_info |= {
        "times_peer": statistics.median(ratios),
        "times_peer_best": min(seconds["peer"]) / min(seconds["ours"]),
        "ours_ms": spread(seconds["ours"]),
        "peer_ms": spread(seconds["peer"]),
        "threads": threads,
        "isa": _core.cpu_isa(),
    }
    benchmark.extra_info |= roofline(flops, bytes, spread(seconds["ours"])["p20"] / 1e3, threads)
    benchmark.pedantic(ours, rounds=5)


def roofline(flops: float, bytes: float, seconds: float, threads: int) -> dict[str, Any]:
    """Floors, measured peaks, and the shares of them that ``seconds`` reach."""
    peak, rate = _core.fma_peak(threads), copy_rate()
    shares = {"fma_peak": flops / seconds / peak, "copy_rate": bytes / seconds / rate}
    return {
        "flops": flops,
        "bytes": bytes,
        "fma_peak_gflops": peak / 1e9,
        "copy_gbytes_s": rate / 1e9,
        "share_of_fma_peak": shares["fma_peak"],
        "share_of_copy_rate": shares["copy_rate"],
        "bound_by": max(shares, key=shares.__getitem__),
    }
