"""The sampler: golden random numbers, the filters against float64, the distribution, ties, broken rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import each_isa

from wcse.kernels import ops, reference
from wcse.types import WcseError

FIELDS = {
    "temperature": torch.float32,
    "top_k": torch.int32,
    "top_p": torch.float32,
    "min_p": torch.float32,
    "keys": torch.int64,
    "counters": torch.int32,
}


def draw(
    logits: torch.Tensor, rows: Any = None, *, backend: ops.Backend = "cpp", **fields: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """``ops.sample`` with scalars broadcast over the draws and the usual defaults."""
    index = torch.arange(len(logits)) if rows is None else torch.as_tensor(rows)
    values = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "keys": 0, "counters": 0} | fields
    tensors = [
        torch.as_tensor(values[name]).to(dtype).expand(len(index)).contiguous()
        for name, dtype in FIELDS.items()
    ]
    return ops.sample(logits, index.to(torch.int32), *tensors, backend=backend)


# --------------------------------------------------------------------------------------------- random numbers


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # known answers of Random123, philox4x32 with 10 rounds
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, int, int, int]
) -> None:
    assert reference.philox4x32(counter, key) == words


def test_native_philox_draws_the_same_numbers() -> None:
    """Of 2^16 equal logits, token floor(u * 2^16) is drawn."""
    keys = [0, 1, -1, 2**63 - 1, -(2**63), 0x299F31D0A4093822, 12345678901234567]
    counters = [0, 1, 7, 0x243F6A88, 2**31 - 1]
    pairs = [(key, counter) for key in keys for counter in counters]
    tokens, _ = draw(
        torch.zeros(1, 2**16),
        [0] * len(pairs),
        keys=torch.tensor([key for key, _ in pairs]),
        counters=torch.tensor([counter for _, counter in pairs]),
    )
    want = [int(reference.uniform(key % 2**64, counter) * 2**16) for key, counter in pairs]
    assert tokens.tolist() == want


def test_unsigned_keys_are_the_same_keys() -> None:
    logits = torch.randn(1, 1000)
    numbers = np.array([2**64 - 1, 2**63, 5], dtype=np.uint64)
    args = [
        torch.zeros(3, dtype=torch.int32),
        torch.ones(3),
        torch.zeros(3, dtype=torch.int32),
        torch.ones(3),
    ]
    rest = torch.zeros(3, dtype=torch.int32)
    unsigned = ops.sample(logits, *args, torch.zeros(3), torch.from_numpy(numbers), rest)
    signed = ops.sample(logits, *args, torch.zeros(3), torch.from_numpy(numbers.view(np.int64)), rest)
    assert torch.equal(unsigned[0], signed[0])


# ---------------------------------------------------------------------------------------------------- filters


def check_draws(
    logits: torch.Tensor, tokens: torch.Tensor, logprobs: torch.Tensor, **fields: torch.Tensor
) -> None:
    """Each token is the one that float64 draws, unless u lies within rounding of a boundary."""
    wide = logits.double()
    for i, token in enumerate(tokens.tolist()):
        one = {name: fields[name][i].item() for name in ("temperature", "top_k", "top_p", "min_p")}
        u = reference.uniform(int(fields["keys"][i]) % 2**64, int(fields["counters"][i]))
        keep = reference.kept_tokens(wide[i], **one)
        weights = torch.exp((wide[i] - wide[i].max()) / one["temperature"]) * keep
        share = weights.cumsum(0) / weights.sum()
        low = float(share[token - 1]) if token else 0.0
        assert keep[token], f"draw {i}: token {token} was filtered out"
        assert low - 1e-5 <= u <= float(share[token]) + 1e-5, f"draw {i}: token {token}"
        exact = float(wide[i].log_softmax(0)[token])
        assert float(logprobs[i]) == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize("vocab", [1, 2, 15, 16, 17, 63, 64, 65, 1000, 1024, 1025, 5000])
@pytest.mark.parametrize("spread", [0.3, 4.0])
def test_random_parameters_against_float64(vocab: int, spread: float) -> None:
    count = 40
    logits = torch.randn(count, vocab) * spread
    fields = {
        "temperature": torch.rand(count) * 2 + 0.1,
        "top_k": torch.randint(-1, 60, (count,)),
        "top_p": torch.rand(count) * 0.95 + 0.05,
        "min_p": torch.rand(count) * 0.2,
        "keys": torch.randint(-(2**62), 2**62, (count,)),
        "counters": torch.randint(0, 1000, (count,)),
    }
    fields["top_k"][::2] = 0
    fields["top_p"][::3] = 1.0
    fields["min_p"][::4] = 0.0
    for _ in each_isa():
        check_draws(logits, *draw(logits, **fields), **fields)


@pytest.mark.parametrize("shape", ["flat", "peaked", "two levels"])
def test_large_vocabulary(shape: str) -> None:
    """The row is too long for a list: top-p narrows the boundary down by thresholds."""
    vocab, count = 60_000, 6
    logits = torch.randn(count, vocab)
    if shape == "peaked":
        logits[:, 777] += 11
    if shape == "two levels":  # all mass lies in ties: nothing to narrow down
        logits = (logits > 0).float()
    fields = {
        "temperature": torch.tensor([1.0, 0.8, 1.0, 1.5, 1.0, 1.0]),
        "top_k": torch.tensor([0, 0, 50, 30_000, 0, 0]),
        "top_p": torch.tensor([0.95, 0.5, 0.9, 0.99, 1.0, 0.999999]),
        "min_p": torch.tensor([0.0, 0.0, 0.0, 0.0, 0.01, 0.0]),
        "keys": torch.arange(count) + 5,
        "counters": torch.zeros(count),
    }
    for _ in each_isa():
        check_draws(logits, *draw(logits, **fields), **fields)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([-math.inf, -30.0, -1.0, 0.0, 0.5, 1.0]), min_size=1, max_size=40),
    st.integers(0, 8),
    st.sampled_from([0.1, 0.3, 0.5, 0.75, 0.9, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.integers(0, 2**62),
)
def test_ties(
    values: list[float], top_k: int, top_p: float, min_p: float, temperature: float, key: int
) -> None:
    logits = torch.tensor([values])
    if not logits.isfinite().any():
        return
    fields = {
        "top_k": [top_k],
        "top_p": [top_p],
        "min_p": [min_p],
        "temperature": [temperature],
        "keys": [key],
    }
    tensors = {name: torch.tensor(value) for name, value in fields.items()} | {"counters": torch.tensor([0])}
    check_draws(logits, *draw(logits, **tensors), **tensors)


def test_ties_keep_lower_ids() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0, 1.0, 1.0]])
    keys = torch.arange(300)
    seen = {
        name: sorted(set(draw(logits, [0] * 300, keys=keys, **filters)[0].tolist()))
        for name, filters in {
            "k1": {"top_k": 1},
            "k3": {"top_k": 3},
            "k4": {"top_k": 4},
            "p": {"top_p": 0.7},  # 0.334 twice, then 0.123 each
            "tiny p": {"top_p": 1e-6},
            "min_p 1": {"min_p": 1.0},
            "min_p": {"min_p": 0.2},
        }.items()
    }
    assert seen == {
        "k1": [1],
        "k3": [1, 2, 3],
        "k4": [1, 2, 3, 4],
        "p": [1, 2, 3],
        "tiny p": [1],
        "min_p 1": [1, 3],
        "min_p": [1, 2, 3, 4, 5],
    }


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 12},
        {"top_p": 0.8},
        {"temperature": 1.3, "top_k": 30, "top_p": 0.9},
    ],
    ids=str,
)
def test_chi_square(filters: dict[str, float]) -> None:
    count, vocab = 40_000, 60
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(3)) * 2
    tokens, _ = draw(
        logits, [0] * count, keys=torch.arange(count), counters=torch.arange(count) % 7, **filters
    )
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | filters
    keep = reference.kept_tokens(logits[0].double(), **options)  # type: ignore[arg-type]
    expected = torch.softmax(logits[0].double() / options["temperature"], 0) * keep
    expected = expected / expected.sum() * count
    observed = torch.bincount(tokens.long(), minlength=vocab)
    assert observed[~keep].sum() == 0
    common = expected > 5
    rare = keep & ~common  # counted as one class
    classes = [
        (observed[common].double(), expected[common]),
        (observed[rare].sum()[None], expected[rare].sum()[None]),
    ]
    statistic = sum(float(((o - e).square() / e.clamp(min=1e-9)).sum()) for o, e in classes)
    freedom = int(common.sum())
    # Wilson-Hilferty: about normal; 4 standard deviations.
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert abs(z) < 4


# ----------------------------------------------------------------------------------- greedy, broken rows, batch


def test_temperature_zero_takes_the_lowest_id_of_the_largest() -> None:
    logits = torch.randn(3, 200)
    logits[1, [20, 150]] = 9.0
    logits[2, 199] = 9.0
    for _ in each_isa():
        tokens, logprobs = draw(logits, temperature=0.0, top_p=0.5)
        assert tokens.tolist() == [int(logits[0].argmax()), 20, 199]
        exact = logits.double().log_softmax(1)[torch.arange(3), tokens.long()]
        torch.testing.assert_close(logprobs.double(), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_broken_rows_fail_alone(temperature: float, top_p: float) -> None:
    logits = torch.randn(6, 100)
    logits[0, 99] = float("nan")
    logits[1] = -float("inf")
    logits[2, 3] = float("inf")
    logits[3, 10:] = -float("inf")
    logits[4] = float("nan")
    for _ in each_isa():
        tokens, logprobs = draw(logits, temperature=temperature, top_p=top_p)
        assert tokens[[0, 1, 2, 4]].tolist() == [-1] * 4
        assert logprobs[[0, 1, 2, 4]].isnan().all()
        assert 0 <= int(tokens[3]) < 10 and logprobs[[3, 5]].isfinite().all()
        alone = draw(logits[5:], temperature=temperature, top_p=top_p)
        assert tokens[5] == alone[0][0] and logprobs[5] == alone[1][0]


def test_minus_infinity_is_never_drawn() -> None:
    logits = torch.full((1, 500), -float("inf"))
    logits[0, [3, 400]] = torch.tensor([0.0, -1.0])
    for filters in ({}, {"top_k": 100}, {"top_p": 0.99}, {"min_p": 0.001}, {"temperature": 20.0}):
        tokens, _ = draw(logits, [0] * 200, keys=torch.arange(200), **filters)
        assert set(tokens.tolist()) == {3, 400}


def test_extreme_temperatures() -> None:
    logits = torch.randn(1, 300)
    best = int(logits.argmax())
    for temperature in (1.2e-38, 1e-30, 1e-6):
        for filters in ({}, {"top_p": 0.9}, {"min_p": 0.1}):
            assert draw(logits, temperature=temperature, **filters)[0].tolist() == [best]
    tokens, _ = draw(logits, [0] * 300, temperature=1e30, keys=torch.arange(300))
    assert len(set(tokens.tolist())) > 100


def test_a_draw_depends_on_its_row_and_key_only() -> None:
    logits = torch.randn(20, 5000)
    rows = torch.randint(0, 20, (90,))
    fields = {
        "temperature": torch.rand(90).round(decimals=1) + 0.1,
        "top_p": torch.rand(90).clamp(min=0.3).round(decimals=1),
        "top_k": torch.randint(0, 3, (90,)) * 50,
        "keys": torch.randint(0, 2**60, (90,)),
        "counters": torch.randint(0, 50, (90,)),
    }
    for _ in each_isa():
        together = torch.stack(draw(logits, rows, **fields))
        shuffled = torch.randperm(90)
        again = torch.stack(draw(logits, rows[shuffled], **{name: x[shuffled] for name, x in fields.items()}))
        assert torch.equal(again, together[:, shuffled])
        torch.set_num_threads(3)
        assert torch.equal(torch.stack(draw(logits, rows, **fields)), together)
        torch.set_num_threads(1)
        for i in (0, 41, 89):
            alone = draw(logits[rows[i]][None], **{name: x[i : i + 1] for name, x in fields.items()})
            assert torch.equal(torch.stack(alone)[:, 0], together[:, i])


def test_bad_parameters_are_refused() -> None:
    logits = torch.randn(2, 10)
    for field, value, message in [
        ("temperature", -1.0, "expected 0 or a positive finite number"),
        ("temperature", float("nan"), "expected 0 or a positive finite number"),
        ("top_p", 0.0, r"expected a number in \(0, 1\]"),
        ("top_p", 1.5, r"expected a number in \(0, 1\]"),
        ("min_p", -0.1, r"expected a number in \[0, 1\]"),
        ("top_k", -2, "expected -1 or 0"),
    ]:
        with pytest.raises(WcseError, match=rf"{field}\[0\]=.*{message}"):
            draw(logits, **{field: value})
    with pytest.raises(WcseError, match=r"rows\[1\]=2.*expected a row of logits"):
        draw(logits, [0, 2])
    with pytest.raises(WcseError, match=r"keys has dtype torch\.int32"):
        ops.sample(logits, *[torch.zeros(1, dtype=torch.int32)] * 7)
    with pytest.raises(WcseError, match=r"logits is not contiguous"):
        draw(torch.randn(10, 2).t())


# ------------------------------------------------------------------------------- log-probabilities of given tokens


@pytest.mark.parametrize("vocab", [1, 17, 1000, 32_003])
def test_token_logprobs_against_float64(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(9, vocab, generator=generator) * 6
    tokens = torch.randint(vocab, (9,), generator=generator, dtype=torch.int32)
    exact = reference.token_logprobs(logits.double(), tokens)
    plain = logits.log_softmax(1).gather(1, tokens.long()[:, None])[:, 0]
    allowed = 4 * (plain - exact).abs().max().item() + 1e-6
    assert (ops.token_logprobs(logits, tokens, backend="cpp") - exact).abs().max().item() <= allowed


def test_token_logprobs_are_those_of_the_sampler_whatever_the_batch() -> None:
    logits = torch.randn(5, 3000, generator=torch.Generator().manual_seed(1))
    tokens, logprobs = draw(logits, torch.arange(5), temperature=1.0)
    assert torch.equal(ops.token_logprobs(logits, tokens), logprobs)
    assert torch.equal(ops.token_logprobs(logits[3:4], tokens[3:4]), logprobs[3:4])


def test_token_logprobs_of_broken_rows_and_tokens() -> None:
    logits = torch.tensor([[0.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf], [-math.inf, 1.0]])
    for backend in ("cpp", "torch"):
        found = ops.token_logprobs(logits, torch.zeros(4, dtype=torch.int32), backend=backend)
        assert found.isnan().tolist() == [True, True, True, False]
        assert found[3] == -math.inf
    with pytest.raises(WcseError, match=r"tokens\[1\]=2"):
        ops.token_logprobs(torch.zeros(2, 2), torch.tensor([0, 2], dtype=torch.int32))
