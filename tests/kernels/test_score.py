"""Step scores: the native op against its reference, extremes, independence of the batch, refusals."""

from __future__ import annotations

import pytest
import torch

from wcse.kernels import ops
from wcse.types import WcseError


def head(sizes: list[int], seed: int = 0) -> list[tuple[ops.PackedLinear, torch.Tensor | None]]:
    generator = torch.Generator().manual_seed(seed)
    pairs = zip(sizes[1:], sizes, strict=False)
    return [
        (
            ops.pack_linear(torch.randn(n, k, generator=generator) / k**0.5),
            torch.randn(n, generator=generator),
        )
        for n, k in pairs
    ]


@pytest.mark.parametrize("sizes", [[64, 1], [64, 2], [48, 33, 2], [40, 40, 1]])
@pytest.mark.parametrize("bounded", [True, False])
def test_the_native_op_equals_its_reference(sizes: list[int], bounded: bool) -> None:
    hidden = torch.randn(19, sizes[0], generator=torch.Generator().manual_seed(1))
    rows = torch.tensor([3, 18, 0, 3, 7], dtype=torch.int32)
    layers = head(sizes)
    found = ops.score_steps(hidden, rows, layers, bounded=bounded)
    expected = ops.score_steps(hidden.double(), rows, layers, bounded=bounded, backend="torch")
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[0], found[3])
    each = [ops.score_steps(hidden, rows[i : i + 1], layers, bounded=bounded) for i in range(5)]
    assert torch.equal(torch.cat(each), found)
    assert ops.score_steps(hidden, rows[:0], layers).shape == (0,)


def test_extremes_stay_finite_and_ordered() -> None:
    layers = [(ops.pack_linear(torch.tensor([[-1.0], [1.0]])), None)]
    z = torch.tensor([[-300.0], [-40.0], [-20.0], [0.0], [8.0]])
    scores = ops.score_steps(z, torch.arange(5, dtype=torch.int32), layers)
    assert torch.isfinite(scores).all()
    assert scores.tolist() == sorted(scores.tolist())
    assert scores[3] == 0.5 and scores[1] > 0
    broken = ops.score_steps(torch.tensor([[float("nan")]]), torch.zeros(1, dtype=torch.int32), layers)
    assert broken.isnan().all()


def test_what_does_not_fit_is_refused() -> None:
    hidden = torch.zeros(3, 8)
    with pytest.raises(WcseError, match=r"rows\[0\]=3 is outside the 3 hidden states"):
        ops.score_steps(hidden, torch.tensor([3], dtype=torch.int32), head([8, 2]))
    with pytest.raises(WcseError, match="layer 0 takes 9 columns and gets 8"):
        ops.score_steps(hidden, torch.tensor([0], dtype=torch.int32), head([9, 2]))
    with pytest.raises(WcseError, match="the head has 3 outputs"):
        ops.score_steps(hidden, torch.tensor([0], dtype=torch.int32), head([8, 3]))
