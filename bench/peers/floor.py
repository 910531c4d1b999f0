"""The floor under a cell's time: the multiply-adds of its weight matrices at the speed of this machine's fp32 GEMM.

Attention, norms, sampling and all else come on top of it, so nothing in fp32 can be faster; eight-bit arithmetic can.
Knows models by their sizes.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from wcse.flops import ModelCost
from wcse.models.load import read_config
from wcse.models.spec import spec_from_hf

from .workloads import Cell, Shape

SIDE, SECONDS = 1024, 0.5


def gemm_peak(threads: int) -> float:
    """FLOP/s of the best of many products of two fp32 matrices of 1024 x 1024."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)
        best, end = float("inf"), time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            start = time.perf_counter()
            torch.mm(a, b)
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2 * SIDE**3 / best


class Floor:
    """FLOPs of cells on one model.

    Args:
        folder: a checkpoint with ``config.json``.
    """

    def __init__(self, folder: Path) -> None:
        spec = spec_from_hf(read_config(folder))
        self.body, self.whole = (ModelCost.of(spec, head=head).params for head in (False, True))

    def flops(self, cell: Cell, shape: Shape) -> float:
        """Two for each weight and token; the output matrix only where a token is drawn."""
        policy, verifier = cell.read(shape)
        prompts = shape.requests if cell.workload == "serve" else 1
        drawn = policy - prompts * (shape.prompt_tokens - 1)
        return 2.0 * (self.body * (policy + verifier) + (self.whole - self.body) * drawn)
