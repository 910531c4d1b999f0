"""Linear on quantised weights: against float64, bit by bit against the floats they stand for, and over batches.

And the same with inputs rounded to 8 bits, where products are of integers.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import assert_as_good_as_torch, each_isa, each_thread_count

from wcse.kernels import ops, reference
from wcse.types import WcseError

FORMATS = ("int8", "int4")
SHAPES = [(1, 1), (7, 10), (64, 32), (63, 40), (100, 192), (131, 385), (48, 1100), (300, 896)]


def random_codes(n: int, k: int, bits: int, group: int, *, minima: bool, wide: bool) -> ops.QuantizedWeight:
    low, high = (-128, 128) if bits == 8 else (0, 16)
    groups = -(-k // group)
    # 16 significant bits need float32; 11 fit float16.
    scales = torch.randint(1, 1 << (16 if wide else 11), (n, groups)) * 2.0**-18
    lowest = torch.randint(-1000, 1000, (n, groups)) * 2.0**-10
    codes = torch.randint(low, high, (n, k), dtype=torch.int8)
    return ops.QuantizedWeight(codes, scales, lowest if minima else None, bits, group)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64_of_the_unpacked_weight(shape: tuple[int, int], format: ops.Format) -> None:
    n, k = shape
    packed, bias = ops.pack_linear(torch.randn(n, k), format), torch.randn(n)
    weight = packed.weight()
    x, residual = torch.randn(50, k), torch.randn(50, n)
    exact = F.linear(x.double(), weight.double(), bias.double()) + residual
    single = F.linear(x, weight, bias) + residual
    for _ in each_isa():
        assert_as_good_as_torch(ops.linear(x, packed, bias, residual), exact, single, factor=6)
    plain = ops.linear(x, packed, bias, residual, backend="torch")
    assert_as_good_as_torch(plain, exact, single, factor=6)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [16, 32])
@pytest.mark.parametrize("minima", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_the_bits_are_those_of_the_floats_in_any_batch(
    bits: int, group: int, minima: bool, wide: bool
) -> None:
    """A file gives the same numbers whether its weights stay quantised or not."""
    for n, k in ((70, 40), (130, 900)):
        codes = random_codes(n, k, bits, group, minima=minima, wide=wide)
        packed = ops.pack_quantized(codes)
        assert (packed.bits, packed.group, packed.wide, packed.minima) == (bits, group, wide, minima)
        assert torch.equal(packed.weight(), codes.weight())
        x, bias, residual = torch.randn(40, k), torch.randn(n), torch.randn(40, n)
        for _ in each_isa():
            whole = ops.linear(x, ops.pack_linear(codes.weight()), bias, residual)
            assert torch.equal(ops.linear(x, packed, bias, residual), whole)
            for rows in (1, 2, 3, 4, 5, 7, 9, 13, 17, 25):
                for begin in (0, 40 - rows):
                    part = slice(begin, begin + rows)
                    assert torch.equal(ops.linear(x[part], packed, bias, residual[part]), whole[part])


@pytest.mark.parametrize("format", ops.INTEGER)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integer_products_against_float64_of_the_rounded_inputs(
    shape: tuple[int, int], format: ops.Format
) -> None:
    n, k = shape
    packed, bias = ops.pack_linear(torch.randn(n, k), format), torch.randn(n)
    x, residual = torch.randn(50, k), torch.randn(50, n)
    exact = ops.linear(x.double(), packed, bias.double(), residual.double(), backend="torch")
    single = ops.linear(x, packed, bias, residual, backend="torch")
    for _ in each_isa(integer=True):
        whole = ops.linear(x, packed, bias, residual)
        assert_as_good_as_torch(whole, exact, single, factor=6)
        for begin, end in ((0, 1), (1, 3), (3, 6), (6, 10), (10, 15), (15, 21), (21, 28), (28, 50)):
            part = ops.linear(x[begin:end], packed, bias, residual[begin:end])
            assert torch.equal(part, whole[begin:end])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [16, 32])
@pytest.mark.parametrize("minima", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_integer_products_are_exact_where_the_scales_allow(
    bits: int, group: int, minima: bool, wide: bool
) -> None:
    """With powers of two as scales nothing is rounded: the smallest and largest codes, and no overflow."""
    for n, k in ((70, 40), (130, 900)):
        codes = random_codes(n, k, bits, group, minima=minima, wide=wide)
        scale = 2.0**-3 * (1 + 2.0**-12 if wide else 1)
        codes = replace(codes, scales=torch.full_like(codes.scales, scale))
        codes.codes[0], codes.codes[1] = (-128, 127) if bits == 8 else (0, 15)
        if codes.minima is not None:
            codes = replace(codes, minima=(codes.minima * 8).round() / 8)
        packed = ops.pack_quantized(codes, integer=True)
        assert (packed.bits, packed.group, packed.minima, packed.integer) == (bits, group, minima, True)
        x = torch.randint(-127, 128, (9, k)).float()
        x[0], x[1] = 127, -127
        x[:, ::16] = 127  # the largest of every group: its scale is 1
        exact = ops.linear(x.double(), packed, backend="torch")
        for _ in each_isa(integer=True):
            got = ops.linear(x, packed).double()
            if wide or minima:
                torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-2)
            else:
                assert torch.equal(got, exact)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1 << 30),
    k=st.integers(1, 90),
    group=st.sampled_from([16, 32]),
    scale=st.sampled_from([0.0, 1e-38, 1e-30, 1.0, 1e30]),
)
def test_rounding_moves_an_input_by_at_most_half_a_step(seed: int, k: int, group: int, scale: float) -> None:
    x = torch.randn(3, k, generator=torch.Generator().manual_seed(seed)) * scale
    padded = torch.zeros(3, -(-k // group) * group)
    padded[:, :k] = x
    step = padded.view(3, -1, group).abs().amax(-1) / 127
    error = torch.zeros_like(padded)
    error[:, :k] = reference.rounded(x, group) - x
    assert bool((error.view(3, -1, group).abs().amax(-1) <= 0.5001 * step + 2.0**-120).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_input_that_is_not_finite_spoils_its_row_only(value: float) -> None:
    for rows in (4, 30):
        x = torch.randn(rows, 100)
        spoiled = x.clone()
        spoiled[3, 50] = value
        for format in ops.INTEGER:
            packed = ops.pack_linear(torch.randn(33, 100), format)
            for _ in each_isa(integer=True):
                clean, got = ops.linear(x, packed), ops.linear(spoiled, packed)
                assert got[3].isnan().all()
                got[3] = clean[3]
                assert torch.equal(got, clean)


@pytest.mark.parametrize("format", (*FORMATS, *ops.INTEGER))
def test_threads_do_not_change_bits(format: ops.Format) -> None:
    packed = ops.pack_linear(torch.randn(700, 500), format)
    for rows in (2, 150):
        x = torch.randn(rows, 500)
        for _ in each_isa(integer=format in ops.INTEGER):
            first, *others = each_thread_count(lambda x=x: ops.linear(x, packed))
            assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("format", FORMATS)
def test_a_nan_row_spoils_itself_only(format: ops.Format) -> None:
    packed = ops.pack_linear(torch.randn(33, 100), format)
    for rows in (4, 30):
        x = torch.randn(rows, 100)
        spoiled = x.clone()
        spoiled[3, 50] = float("nan")
        for _ in each_isa():
            clean, got = ops.linear(x, packed), ops.linear(spoiled, packed)
            assert got[3].isnan().all()
            got[3] = clean[3]
            assert torch.equal(got, clean)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1 << 30),
    n=st.integers(1, 70),
    k=st.integers(1, 90),
    scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e6, 1e30]),
    bits=st.sampled_from([8, 4]),
)
def test_quantising_moves_a_weight_by_less_than_a_step(
    seed: int, n: int, k: int, scale: float, bits: int
) -> None:
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * scale
    codes = ops.quantize(weight, bits)
    padded = torch.zeros(n, -(-k // 32) * 32, dtype=torch.float64)
    padded[:, :k] = codes.weight() - weight
    error = padded.view(n, -1, 32).square().mean(-1).sqrt()
    padded[:, :k] = weight
    groups = padded.view(n, -1, 32)
    step = groups.abs().amax(-1) / 127 if bits == 8 else (groups.amax(-1) - groups.amin(-1)) / 15
    floor = 2e-3 * step.amax() + 1e-38  # scales of float16 are rounded
    assert bool((error <= 0.62 * step + floor).all())
    assert torch.equal(ops.pack_quantized(codes).weight(), codes.weight())


def test_what_lies_on_the_grid_is_kept() -> None:
    """A weight that was quantised once is not moved again."""
    for bits in (8, 4):
        codes = ops.quantize(torch.randn(40, 96), bits)
        again = ops.quantize(codes.weight(), bits)
        torch.testing.assert_close(again.weight(), codes.weight(), rtol=0, atol=4e-3)


@pytest.mark.parametrize("bits", [8, 4])
def test_constant_groups(bits: int) -> None:
    for value in (0.0, 0.25, -3.0):
        weight = torch.full((3, 64), value)
        torch.testing.assert_close(ops.quantize(weight, bits).weight(), weight, rtol=1e-3, atol=0)


@pytest.mark.parametrize("format", ["fp32", *FORMATS])
def test_rows_are_gathered(format: ops.Format) -> None:
    packed = ops.pack_linear(torch.randn(131, 70), format)
    index = torch.tensor([130, 0, 64, 63, 17, 17])
    assert torch.equal(packed.rows(index), packed.weight()[index])


def test_stacked_parts_of_different_kinds_keep_their_weights() -> None:
    parts = [
        random_codes(20, 80, 8, 32, minima=False, wide=False),
        random_codes(7, 80, 4, 32, minima=True, wide=True),
        random_codes(30, 80, 8, 16, minima=False, wide=True),
    ]
    stacked = ops.stack(parts)
    assert (stacked.bits, stacked.group) == (8, 16)
    assert torch.equal(stacked.weight(), torch.cat([part.weight() for part in parts]))
    alone = ops.stack(parts[:1])
    assert alone.minima is None and torch.equal(alone.weight(), parts[0].weight())


def test_the_path_of_a_batch_is_told() -> None:
    few = {"avx512": 16, "avx2": 12, "portable": 6}
    for isa in each_isa():
        assert ops.linear_paths(None) == f"float32 tiles ({isa}) for any number of rows"
        assert ops.linear_paths("int4").startswith(
            f"up to {few[isa]} rows weights are unpacked in registers ({isa})"
        )
        for quantization in ("w8a8", "w4a8", "gguf_a8"):
            assert f"integer dot products ({isa})" in ops.linear_paths(quantization)


def test_memory() -> None:
    weight = torch.randn(640, 576)
    bits = {f: ops.pack_linear(weight, f).nbytes * 8 / weight.numel() for f in ("fp32", *FORMATS)}
    assert bits == {"fp32": 32, "int8": 8.5, "int4": 5}


def test_bad_input_is_refused() -> None:
    with pytest.raises(
        WcseError, match="format='int3' is unknown; use 'fp32', 'int8', 'int4', 'w8a8', 'w4a8'"
    ):
        ops.pack_linear(torch.randn(3, 3), "int3")  # type: ignore[arg-type]
    with pytest.raises(WcseError, match="holds a NaN or an infinity"):
        ops.pack_linear(torch.tensor([[1.0, float("nan")]]), "int8")
