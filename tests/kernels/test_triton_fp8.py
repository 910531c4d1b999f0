"""Keys, values and weights of 8 bits: what is stored, what attention makes of it, and how far logits move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from kernel_cases import TREES, grow

from wcse import _core
from wcse.kernels import ops
from wcse.models.decoder import Batch, Decoder
from wcse.models.hf import open_hf, read_json
from wcse.models.kv_pool import KVPool
from wcse.models.spec import spec_from_hf
from wcse.types import WcseError

pytest.importorskip("triton")

import triton.language as tl

from wcse.kernels.triton import work

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def rounding_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter drops the carry of a number that rounds up to a power of two, and so halves it."""
    if DEVICE.type == "cuda":
        return
    from triton.runtime import interpreter

    theirs = interpreter._convert_float

    def convert(numbers: np.ndarray, given: Any, wanted: Any, mode: Any) -> np.ndarray:
        if wanted == tl.float8e4nv and given == tl.float32:
            return torch.from_numpy(numbers).to(ops.FP8).view(torch.uint8).numpy()
        return theirs(numbers, given, wanted, mode)

    monkeypatch.setattr(interpreter, "_convert_float", convert)


def scaled(values: torch.Tensor, *, keys: bool) -> ops.ScaledPages:
    """A pool of values [P, Hkv, 16, d] in 8 bits."""
    from wcse.kernels.scaled import quantize_rows

    numbers, factors = quantize_rows(values.contiguous())
    return ops.ScaledPages((numbers.transpose(2, 3) if keys else numbers).to(DEVICE), factors.to(DEVICE))


@pytest.mark.parametrize("options", [(0.0, 0), (5.0, 30)], ids=str)
@pytest.mark.parametrize(("group", "tile_m"), [(3, 16), (1, 64)], ids=str)
def test_attention(options: tuple[float, int], group: int, tile_m: int) -> None:
    """Against float64 over the numbers that are stored; both ways of masking, lists split."""
    spec, segments = TREES["extend"]
    forest = grow(spec, kv_heads=2, group=group, head_dim=32, poison=0.0)
    plan = forest.plan(segments)
    q = forest.queries(segments, plan)
    k, v = scaled(forest.k.transpose(2, 3), keys=True), scaled(forest.v, keys=False)
    shape = {"scale": 32**-0.5, "softcap": options[0], "window": options[1]}
    exact = ops.tree_attention(q.double().to(DEVICE), k, v, plan, **shape, backend="torch")
    placed = work.DevicePlan(plan, DEVICE, group, 2, 32, q.dtype, tile_m, 5)
    got = ops.tree_attention(q.to(DEVICE), k, v, placed, **shape, backend="triton")
    torch.testing.assert_close(got.double(), exact, rtol=2e-5, atol=2e-5)


def test_what_is_written_is_what_the_reference_writes() -> None:
    """Also of a head of zeros, and of one with numbers that are not finite."""
    qkv = torch.randn(5, 4 * 24) * 30
    qkv[1, 48:] = 0.0
    qkv[2, 50], qkv[2, 90] = float("nan"), float("inf")
    slots = torch.tensor([3, 16, 40, 17, -1], dtype=torch.int32)
    table = torch.randn(9, 12)
    pools = []
    for backend in ("torch", "triton"):
        empty = torch.zeros(3, 1, 16, 24)
        k, v = scaled(empty, keys=True), scaled(empty, keys=False)
        rows = 4 if backend == "torch" else 5  # a negative slot is the kernels' alone
        ops.rope_write_kv(
            qkv[:rows].to(DEVICE),
            torch.arange(rows, dtype=torch.int32, device=DEVICE),
            slots[:rows].to(DEVICE),
            table.to(DEVICE),
            table.to(DEVICE),
            k,
            v,
            n_heads=2,
            n_kv_heads=1,
            backend=backend,
        )
        pools.append(
            (k.dense(torch.float32, keys=True), v.dense(torch.float32, keys=False), k.scale, v.scale)
        )
    for ours, reference in zip(pools[1], pools[0], strict=True):
        assert ours.isfinite().all()
        # Values and factors have the reference's bits. A rotation may differ in its last one, and a number between two
        # then rounds the other way: one step is at most 1/8 of it.
        assert ((ours - reference).abs() <= reference.abs() * 0.126 + 1e-5).all()
        assert (ours == reference).float().mean() > 0.99
    assert torch.equal(pools[1][1], pools[0][1])


def test_scaled_products_are_near_the_exact_ones() -> None:
    weight, x = torch.randn(48, 64), torch.randn(5, 64).to(torch.bfloat16)
    matrix = ops.Fp8Linear.of(weight.to(DEVICE))
    bias = torch.randn(48).to(torch.bfloat16)
    got = ops.linear(x.to(DEVICE), matrix, bias.to(DEVICE), backend="triton").float().cpu()
    exact = x.float() @ weight.T + bias.float()
    assert (got - exact).norm() / exact.norm() < 0.06
    assert matrix.nbytes == 48 * 64 + 48 * 4
    with pytest.raises(WcseError, match="multiples of 16"):
        ops.Fp8Linear.of(torch.zeros(40, 64))


def test_logits_with_eight_bits_are_near(tmp_path: Path) -> None:
    folder = tiny_models.build("llama", tmp_path, num_hidden_layers=2)
    spec = spec_from_hf(read_json(folder / "config.json"))
    found = []
    for options in ({}, {"kv_dtype": ops.FP8, "quantization": "fp8"}):
        decoder = Decoder(spec, open_hf(folder), backend="triton", device=DEVICE, **options)
        tree, pool = _core.KVTree(4), decoder.pool(4)
        node = tree.fork(0)
        slots = tree.extend(node, range(40, 60))
        plan = _core.plan(tree, [node], [20])
        positions = torch.from_numpy(plan.positions)
        batch = Batch(torch.arange(40, 60), positions, torch.from_numpy(slots), plan, torch.arange(20))
        found.append(decoder.logits(decoder.forward(decoder.place(batch), pool)).float().cpu())
        stored = sum(
            x.values.nbytes + x.scale.nbytes if isinstance(x, ops.ScaledPages) else x.nbytes
            for x in (*pool.k, *pool.v)
        )
        assert stored == 4 * pool.bytes_per_page == 4 * KVPool.page_bytes(spec, decoder.kv_dtype)
    assert (found[1] - found[0]).norm() / found[0].norm() < 0.2
    with pytest.raises(WcseError, match="fp8 weights, keys and values need a GPU"):
        Decoder(spec, open_hf(folder), kv_dtype=ops.FP8)
