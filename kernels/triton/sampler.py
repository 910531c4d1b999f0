"""The sampler: one program a draw, no sorting, the same token as the native one from the same logits.

Min-p, top-k and top-p each keep a prefix of the ids in the order (larger logit, then lower id). The end of a prefix is
found by narrowing an interval of order-preserving integer keys: each pass over the row (which stays in the L2 cache
after the first) weighs it at ``THRESHOLDS`` keys at once. The token is the first kept id, in id order, at which the
cumulative weight exceeds u times the total; u is Philox4x32-10 keyed as on the CPU. Weights are float32, sums over
blocks float64, so a token differs from the native sampler's only where u lies within rounding of a boundary.
"""

from __future__ import annotations

import torch
from torch import Tensor

import triton
import triton.language as tl

THRESHOLDS = 8
BLOCK = 1024
_FREE_BITS = {
    torch.float32: 0,
    torch.float16: 13,
    torch.bfloat16: 16,
}  # low bits of a float32 that are always 0


@triton.jit
def _load(row_ptr, ids, V):
    """Logits as float32; -0 becomes 0, past the end is -inf."""
    return tl.load(row_ptr + ids, mask=ids < V, other=float("-inf")).to(tl.float32) + 0.0


@triton.jit
def _key(x, FREE: tl.constexpr):
    """int64 in the order of the float32 x."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> FREE).to(tl.int64)


@triton.jit
def _kept(key, ids, floor, last_id, V):
    """Whether ids are in the prefix that ends with id ``last_id`` of key ``floor``."""
    return ((key > floor) | ((key == floor) & (ids <= last_id))) & (ids < V)


@triton.jit
def _mass(row_ptr, V, top, scale, floor, last_id, BLOCK: tl.constexpr, FREE: tl.constexpr):
    """Weight of the prefix, float64."""
    n = tl.arange(0, BLOCK)
    total = tl.zeros([1], tl.float64)
    for b in range(0, V, BLOCK):
        x = _load(row_ptr, b + n, V)
        weight = tl.where(_kept(_key(x, FREE), b + n, floor, last_id, V), tl.exp2((x - top) * scale), 0.0)
        total += tl.sum(weight, 0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit
def _cut(
    row_ptr,
    V,
    top,
    scale,
    floor,
    last_id,
    wanted,
    mass,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
    FREE: tl.constexpr,
    T: tl.constexpr,
):
    """The shortest prefix of a prefix that reaches ``wanted`` <= ``mass`` (of weight, or of ids if COUNT)."""
    n = tl.arange(0, BLOCK)
    t = tl.arange(0, T)
    low = floor  # mass(key >= low) >= wanted > above = mass(key >= high)
    high = _key(top, FREE) + 1
    above = wanted * 0.0
    threshold = _key(top - (t + 1) * 2.0 / scale, FREE)  # first 2, 4, .. bits of weight below the top
    while high - low > 1:
        sums = tl.zeros([T], tl.float64)
        for b in range(0, V, BLOCK):
            x = _load(row_ptr, b + n, V)
            key = _key(x, FREE)
            keep = _kept(key, b + n, floor, last_id, V)
            if COUNT:
                weight = tl.where(keep, 1.0, 0.0)
            else:
                weight = tl.where(keep, tl.exp2((x - top) * scale), 0.0)
            reach = key[:, None] >= threshold[None, :]
            sums += tl.sum(tl.where(reach, weight[:, None], 0.0), 0).to(tl.float64)
        inside = (threshold > low) & (threshold < high)
        enough = inside & (sums >= wanted)
        short = inside & (sums < wanted)
        mass = tl.min(tl.where(enough, sums, mass), 0)
        above = tl.max(tl.where(short, sums, above), 0)
        low = tl.max(tl.where(enough, threshold, low), 0)
        high = tl.min(tl.where(short, threshold, high), 0)
        threshold = low + (high - low) * (t + 1) // (T + 1)
        threshold = tl.where(threshold > low, threshold, low + 1)
    # Of the ids with key `low` as many as are needed, the lowest first.
    bits = (low << FREE).to(tl.int32)
    x = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    each = 1.0
    if not COUNT:
        each = tl.exp2((x - top) * scale)
    ties = tl.maximum(tl.ceil((wanted - above) / tl.maximum(each, 1e-45)), 1.0)
    new_last = V - 1
    if low == floor:
        new_last = last_id
    if ties * each < mass - above - 0.5 * each:
        seen = wanted * 0.0
        b = 0
        while (b < V) & (seen < ties):
            key = _key(_load(row_ptr, b + n, V), FREE)
            equal = ((key == low) & _kept(key, b + n, floor, last_id, V)).to(tl.int32)
            count = tl.sum(equal, 0)
            if seen + count >= ties:
                rank = seen + tl.cumsum(equal, 0)
                new_last = tl.min(tl.where((equal == 1) & (rank >= ties), b + n, V - 1), 0)
            seen += count
            b += BLOCK
    return low, new_last


@triton.jit
def _draw(row_ptr, V, top, scale, floor, last_id, target, BLOCK: tl.constexpr, FREE: tl.constexpr):
    """The first id of the prefix, in id order, at which the cumulative weight exceeds ``target``."""
    n = tl.arange(0, BLOCK)
    below = target * 0.0
    token = V * 0 - 1
    last = V * 0 - 1
    b = 0
    while (b < V) & (token < 0):
        x = _load(row_ptr, b + n, V)
        keep = _kept(_key(x, FREE), b + n, floor, last_id, V)
        weight = tl.where(keep, tl.exp2((x - top) * scale), 0.0)
        some = tl.max(tl.where(weight > 0.0, b + n, -1), 0)
        if some >= 0:
            last = some
        here = tl.sum(weight.to(tl.float64), 0)
        if below + here > target:
            passed = below + tl.cumsum(weight.to(tl.float64), 0) > target
            token = tl.min(tl.where(passed & (weight > 0.0), b + n, some), 0)
        below += here
        b += BLOCK
    if token < 0:  # rounding
        token = last
    return token


@triton.jit
def sample_kernel(
    logits_ptr,
    row_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    key_ptr,
    counter_ptr,
    token_ptr,
    logprob_ptr,
    V,
    BLOCK: tl.constexpr,
    FREE: tl.constexpr,
    T: tl.constexpr,
):
    """Grid (draws,)."""
    j = tl.program_id(0)
    row = logits_ptr + tl.load(row_ptr + j).to(tl.int64) * V
    temperature = tl.load(temperature_ptr + j)
    n = tl.arange(0, BLOCK)
    top = float("-inf")
    broken = 0
    best = 0
    for b in range(0, V, BLOCK):
        x = _load(row, b + n, V)
        broken += tl.sum((x != x).to(tl.int32), 0)
        x = tl.where(x != x, float("-inf"), x)
        here = tl.max(x, 0)
        if here > top:
            best = b + tl.min(tl.where(x == here, n, BLOCK), 0)
            top = here
    if (broken > 0) | (top == float("inf")) | (top == float("-inf")):
        tl.store(token_ptr + j, -1)
        tl.store(logprob_ptr + j, float("nan"))
    else:
        # Everything: no key is as small, and the scale below never makes -inf * 0.
        floor = _key(top, FREE) * 0 - (1 << 40)
        last_id = V - 1
        raw = _mass(row, V, top, 1.4426950408889634, floor, last_id, BLOCK, FREE)
        token = best
        if temperature > 0.0:
            scale = tl.minimum(1.4426950408889634 / temperature, 1e30)
            min_p = tl.load(min_p_ptr + j)
            if min_p > 0.0:
                least = top.to(tl.float64) + temperature.to(tl.float64) * tl.log(min_p.to(tl.float64))
                floor = _key(tl.minimum(top, least.to(tl.float32)) + 0.0, FREE)
            k = tl.load(top_k_ptr + j)
            if (k > 0) & (k < V):
                everything = _key(top, FREE) * 0 - (1 << 31) - 1
                cut, cut_id = _cut(
                    row,
                    V,
                    top,
                    scale,
                    everything,
                    V - 1,
                    k.to(tl.float64),
                    V.to(tl.float64),
                    True,
                    BLOCK,
                    FREE,
                    T,
                )
                if (cut > floor) | ((cut == floor) & (cut_id < last_id)):
                    floor = cut
                    last_id = cut_id
            p = tl.load(top_p_ptr + j)
            total = _mass(row, V, top, scale, floor, last_id, BLOCK, FREE)
            if p < 1.0:
                wanted = p.to(tl.float64) * total
                floor = tl.maximum(floor, _key(top, FREE) * 0 - (1 << 31) - 1)
                floor, last_id = _cut(
                    row, V, top, scale, floor, last_id, wanted, total, False, BLOCK, FREE, T
                )
                total = _mass(row, V, top, scale, floor, last_id, BLOCK, FREE)
            word = tl.randint(tl.load(key_ptr + j), tl.load(counter_ptr + j)).to(tl.uint32, bitcast=True)
            u = (word >> 8).to(tl.float64) * 5.9604644775390625e-08
            token = _draw(row, V, top, scale, floor, last_id, u * total, BLOCK, FREE)
        chosen = tl.load(row + token).to(tl.float64)
        tl.store(token_ptr + j, token)
        tl.store(logprob_ptr + j, (chosen - top.to(tl.float64) - tl.log(raw)).to(tl.float32))


def launch_options(dtype: torch.dtype) -> dict[str, int]:
    """Constants and launch options; what the launcher and the ahead-of-time checks share."""
    return {"BLOCK": BLOCK, "FREE": _FREE_BITS[dtype], "T": THRESHOLDS, "num_warps": 8}


def sample(
    logits: Tensor,
    rows: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    keys: Tensor,
    counters: Tensor,
) -> tuple[Tensor, Tensor]:
    """Shapes as in ``ops.sample``; keys int64."""
    n_draws = len(rows)
    tokens = torch.empty(n_draws, dtype=torch.int32, device=logits.device)
    logprobs = torch.empty(n_draws, dtype=torch.float32, device=logits.device)
    sample_kernel[(n_draws,)](
        logits,
        rows,
        temperature,
        top_k,
        top_p,
        min_p,
        keys,
        counters,
        tokens,
        logprobs,
        logits.shape[1],
        **launch_options(logits.dtype),
    )
    return tokens, logprobs
