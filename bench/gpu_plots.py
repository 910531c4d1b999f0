"""Plots of attention over the number of leaves, with ``triton.testing``: ours, per sequence, and the roofline.

    python bench/gpu_plots.py [FOLDER]

Writes a picture and a CSV for each kind of tree to FOLDER (default ``bench/results/plots``). Needs a GPU, pandas and
matplotlib.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from gpu_trees import grow
from roofline import MACHINES, SHAPES, attention

LEAVES = (64, 256, 1024, 4096)
SIDES = {"tree": "tree attention", "alone": "per sequence", "model": "tree attention, modelled"}


def milliseconds(leaves: int, side: str, kind: str) -> float:
    """One layer of the 1B shape."""
    import triton.testing

    from wcse.kernels.triton import attention as kernels
    from wcse.kernels.triton import work
    from wcse.kernels.triton.rates import device_rates

    shape, device = SHAPES["1B"], torch.device("cuda")
    grown = grow(kind, leaves=64, depth=10, trees=leaves // 64)
    group = shape.heads // shape.kv_heads
    plan = work.DevicePlan(
        grown.plan,
        device,
        group,
        shape.kv_heads,
        shape.head_dim,
        tile_m=16 if side == "alone" else None,
        tile_rows=1 if side == "alone" else None,
        rates=device_rates(device),
    )
    if side == "model":
        return attention(MACHINES["h200"], shape, plan.list(0)).seconds * 1e3
    pool = (grown.pages, shape.kv_heads, 16, shape.head_dim)
    k, v = (torch.randn(pool, device=device, dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn(grown.plan.n_rows, shape.heads, shape.head_dim, device=device, dtype=torch.bfloat16)
    list_ = plan.list(0)
    options = {"scale": shape.head_dim**-0.5, "softcap": 0.0, "window": 0}
    return triton.testing.do_bench(lambda: kernels.tree_attention(q, k.transpose(2, 3), v, list_, **options))


def main() -> int:
    missing = [name for name in ("triton", "pandas", "matplotlib") if find_spec(name) is None]
    if missing or not torch.cuda.is_available():
        why = f"needs {', '.join(missing)}" if missing else f"torch {torch.__version__} finds no CUDA device"
        print(f"gpu_plots: {why}; nothing was plotted")
        return 0
    import triton.testing

    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "results" / "plots")
    folder.mkdir(parents=True, exist_ok=True)
    reports = [
        triton.testing.Benchmark(
            x_names=["leaves"],
            x_vals=list(LEAVES),
            x_log=True,
            y_log=True,
            line_arg="side",
            line_vals=list(SIDES),
            line_names=list(SIDES.values()),
            ylabel="ms a layer",
            plot_name=f"tree-attention-1B-{kind}",
            args={"kind": kind},
        )
        for kind in ("beam", "dvts", "best-of-n")
    ]
    triton.testing.perf_report(reports)(milliseconds).run(save_path=str(folder), print_data=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
