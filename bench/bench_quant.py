"""Linear on quantised weights beside our float32 linear and torch's, at the layers of two models.

Floor for a few rows: the weights are read once, so bytes of the weights / memory bandwidth; int8 is 8.5 and int4 5 of
the 32 bits, so at one row the prediction is 3.8 and 6.4 times float32, less where unpacking (about two vector
instructions per 16 weights beside the multiply-add) takes longer than reading. Floor for many rows: 2 T N K FLOPs at
the FMA peak, as for float32; unpacking a block once per 96 rows should cost a few per cent.
Weights are rotated through copies larger than the last-level cache, as the layers of a model are.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timing import alternate, spread

from wcse import _core
from wcse.kernels import ops

SHAPES = {
    "smollm2_135m-qkv": (960, 576),
    "smollm2_135m-gate_up": (3072, 576),
    "smollm2_135m-down": (576, 1536),
    "smollm2_135m-head": (49152, 576),
    "qwen2.5_0.5b-qkv": (1152, 896),
    "qwen2.5_0.5b-gate_up": (9728, 896),
    "qwen2.5_0.5b-down": (896, 4864),
    "qwen2.5_0.5b-head": (151936, 896),
}
ROWS = (1, 4, 16, 64, 256)
CACHE = 64 << 20  # bytes of copies to rotate through


def rotating(weight: torch.Tensor, format: ops.Format, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    packed = ops.pack_linear(weight, format)
    copies = [packed] + [
        replace(packed, panels=packed.panels.clone()) for _ in range(min(40, CACHE // packed.nbytes))
    ]
    turn = itertools.cycle(copies)
    return lambda: ops.linear(x, next(turn))


def rotating_torch(weight: torch.Tensor, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    copies = [weight.clone() for _ in range(1 + min(40, CACHE // (weight.numel() * 4)))]
    turn = itertools.cycle(copies)
    return lambda: F.linear(x, next(turn))


@pytest.mark.parametrize("threads", [1, 2], ids=["1thread", "2threads"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_quantised_linear(benchmark: Any, shape: str, rows: int, threads: int) -> None:
    n, k = SHAPES[shape]
    if benchmark.disabled and (n * rows > 100_000 or threads > 1):
        pytest.skip("small shapes and one thread are enough without timing")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, weight = torch.randn(rows, k), torch.randn(n, k) * 0.05
    sides: dict[str, Callable[[], torch.Tensor]] = {"torch": rotating_torch(weight, x)}
    formats: tuple[ops.Format, ...] = ("fp32", "int8", "int4")
    sides |= {f: rotating(weight, f, x) for f in formats}
    with torch.inference_mode():
        exact = F.linear(x.double(), weight.double())
        for name, bound in (("fp32", 1e-5), ("int8", 0.01), ("int4", 0.1)):
            assert float((sides[name]() - exact).norm() / exact.norm()) < bound
        if benchmark.disabled:
            benchmark(sides["int8"])
        else:
            measure(benchmark, sides, weight, rows, threads)
    torch.set_num_threads(before)


def measure(
    benchmark: Any, sides: dict[str, Callable[[], Any]], weight: torch.Tensor, rows: int, threads: int
) -> None:
    flops = 2.0 * rows * weight.numel()
    seconds = alternate(sides, 4 if flops > 1e9 else 12)
    peak = _core.fma_peak(threads)
    info = benchmark.extra_info
    info |= {"threads": threads, "isa": _core.cpu_isa(), "fma_peak_gflops": peak / 1e9}
    for name in ("int8", "int4"):
        best = spread(seconds[name])["p20"] / 1e3
        for peer in ("fp32", "torch"):
            ratios = [b / a for a, b in zip(seconds[name], seconds[peer], strict=True)]
            info[f"{name}_times_{peer}"] = statistics.median(ratios)
        info[f"{name}_gbytes_per_second"] = (
            weight.numel() * (1.0625 if name == "int8" else 0.625) / best / 1e9
        )
        info[f"{name}_share_of_fma_peak"] = flops / best / peak
    info["milliseconds"] = {name: spread(times) for name, times in seconds.items()}
    benchmark.pedantic(sides["int8"], rounds=3)
