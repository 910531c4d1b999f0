"""Norms, gated activations and rotary embedding: against float64, row by row, and what may not be written."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import assert_as_good_as_torch, each_isa, each_thread_count

from wcse.kernels import ops, reference
from wcse.types import WcseError

WIDTHS = [1, 8, 15, 16, 40, 192, 576, 1000]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(width: int, offset: float) -> None:
    x, weight = torch.randn(7, width) * 3, torch.randn(width)
    exact = reference.rms_norm(x.double(), weight.double(), eps=1e-5, offset=offset)
    single = reference.rms_norm(x, weight, eps=1e-5, offset=offset)
    for _ in each_isa():
        got = ops.rms_norm(x, weight, eps=1e-5, offset=offset)
        assert_as_good_as_torch(got, exact, single)
        assert all(
            torch.equal(ops.rms_norm(x[i : i + 1], weight, eps=1e-5, offset=offset)[0], got[i])
            for i in (0, 4)
        )


@pytest.mark.parametrize("width", WIDTHS)
def test_add_rms_norm(width: int) -> None:
    residual, x, weight = torch.randn(5, width), torch.randn(5, width), torch.randn(width)
    for _ in each_isa():
        total = residual.clone()
        got = ops.add_rms_norm(total, x, weight, eps=1e-6)
        assert torch.equal(total, residual + x)
        assert torch.equal(got, ops.rms_norm(total, weight, eps=1e-6))


def test_rms_norm_of_zeros_and_of_large_values() -> None:
    x, weight = torch.zeros(2, 64), torch.ones(64)
    x[1] = 1e15
    for _ in each_isa():
        got = ops.rms_norm(x, weight, eps=1e-6)
        assert torch.equal(got[0], torch.zeros(64))
        assert torch.allclose(got[1], torch.ones(64))


@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("width", WIDTHS)
def test_gated_act(act: ops.Activation, width: int) -> None:
    gate_up = torch.randn(5, 2 * width) * 4
    exact, single = reference.gated_act(gate_up.double(), act=act), reference.gated_act(gate_up, act=act)
    for _ in each_isa():
        assert_as_good_as_torch(ops.gated_act(gate_up, act), exact, single)


@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
def test_gated_act_far_out(act: ops.Activation) -> None:
    gate = torch.tensor([[-1e4, -200.0, -88.0, -30.0, 0.0, 30.0, 200.0, 1e4]])
    gate_up = torch.cat([gate, torch.ones_like(gate)], dim=1)
    exact = reference.gated_act(gate_up.double(), act=act)
    for _ in each_isa():
        torch.testing.assert_close(ops.gated_act(gate_up, act).double(), exact, rtol=1e-6, atol=1e-8)


def test_threads_do_not_change_bits() -> None:
    x, weight = torch.randn(500, 600), torch.randn(600)
    for run in (lambda: ops.rms_norm(x, weight, eps=1e-5), lambda: ops.gated_act(x)):
        first, *others = each_thread_count(run)
        assert all(torch.equal(first, other) for other in others)


# ---------------------------------------------------------------------------------------------- rope_write_kv


class RopeCase:
    """Inputs of one call: 5 rows, 2 query heads on 1 key/value head, a pool of 4 pages."""

    def __init__(self, head_dim: int, norms: bool = False) -> None:
        self.qkv = torch.randn(5, 4 * head_dim)
        self.positions = torch.tensor([0, 3, 9, 4, 4], dtype=torch.int32)
        self.slots = torch.tensor([17, 0, 63, 31, 32], dtype=torch.int32)
        angle = torch.randn(10, head_dim // 2)
        self.cos, self.sin = angle.cos(), angle.sin()
        self.q_norm, self.k_norm = (torch.randn(head_dim), torch.randn(head_dim)) if norms else (None, None)
        self.k, self.v = torch.full((4, 1, head_dim, 16), 7.0), torch.full((4, 1, 16, head_dim), 7.0)

    def run(
        self, dtype: torch.dtype, backend: ops.Backend
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries and both pools after the call; the case's own pools are left alone."""
        k, v = self.k.to(dtype, copy=True), self.v.to(dtype, copy=True)
        weights = [None if weight is None else weight.to(dtype) for weight in (self.q_norm, self.k_norm)]
        q = ops.rope_write_kv(
            self.qkv.to(dtype),
            self.positions,
            self.slots,
            self.cos.to(dtype),
            self.sin.to(dtype),
            k,
            v,
            n_heads=2,
            n_kv_heads=1,
            q_norm=weights[0],
            k_norm=weights[1],
            eps=1e-6,
            norm_offset=0.5,
            backend=backend,
        )
        return q, k, v


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("head_dim", [8, 32, 40, 64, 80, 96, 128, 256])
def test_rope_write_kv(head_dim: int, norms: bool) -> None:
    case = RopeCase(head_dim, norms)
    exact, single = case.run(torch.float64, "torch"), case.run(torch.float32, "torch")
    for _ in each_isa():
        got = case.run(torch.float32, "cpp")
        for tensor, want, torch_float32 in zip(got, exact, single, strict=True):
            assert_as_good_as_torch(tensor, want, torch_float32)
        assert torch.equal(got[1] == 7.0, single[1] == 7.0), "wrote to a slot of no row"
        assert torch.equal(got[2], single[2]), "values are copied"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_stored_as_zero(bad: float) -> None:
    case = RopeCase(32)
    case.qkv[2, 2 * 32 + 5] = bad  # a key: rotation spreads it to two elements
    case.qkv[2, 3 * 32 + 6] = bad  # a value
    for _ in each_isa():
        _, k, v = case.run(torch.float32, "cpp")
        assert k.isfinite().all() and v.isfinite().all()
        assert k[3, 0, 5, 15] == 0 and k[3, 0, 21, 15] == 0 and v[3, 0, 15, 6] == 0
        assert k[3, 0, 4, 15] != 0 and v[3, 0, 15, 5] != 0


