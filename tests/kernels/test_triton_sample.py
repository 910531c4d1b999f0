"""The sampler in Triton: the native sampler's tokens, ties, broken rows; step scores and the best of groups."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wcse.kernels import ops, reference
from wcse.types import PathScores, WcseError

pytest.importorskip("triton")

from wcse.kernels.triton import sampler

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "keys": 0, "counters": 0}
DTYPES = {"temperature": torch.float32, "top_k": torch.int32, "top_p": torch.float32, "min_p": torch.float32}


def both(
    logits: torch.Tensor, draws: int | None = None, **fields: object
) -> list[tuple[list[int], torch.Tensor]]:
    """Tokens and logprobs of the native sampler and of the Triton one."""
    count = len(logits) if draws is None else draws
    rows = torch.arange(count, dtype=torch.int32) % len(logits)
    values = {
        name: torch.as_tensor(fields.get(name, default))
        .to(DTYPES.get(name, torch.int64 if name == "keys" else torch.int32))
        .expand(count)
        .contiguous()
        for name, default in DEFAULTS.items()
    }
    native = ops.sample(logits.float(), rows, *values.values(), backend="cpp")
    ours = ops.sample(logits.to(DEVICE), rows, *values.values(), backend="triton")
    return [(tokens.tolist(), logprobs.cpu()) for tokens, logprobs in (native, ours)]


def same(logits: torch.Tensor, draws: int | None = None, **fields: object) -> list[int]:
    (tokens, logprobs), (got, got_logprobs) = both(logits, draws, **fields)
    assert got == tokens
    torch.testing.assert_close(got_logprobs, logprobs, rtol=1e-5, atol=1e-5, equal_nan=True)
    return got


def test_the_same_random_numbers() -> None:
    """Of 2^10 equal logits, token floor(u * 2^10) is drawn."""
    keys = [0, 1, -1, 2**63 - 1, -(2**63), 0x299F31D0A4093822]
    pairs = [(key, counter) for key in keys for counter in (0, 1, 0x243F6A88)]
    tokens = same(
        torch.zeros(1, 2**10),
        len(pairs),
        keys=torch.tensor([key for key, _ in pairs]),
        counters=torch.tensor([counter for _, counter in pairs]),
    )
    assert tokens == [int(reference.uniform(key % 2**64, counter) * 2**10) for key, counter in pairs]


@pytest.mark.parametrize("vocab", [1, 17, 1000, 1025, 3000])
def test_random_parameters(vocab: int) -> None:
    count = 12
    generator = torch.Generator().manual_seed(vocab)
    fields = {
        "temperature": torch.rand(count, generator=generator) * 2 + 0.1,
        "top_k": torch.randint(-1, 60, (count,), generator=generator),
        "top_p": torch.rand(count, generator=generator) * 0.95 + 0.05,
        "min_p": torch.rand(count, generator=generator) * 0.2,
        "keys": torch.randint(-(2**62), 2**62, (count,), generator=generator),
        "counters": torch.randint(0, 1000, (count,), generator=generator),
    }
    fields["top_k"][::2] = 0
    fields["top_p"][::3] = 1.0
    fields["min_p"][::4] = 0.0
    same(torch.randn(count, vocab, generator=generator) * 3, **fields)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([-math.inf, -30.0, -1.0, -0.0, 0.0, 0.5, 1.0]), min_size=1, max_size=40),
    st.integers(0, 8),
    st.sampled_from([0.11, 0.31, 0.52, 0.77, 0.93, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.integers(0, 2**62),
)
def test_ties(
    values: list[float], top_k: int, top_p: float, min_p: float, temperature: float, key: int
) -> None:
    logits = torch.tensor([values])
    same(logits, top_k=top_k, top_p=top_p, min_p=min_p, temperature=temperature, keys=key)


@pytest.mark.parametrize("ids", [1, 64])
def test_flat_rows(ids: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no list of so many ids can hold is drawn by passes over the row; some of the rows here, and some not."""
    monkeypatch.setattr(sampler, "LIST", ids)
    logits = torch.randn(6, 700) * torch.tensor([0.1, 0.1, 1.0, 1.0, 8.0, 8.0])[:, None]
    logits[:, ::3] = logits[:, ::3].round()  # ties
    logits[3, 5:400] = -float("inf")
    filters = {
        "top_k": torch.tensor([0, 300, 40, 0, 2, 0]),
        "top_p": torch.tensor([0.9, 0.8, 1.0, 0.95, 0.5, 0.7]),
    }
    for min_p in (0.0, 1e-4):
        same(logits, keys=torch.arange(6) * 77, min_p=min_p, temperature=0.9, **filters)


def test_ties_keep_lower_ids() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0, 1.0, 1.0]])
    keys = torch.arange(8)
    for filters in (
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 4},
        {"top_p": 0.7},
        {"top_p": 1e-6},
        {"min_p": 1.0},
    ):
        same(logits, 8, keys=keys, **filters)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_logits(dtype: torch.dtype) -> None:
    """They are exact in float32, so the tokens are the same. (The interpreter can widen bfloat16.)"""
    logits = (torch.randn(8, 2000) * 3).to(dtype)
    same(logits, keys=torch.arange(8), top_p=0.9)
    same(logits, keys=torch.arange(8), top_k=20)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_broken_rows_fail_alone(temperature: float, top_p: float) -> None:
    logits = torch.randn(6, 100)
    logits[0, 99] = float("nan")
    logits[1] = -float("inf")
    logits[2, 3] = float("inf")
    logits[3, 10:] = -float("inf")
    logits[4] = float("nan")
    tokens = same(logits, temperature=temperature, top_p=top_p)
    assert [tokens[i] for i in (0, 1, 2, 4)] == [-1] * 4


