"""Row kernels in Triton against float64: norms, activation, rotation and the write of keys and values."""

from __future__ import annotations

import pytest
import torch

from wcse.kernels import ops
from wcse.types import WcseError

pytest.importorskip("triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE.type == "cuda" else [])
ALLOWED = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def close(got: torch.Tensor, exact: torch.Tensor) -> None:
    allowed = ALLOWED[got.dtype]
    torch.testing.assert_close(got.cpu().double(), exact, rtol=allowed, atol=allowed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 100, 2048])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norms(dtype: torch.dtype, width: int, offset: float) -> None:
    x, residual, weight = torch.randn(5, width), torch.randn(5, width), torch.randn(width)
    x, residual = x.to(dtype), residual.to(dtype)
    got = ops.rms_norm(x.to(DEVICE), weight.to(DEVICE), eps=1e-6, offset=offset, backend="triton")
    close(got, ops.rms_norm(x.double(), weight.double(), eps=1e-6, offset=offset, backend="torch"))
    total = residual.to(DEVICE).clone()
    got = ops.add_rms_norm(total, x.to(DEVICE), weight.to(DEVICE), eps=1e-6, offset=offset, backend="triton")
    assert torch.equal(total.cpu(), residual + x)
    close(
        got, ops.rms_norm((residual + x).double(), weight.double(), eps=1e-6, offset=offset, backend="torch")
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("width", [2, 100, 3000])
def test_gated_act(dtype: torch.dtype, act: ops.Activation, width: int) -> None:
    x = (torch.randn(4, width) * 4).to(dtype)
    x[0, 0] = 60.0  # where exp would overflow in half precision
    x[1, 0] = -60.0
    close(ops.gated_act(x.to(DEVICE), act, backend="triton"), ops.gated_act(x.double(), act, backend="torch"))


def rope_case(dtype: torch.dtype, heads: tuple[int, int], d: int) -> dict[str, torch.Tensor]:
    n_heads, n_kv = heads
    generator = torch.Generator().manual_seed(d)
    angles = torch.rand(50, d // 2, generator=generator) * 6
    return {
        "qkv": torch.randn(7, (n_heads + 2 * n_kv) * d, generator=generator).to(dtype),
        "positions": torch.tensor([0, 3, 49, 7, 7, 1, 20], dtype=torch.int32),
        "slots": torch.tensor([5, 16, 79, 0, 33, 34, 63], dtype=torch.int32),
        "cos": angles.cos(),
        "sin": angles.sin(),
    }


def pools(dtype: torch.dtype, n_kv: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys as the view that Triton takes."""
    return (
        torch.zeros(5, n_kv, 16, d, dtype=dtype, device=DEVICE).transpose(2, 3),
        torch.zeros(5, n_kv, 16, d, dtype=dtype, device=DEVICE),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (7, 1)], ids=str)
@pytest.mark.parametrize(("d", "norm"), [(32, False), (48, True), (64, True), (128, False), (256, False)])
def test_rope_write_kv(dtype: torch.dtype, heads: tuple[int, int], d: int, norm: bool) -> None:
    case = rope_case(dtype, heads, d)
    norms = {name: torch.rand(d) for name in ("q_norm", "k_norm")} if norm else {}
    options = {"n_heads": heads[0], "n_kv_heads": heads[1], "eps": 1e-5, "norm_offset": 0.5}
    k, v = torch.zeros(5, heads[1], d, 16).double(), torch.zeros(5, heads[1], 16, d).double()
    wide = [x.double() if x.is_floating_point() else x for x in case.values()]
    wide_norms = {name: x.double() for name, x in norms.items()}
    exact = ops.rope_write_kv(*wide, k, v, **options, **wide_norms, backend="torch")
    got_k, got_v = pools(dtype, heads[1], d)
    there = {name: x.to(DEVICE) for name, x in norms.items()}
    got = ops.rope_write_kv(
        *(x.to(DEVICE) for x in case.values()), got_k, got_v, **options, **there, backend="triton"
    )
    close(got, exact)
    close(got_k, k)
    close(got_v, v)


def test_what_is_not_finite_is_stored_as_zero() -> None:
    """Also what becomes infinite in the pool's dtype only."""
    case = rope_case(torch.float32, (2, 1), 32)
    case["qkv"][1, 64:128] = torch.tensor([float("nan"), float("inf")]).repeat(32)
    case["qkv"][2, 64:128] = 1e5  # more than float16 holds
    k, v = pools(torch.float16, 1, 32)
    q = ops.rope_write_kv(
        *(x.to(DEVICE) for x in case.values()), k, v, n_heads=2, n_kv_heads=1, backend="triton"
    )
    assert k.isfinite().all() and v.isfinite().all() and q.isfinite().all()
    assert (v[1, 0, 0] == 0).all() and (v[4, 0, 15] == 0).all() and (v[0, 0, 5] != 0).any()


def test_a_negative_slot_writes_nothing() -> None:
    case = rope_case(torch.float32, (2, 1), 32)
    case["slots"].fill_(-1)
    k, v = pools(torch.float32, 1, 32)
    ops.rope_write_kv(*(x.to(DEVICE) for x in case.values()), k, v, n_heads=2, n_kv_heads=1, backend="triton")
    assert not k.any() and not v.any()


def test_bad_input_is_refused() -> None:
    x, weight = torch.randn(3, 8, device=DEVICE), torch.randn(8, device=DEVICE)
    with pytest.raises(WcseError, match=r"x has dtype torch\.float64"):
        ops.rms_norm(x.double(), weight, eps=1e-6, backend="triton")
    with pytest.raises(WcseError, match=r"weight has shape \(7,\)"):
        ops.rms_norm(x, weight[:7], eps=1e-6, backend="triton")
    with pytest.raises(WcseError, match="x is not contiguous"):
        ops.rms_norm(x.t().contiguous().t(), weight, eps=1e-6, backend="triton")
