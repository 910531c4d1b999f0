"""Instruction sets: which there are, and that AVX2 and AVX-512 agree to the bit in every op."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_cases import Forest, attend, each_isa

from wcse import _core
from wcse.kernels import ops


def test_portable_always_runs_and_the_best_is_the_default() -> None:
    assert _core.cpu_isas()[-1] == "portable"
    assert _core.cpu_isa() == _core.cpu_isas()[0]


def test_an_unknown_isa_is_refused() -> None:
    with pytest.raises(ValueError, match=r"isa 'mmx' does not run here; use one of: .*portable"):
        _core.set_cpu_isa("mmx")


def attention() -> torch.Tensor:
    forest = Forest(kv_heads=2, group=3, head_dim=40)
    forest.add("p", None, 100)
    forest.add("a", "p", 70)
    plan = forest.plan([("a", 30)])
    return attend(forest.queries([("a", 30)], plan), forest.k, forest.v, plan, softcap=8.0, window=90)


def draws() -> torch.Tensor:
    count = 300
    tokens, logprobs = ops.sample(
        torch.randn(count, 3000) * 2,
        torch.arange(count, dtype=torch.int32),
        torch.rand(count) + 0.2,
        torch.zeros(count, dtype=torch.int32),
        torch.rand(count) * 0.5 + 0.5,
        torch.zeros(count),
        torch.arange(count),
        torch.zeros(count, dtype=torch.int32),
    )
    return torch.stack([tokens.float(), logprobs])


@pytest.mark.skipif("avx512" not in _core.cpu_isas(), reason="needs AVX-512")
@pytest.mark.parametrize(
    "run",
    [
        attention,
        draws,
        lambda: ops.linear(torch.randn(11, 500), ops.pack_linear(torch.randn(90, 500)), torch.randn(90)),
        lambda: ops.linear(torch.randn(11, 500), ops.pack_linear(torch.randn(90, 500), "w8a8")),
        lambda: ops.linear(torch.randn(11, 500), ops.pack_linear(torch.randn(90, 500), "w4a8")),
        lambda: ops.rms_norm(torch.randn(5, 300), torch.randn(300), eps=1e-6),
        lambda: ops.gated_act(torch.randn(5, 300)),
        lambda: ops.gated_act(torch.randn(5, 300), "gelu_tanh"),
    ],
    ids=["tree_attention", "sample", "linear", "w8a8", "w4a8", "rms_norm", "silu", "gelu_tanh"],
)
def test_avx2_and_avx512_give_the_same_bits(run: Callable[[], torch.Tensor]) -> None:
    results = {}
    for isa in each_isa(integer=True):
        torch.manual_seed(1)
        results[isa] = run()
    for isa, result in results.items():
        assert isa == "portable" or torch.equal(result, results["avx2"])
