"""Draws from flat rows: of which so many ids may be kept that no short list holds them.

The end of a prefix of the order (larger logit, then lower id) is found by narrowing an interval of order-preserving
integer keys: each pass over the row weighs it at ``THRESHOLDS`` keys at once, in sums of every lane's own, which are
added up in float64. Knows one row; ``sampler.py`` says which ones come here.
"""

from __future__ import annotations

import triton
import triton.language as tl

THRESHOLDS = 8
BLOCK = 1024


@triton.jit
def load_logits(row_ptr, ids, V):
    """Logits as float32; -0 becomes 0, past the end is -inf."""
    return tl.load(row_ptr + ids, mask=ids < V, other=float("-inf")).to(tl.float32) + 0.0


@triton.jit
def key_of(x, FREE: tl.constexpr):
    """int64 in the order of the float32 x."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> FREE).to(tl.int64)


@triton.jit
def value_of(key, FREE: tl.constexpr):
    """The float32 of a key."""
    bits = (key << FREE).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def least_logit(top, temperature, min_p):
    """The smallest logit that min-p keeps."""
    least = top.to(tl.float64) + temperature.to(tl.float64) * tl.log(min_p.to(tl.float64))
    return tl.minimum(top, least.to(tl.float32)) + 0.0


@triton.jit
def uniform(key_ptr, counter_ptr, j):
    """The number in [0, 1) of draw j, float64."""
    word = tl.randint(tl.load(key_ptr + j), tl.load(counter_ptr + j)).to(tl.uint32, bitcast=True)
    return (word >> 8).to(tl.float64) * 5.9604644775390625e-08


@triton.jit
def _weights(x, ids, top, scale, floor, last_id, V):
    """Weights of ids that are in the prefix that ends with id ``last_id`` of logit ``floor``, 0 of others."""
    kept = ((x > floor) | ((x == floor) & (ids <= last_id))) & (ids < V)
    return tl.where(kept, tl.exp2((x - top) * scale), 0.0)


@triton.jit
def _mass(row_ptr, V, top, scale, floor, last_id, BLOCK: tl.constexpr):
    """Weight of the prefix, float64."""
    n = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for b in range(0, V, BLOCK):
        total += _weights(load_logits(row_ptr, b + n, V), b + n, top, scale, floor, last_id, V)
    return tl.sum(total.to(tl.float64), 0)


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
    """The shortest prefix of a prefix that reaches ``wanted`` <= ``mass`` (of weight, or of ids if COUNT): its end."""
    n = tl.arange(0, BLOCK)
    t = tl.arange(0, T)
    low = key_of(floor, FREE)  # mass(key >= low) >= wanted > above = mass(key >= high)
    high = key_of(top, FREE) + 1
    above = wanted * 0.0
    threshold = key_of(top - (t + 1) * 2.0 / scale, FREE)  # first 2, 4, .. bits of weight below the top
    while high - low > 1:
        edges = value_of(threshold, FREE)
        lanes = tl.zeros([BLOCK, T], tl.float32)
        for b in range(0, V, BLOCK):
            x = load_logits(row_ptr, b + n, V)
            if COUNT:
                weight = tl.where(b + n < V, 1.0, 0.0)
            else:
                weight = _weights(x, b + n, top, scale, floor, last_id, V)
            lanes += tl.where(x[:, None] >= edges[None, :], weight[:, None], 0.0)
        sums = tl.sum(lanes.to(tl.float64), 0)
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
    edge = value_of(low, FREE)
    each = 1.0
    if not COUNT:
        each = tl.exp2((edge - top) * scale)
    ties = tl.maximum(tl.ceil((wanted - above) / tl.maximum(each, 1e-45)), 1.0)
    new_last = V - 1
    if edge == floor:
        new_last = last_id
    if ties * each < mass - above - 0.5 * each:
        seen = wanted * 0.0
        b = 0
        while (b < V) & (seen < ties):
            equal = ((load_logits(row_ptr, b + n, V) == edge) & (b + n <= new_last)).to(tl.int32)
            count = tl.sum(equal, 0)
            if seen + count >= ties:
                rank = seen + tl.cumsum(equal, 0)
                new_last = tl.min(tl.where((equal == 1) & (rank >= ties), b + n, V - 1), 0)
            seen += count
            b += BLOCK
    return edge, new_last


@triton.jit
def _draw(row_ptr, V, top, scale, floor, last_id, target, BLOCK: tl.constexpr):
    """The first id of the prefix, in id order, at which the cumulative weight exceeds ``target``."""
    n = tl.arange(0, BLOCK)
    below = target * 0.0
    token = V * 0 - 1
    last = V * 0 - 1
    b = 0
    while (b < V) & (token < 0):
        weight = _weights(load_logits(row_ptr, b + n, V), b + n, top, scale, floor, last_id, V)
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
def wide_kernel(
    logits_ptr,
    row_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    key_ptr,
    counter_ptr,
    chunk_top_ptr,
    token_ptr,
    logprob_ptr,
    V,
    NC,
    CP: tl.constexpr,
    BLOCK: tl.constexpr,
    FREE: tl.constexpr,
    T: tl.constexpr,
):
    """Grid (draws,). Draws the tokens that ``pick_kernel`` left, whose log-probability is less their logit so far."""
    j = tl.program_id(0)
    if tl.load(token_ptr + j) == -2:
        row = logits_ptr + tl.load(row_ptr + j).to(tl.int64) * V
        c = tl.arange(0, CP)
        tops = tl.load(chunk_top_ptr + j.to(tl.int64) * NC + c, mask=c < NC, other=float("-inf"))
        top = tl.max(tops, 0) + 0.0
        temperature = tl.load(temperature_ptr + j)
        scale = tl.minimum(1.4426950408889634 / temperature, 1e30)
        floor = top * 0.0 - float("inf")
        last_id = V - 1
        min_p = tl.load(min_p_ptr + j)
        if min_p > 0.0:
            floor = least_logit(top, temperature, min_p)
        k = tl.load(top_k_ptr + j)
        if (k > 0) & (k < V):
            all_ = top * 0.0 - float("inf")
            wanted = k.to(tl.float64)
            cut, cut_id = _cut(
                row, V, top, scale, all_, V - 1, wanted, V.to(tl.float64), True, BLOCK, FREE, T
            )
            if (cut > floor) | ((cut == floor) & (cut_id < last_id)):
                floor = cut
                last_id = cut_id
        p = tl.load(top_p_ptr + j)
        total = _mass(row, V, top, scale, floor, last_id, BLOCK)
        if p < 1.0:
            wanted = p.to(tl.float64) * total
            floor, last_id = _cut(row, V, top, scale, floor, last_id, wanted, total, False, BLOCK, FREE, T)
            total = _mass(row, V, top, scale, floor, last_id, BLOCK)
        u = uniform(key_ptr, counter_ptr, j)
        token = _draw(row, V, top, scale, floor, last_id, u * total, BLOCK)
        tl.store(token_ptr + j, token)
        tl.store(logprob_ptr + j, tl.load(row + token).to(tl.float32) + tl.load(logprob_ptr + j))