def test_extreme_temperatures() -> None:
    logits = torch.randn(1, 300)
    for temperature in (1.2e-38, 1e-6, 1e30):
        for filters in ({}, {"top_p": 0.9}, {"min_p": 0.1}):
            same(logits, temperature=temperature, **filters)


def test_bad_parameters_are_refused() -> None:
    logits = torch.randn(2, 10)
    for field, value in (("temperature", -1.0), ("top_p", 0.0), ("min_p", 1.5), ("top_k", -2)):
        one = {name: torch.full((2,), v) for name, v in DEFAULTS.items()} | {field: torch.full((2,), value)}
        rows = torch.zeros(2, dtype=torch.int32)
        with pytest.raises(WcseError, match=rf"{field}\[0\]="):
            ops.sample(logits.to(DEVICE), rows, *one.values(), backend="triton")


# ---------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("sizes", [(1,), (2,), (24, 2), (24, 8, 1)], ids=str)
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_score_steps(sizes: tuple[int, ...], bounded: bool, biased: bool) -> None:
    hidden, width, layers = torch.randn(20, 100), 100, []
    for size in sizes:
        layers.append((torch.randn(size, width) * width**-0.5, torch.randn(size) if biased else None))
        width = size
    rows = torch.tensor([3, 19, 0, 3, 7, 5], dtype=torch.int32)
    # A first step, two that go on from known paths, and three below steps of the same batch.
    above = torch.tensor([-1, 0, 1, 2, 5, 5], dtype=torch.int32)
    known = torch.tensor([PathScores(), PathScores().then(0.5).then(0.0)], dtype=torch.float64)
    paths = {"known": known, "above": above, "bounded": bounded}
    wide = [(ops.DenseLinear(w.double()), None if b is None else b.double()) for w, b in layers]
    exact = ops.score_steps(hidden.double(), rows, wide, **paths, backend="torch")
    there = [(ops.DenseLinear(w.to(DEVICE)), None if b is None else b.to(DEVICE)) for w, b in layers]
    paths |= {"known": known.to(DEVICE), "above": above.to(DEVICE)}
    got = ops.score_steps(hidden.to(DEVICE), rows.to(DEVICE), there, **paths, backend="triton")
    torch.testing.assert_close(got.cpu(), exact, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_broken_row_scores_nan() -> None:
    x = torch.randn(3, 16)
    x[1, 2] = float("nan")
    rows = torch.arange(3, dtype=torch.int32).to(DEVICE)
    one, two = ((ops.DenseLinear(torch.randn(n, 16).to(DEVICE)), None) for n in (2, 16))
    for layers in ([one], [two, one]):
        got = ops.score_steps(x.to(DEVICE), rows, layers, backend="triton")
        assert got[:, 0].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("how", range(4))
def test_the_best_of_groups(how: int) -> None:
    scores = [0.5, 0.9, math.nan, 0.5, 0.0, 0.9, -0.0, 0.1, math.inf, 0.2]
    group = torch.tensor([0, 1, 0, 0, 2, 1, 2, -1, 2, 1], dtype=torch.int32)
    order = torch.tensor([3, 1, 2, 0, 4, 0, 3, 0, 1, 5], dtype=torch.float64)
    bounds = torch.tensor([0, 4, 6, 7], dtype=torch.int32)
    one = [(ops.DenseLinear(torch.ones(1, 1)), None)]
    known = torch.tensor([PathScores().then(0.25)], dtype=torch.float64)
    above = torch.tensor([0, -1] * 5, dtype=torch.int32)

    def best(backend: ops.Backend, device: str | torch.device) -> list[list[float]]:
        """After two calls."""
        places = torch.tensor([ops.NOBODY] * 7, dtype=torch.float64).to(device)
        for part in (slice(0, 6), slice(6, 10)):
            kinds = torch.full((3,), how, dtype=torch.int32).to(device)
            groups = ops.Groups(
                places, bounds.to(device), kinds, group[part].to(device), order[part].to(device)
            )
            layers = [(ops.DenseLinear(weight.weight().to(device)), bias) for weight, bias in one]
            paths = {"known": known.to(device), "above": above[part].to(device), "groups": groups}
            hidden = torch.tensor(scores)[part, None].to(device)
            rows = torch.arange(len(hidden), dtype=torch.int32).to(device)
            ops.score_steps(hidden, rows, layers, **paths, bounded=False, backend=backend)
        return places.cpu().tolist()

    got, exact = best("triton", DEVICE), best("torch", "cpu")
    assert [place[1] for place in got] == [place[1] for place in exact]
    assert [place[0] for place in got] == pytest.approx([place[0] for place in exact], rel=1e-6)
