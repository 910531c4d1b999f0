"""Linear on packed weights: against float64, and bit by bit over batches, places and threads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import assert_as_good_as_torch, each_isa, each_thread_count

from wcse.kernels import ops
from wcse.types import WcseError


@pytest.mark.parametrize("n", [1, 7, 8, 16, 17, 63, 64, 80, 131])
@pytest.mark.parametrize("k", [1, 8, 10, 192, 385, 800])
def test_against_float64(n: int, k: int) -> None:
    weight, bias = torch.randn(n, k), torch.randn(n)
    packed = ops.pack_linear(weight)
    sizes = (1, 2, 3, 5, 6, 7, 13, 100)  # of batches that together are the rows
    x, residual = torch.randn(sum(sizes), k), torch.randn(sum(sizes), n)
    exact = F.linear(x.double(), weight.double(), bias.double()) + residual
    single = F.linear(x, weight, bias) + residual
    for _ in each_isa():
        batches = zip(x.split(sizes), residual.split(sizes), strict=True)
        got = torch.cat([ops.linear(rows, packed, bias, added) for rows, added in batches])
        assert_as_good_as_torch(got, exact, single, factor=6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_optional_operands(bias: bool, residual: bool) -> None:
    x, weight = torch.randn(9, 1000), torch.randn(70, 1000)
    b = torch.randn(70) if bias else None
    r = torch.randn(9, 70) if residual else None
    exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
    exact = exact if r is None else exact + r
    single = F.linear(x, weight, b) if r is None else F.linear(x, weight, b) + r
    for _ in each_isa():
        got = ops.linear(x, ops.pack_linear(weight), b, r)
        assert_as_good_as_torch(got, exact, single, factor=6)


def test_a_result_in_given_memory() -> None:
    x, packed, memory = torch.randn(3, 8), ops.pack_linear(torch.randn(70, 8)), torch.full((5, 70), 7.0)
    got = ops.linear(x, packed, out=memory[:3])
    assert got.data_ptr() == memory.data_ptr() and torch.equal(got, ops.linear(x, packed))
    assert (memory[3:] == 7).all()
    with pytest.raises(WcseError, match=r"out has shape \(5, 70\); expected \(3, 70\)"):
        ops.linear(x, packed, out=memory)
    with pytest.raises(WcseError, match="out: only the native kernel"):
        ops.linear(x, packed, out=memory[:3], backend="torch")


@pytest.mark.parametrize("shape", [(64, 8), (100, 192), (1200, 130), (48, 1100)], ids=str)
def test_a_row_does_not_depend_on_its_batch(shape: tuple[int, int]) -> None:
    n, k = shape
    x, packed, bias, residual = (
        torch.randn(200, k),
        ops.pack_linear(torch.randn(n, k)),
        torch.randn(n),
        torch.randn(200, n),
    )
    for _ in each_isa():
        whole = ops.linear(x, packed, bias, residual)
        for begin, end in ((0, 1), (3, 5), (7, 10), (11, 16), (50, 150), (199, 200)):
            part = ops.linear(x[begin:end], packed, bias, residual[begin:end])
            assert torch.equal(part, whole[begin:end])
        shuffled = torch.randperm(200)
        assert torch.equal(ops.linear(x[shuffled], packed, bias, residual[shuffled]), whole[shuffled])


def test_threads_do_not_change_bits() -> None:
    x, packed = torch.randn(150, 500), ops.pack_linear(torch.randn(700, 500))
    for _ in each_isa():
        first, *others = each_thread_count(lambda: ops.linear(x, packed))
        assert all(torch.equal(first, other) for other in others)


def test_a_nan_row_spoils_itself_only() -> None:
    x, packed = torch.randn(8, 100), ops.pack_linear(torch.randn(33, 100))
    spoiled = x.clone()
    spoiled[3, 50] = float("nan")
    for _ in each_isa():
        clean, got = ops.linear(x, packed), ops.linear(spoiled, packed)
        assert got[3].isnan().all()
        got[3] = clean[3]
        assert torch.equal(got, clean)


def test_no_rows() -> None:
    assert ops.linear(torch.empty(0, 8), ops.pack_linear(torch.randn(5, 8))).shape == (0, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pack_takes_any_float_dtype(dtype: torch.dtype) -> None:
    weight = torch.randn(37, 20).to(dtype)
    packed = ops.pack_linear(weight)
    assert packed.panels.dtype == torch.float32 and packed.panels.shape == (3, 20, 16)
    assert torch.equal(packed.weight(), weight.float())


def test_pack_takes_a_strided_weight_and_does_not_alias() -> None:
    weight = torch.randn(20, 32).t()
    packed = ops.pack_linear(weight)
    before = packed.weight()
    weight.zero_()
    assert torch.equal(packed.weight(), before)


def test_bad_input_is_refused() -> None:
    packed = ops.pack_linear(torch.randn(6, 8))
    with pytest.raises(WcseError, match=r"weight has shape \(6,\)"):
        ops.pack_linear(torch.randn(6))
    with pytest.raises(WcseError, match=r"dtype torch\.int64"):
        ops.pack_linear(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(WcseError, match="x has 7 columns; the weight takes 8"):
        ops.linear(torch.randn(2, 7), packed)
    with pytest.raises(WcseError, match=r"x is not contiguous \(strides \(1, 3\)\)"):
        ops.linear(torch.randn(8, 3).t(), packed)
    with pytest.raises(WcseError, match=r"x has dtype torch\.float64"):
        ops.linear(torch.randn(2, 8).double(), packed)
    with pytest.raises(WcseError, match=r"bias has shape \(8,\); expected \(6,\)"):
        ops.linear(torch.randn(2, 8), packed, torch.randn(8))
    with pytest.raises(WcseError, match=r"residual has shape \(1, 6\); expected \(2, 6\)"):
        ops.linear(torch.randn(2, 8), packed, None, torch.randn(1, 6))