@pytest.mark.parametrize(
    ("field", "value"), [("positions", 10), ("positions", -1), ("slots", 64), ("slots", -1)]
)
def test_indices_out_of_range_are_refused_before_anything_is_written(field: str, value: int) -> None:
    case = RopeCase(16)
    getattr(case, field)[4] = value
    before = case.k.clone()
    with pytest.raises(WcseError, match=rf"{field}\[4\]={value} is outside"):
        ops.rope_write_kv(
            case.qkv, case.positions, case.slots, case.cos, case.sin, case.k, case.v, n_heads=2, n_kv_heads=1
        )
    assert torch.equal(case.k, before)


def test_bad_input_is_refused() -> None:
    x = torch.randn(3, 8)
    with pytest.raises(WcseError, match=r"weight has shape \(7,\); expected \(8,\)"):
        ops.rms_norm(x, torch.ones(7), eps=1e-6)
    with pytest.raises(WcseError, match="x is not contiguous"):
        ops.rms_norm(torch.randn(8, 3).t(), torch.ones(8), eps=1e-6)
    with pytest.raises(WcseError, match=r"x has shape \(2, 8\); expected \(3, 8\)"):
        ops.add_rms_norm(x, x[:2], torch.ones(8), eps=1e-6)
    with pytest.raises(WcseError, match="act='relu' is unknown"):
        ops.gated_act(x, "relu")  # type: ignore[arg-type]
    with pytest.raises(WcseError, match="gate_up has 7 columns; expected an even number"):
        ops.gated_act(torch.randn(3, 7))
    case = RopeCase(16)
    case.positions = case.positions.long()
    with pytest.raises(WcseError, match=r"positions has dtype torch\.int64"):
        case.run(torch.float32, "cpp")
    case = RopeCase(16)
    case.k = case.k[:, :, :8]
    with pytest.raises(WcseError, match=r"k_pages has shape"):
        case.run(torch.float32, "cpp")
