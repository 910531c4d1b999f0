"""Linear on quantised weights beside our float32 linear and torch's fp32 and int8, at the layers of two models.

Floor for a few rows: the weights are read once, so bytes of the weights / memory bandwidth; int8 is 8.5 and int4 5 of
the 32 bits, so at one row the prediction is 3.8 and 6.4 times float32, less where unpacking (about two vector
instructions per 16 weights beside the multiply-add) takes longer than reading. Floor for many rows: 2 T N K FLOPs at
the FMA peak, as for float32; unpacking a block once per 96 rows should cost a few per cent. With inputs of 8 bits
("w8a8", "w4a8") it is 2 T N K operations at the integer peak, of which a group's 8 dot products per register share
the two multipliers with 2 float operations (3 with minima): at most 80 % (73 %), less the rounding of the inputs.
torch's int8 is ``torch._int_mm`` of ready-made codes: no scales and no rounding of inputs, so less work than ours.
Weights are rotated through copies larger than the last-level cache, as the layers of a model are.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
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
QUANTIZED: tuple[ops.Format, ...] = ("int8", "int4", "w8a8", "w4a8")
BYTES = {"int8": 1.0625, "int4": 0.625, "w8a8": 1.0625, "w4a8": 0.625}  # a weight
ROWS = (1, 4, 16, 64, 256)
SHORT = ("gate_up", "down"), (1, 64, 256)  # what is timed unless all is asked for
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


def rotating_int_mm(weight: torch.Tensor, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """torch's int8 product, of codes that were made before."""
    codes = (weight / weight.abs().max() * 127).round().to(torch.int8)
    inputs = (x / x.abs().max() * 127).round().to(torch.int8)
    copies = [codes.clone().t() for _ in range(1 + min(40, CACHE // codes.numel()))]
    turn = itertools.cycle(copies)
    return lambda: torch._int_mm(inputs, next(turn))


def in_short(asked: Sequence[Any], short: Callable[[Any], bool]) -> list[Any]:
    """Parameters, of which the others are marked as long."""
    return [one if short(one) else pytest.param(one, marks=pytest.mark.long) for one in asked]


@pytest.mark.parametrize("threads", [1, 2], ids=["1thread", "2threads"])
@pytest.mark.parametrize("rows", in_short(ROWS, lambda rows: rows in SHORT[1]))
@pytest.mark.parametrize("shape", in_short(list(SHAPES), lambda shape: shape.endswith(SHORT[0])))
def test_quantised_linear(benchmark: Any, shape: str, rows: int, threads: int) -> None:
    n, k = SHAPES[shape]
    if benchmark.disabled and (n * rows > 100_000 or threads > 1):
        pytest.skip("small shapes and one thread are enough without timing")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, weight = torch.randn(rows, k), torch.randn(n, k) * 0.05
    sides: dict[str, Callable[[], torch.Tensor]] = {
        "torch": rotating_torch(weight, x),
        "torch_int8": rotating_int_mm(weight, x),
    }
    formats: tuple[ops.Format, ...] = ("fp32", *QUANTIZED)
    sides |= {f: rotating(weight, f, x) for f in formats}
    with torch.inference_mode():
        exact = F.linear(x.double(), weight.double())
        for name, bound in (("fp32", 1e-5), ("int8", 0.01), ("int4", 0.1), ("w8a8", 0.02), ("w4a8", 0.1)):
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
    info["dot_peak_gops"] = _core.dot_peak(threads) / 1e9
    for name in QUANTIZED:
        best = spread(seconds[name])["p20"] / 1e3
        for peer in ("fp32", "torch", "torch_int8"):
            ratios = [b / a for a, b in zip(seconds[name], seconds[peer], strict=True)]
            info[f"{name}_times_{peer}"] = statistics.median(ratios)
        info[f"{name}_gbytes_per_second"] = weight.numel() * BYTES[name] / best / 1e9
        info[f"{name}_gops"] = flops / best / 1e9
    info["milliseconds"] = {name: spread(times) for name, times in seconds.items()}
    benchmark.pedantic(sides["int8"], rounds=3)
