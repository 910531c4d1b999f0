"""Norm, activation and rotary embedding of a small step beside the same maths in torch (``reference.py``).

These tensors are small: what counts is the overhead of a call.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timing import versus

from wcse.kernels import ops


@pytest.mark.parametrize(("rows", "width"), [(1, 192), (64, 192), (64, 576), (256, 576)])
def test_add_rms_norm(benchmark: Any, rows: int, width: int) -> None:
    residual, x, weight = torch.zeros(rows, width), torch.randn(rows, width), torch.ones(width)
    with torch.inference_mode():
        versus(
            benchmark,
            lambda: ops.add_rms_norm(residual, x, weight, eps=1e-5),
            lambda: ops.add_rms_norm(residual, x, weight, eps=1e-5, backend="torch"),
            flops=5.0 * x.numel(),  # sum, square, its sum, scale, weight
            bytes=4.0 * x.nbytes,
            rounds=40,
        )


@pytest.mark.parametrize(("rows", "width"), [(1, 512), (64, 512), (64, 1536), (256, 1536)])
def test_gated_act(benchmark: Any, rows: int, width: int) -> None:
    gate_up = torch.randn(rows, 2 * width)
    with torch.inference_mode():
        torch.testing.assert_close(ops.gated_act(gate_up), ops.gated_act(gate_up, backend="torch"))
        versus(
            benchmark,
            lambda: ops.gated_act(gate_up),
            lambda: ops.gated_act(gate_up, backend="torch"),
            flops=1.5 * gate_up.numel(),  # two products and a sigmoid, which counts as one
            bytes=1.5 * gate_up.nbytes,
            rounds=40,
        )


@pytest.mark.parametrize("rows", [1, 64, 256])
def test_rope_write_kv(benchmark: Any, rows: int) -> None:
    heads, kv_heads, head_dim = 9, 3, 64
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * head_dim)
    positions, slots = torch.arange(rows, dtype=torch.int32), torch.arange(rows, dtype=torch.int32)
    angle = torch.randn(rows, head_dim // 2)
    cos, sin = angle.cos(), angle.sin()
    pages = rows // 16 + 1
    k, v = torch.zeros(pages, kv_heads, head_dim, 16), torch.zeros(pages, kv_heads, 16, head_dim)

    def run(backend: ops.Backend) -> torch.Tensor:
        return ops.rope_write_kv(
            qkv, positions, slots, cos, sin, k, v, n_heads=heads, n_kv_heads=kv_heads, backend=backend
        )

    with torch.inference_mode():
        torch.testing.assert_close(run("cpp"), run("torch"))
        rotated = rows * (heads + kv_heads) * head_dim
        versus(
            benchmark,
            lambda: run("cpp"),
            lambda: run("torch"),
            flops=3.0 * rotated,
            bytes=2.0 * qkv.nbytes,
            rounds=40,
        )
