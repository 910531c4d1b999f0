"""Linear on packed weights beside torch's F.linear (MKL or oneDNN), fp32, at the layers of two models.

Floor: 2 T N K FLOPs at the measured FMA peak, or the time to stream the weights for a few rows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timing import versus

from wcse.kernels import ops

SMOLLM2_135M = {
    "qkv": (960, 576),
    "o": (576, 576),
    "gate_up": (3072, 576),
    "down": (576, 1536),
    "head": (49152, 576),
}
TWO_MILLION = {"qkv": (384, 192), "gate_up": (1024, 192), "down": (192, 512), "head": (1200, 192)}
CASES = [
    *((f"135M-{name}", shape, rows) for name, shape in SMOLLM2_135M.items() for rows in (1, 16, 64, 256)),
    *((f"2M-{name}", shape, rows) for name, shape in TWO_MILLION.items() for rows in (1, 64, 256, 1024)),
]


@pytest.mark.parametrize("threads", [1, 2], ids=["1thread", "2threads"])
@pytest.mark.parametrize(("shape", "rows"), [c[1:] for c in CASES], ids=[f"{c[0]}-T{c[2]}" for c in CASES])
def test_linear(benchmark: Any, shape: tuple[int, int], rows: int, threads: int) -> None:
    n, k = shape
    if benchmark.disabled and (n * rows > 1_000_000 or threads > 1):
        pytest.skip("small shapes and one thread are enough without timing")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, weight = torch.randn(rows, k), torch.randn(n, k)
    packed = ops.pack_linear(weight)
    with torch.inference_mode():
        torch.testing.assert_close(ops.linear(x, packed), F.linear(x, weight), rtol=1e-4, atol=1e-4)
        flops = 2.0 * rows * n * k
        rounds = 5 if flops > 1e9 else 20
        versus(
            benchmark,
            lambda: ops.linear(x, packed),
            lambda: F.linear(x, weight),
            flops=flops,
            bytes=4.0 * (weight.numel() + x.numel() + rows * n),
            rounds=rounds,
        )
    torch.set_num_threads(before)
