"""The sampler: logits are read once, no sorting, the same token as the native one from the same logits.

``scan_kernel`` reads the logits and keeps of every ``CHUNK`` ids their maximum and the sums of their weights. What is
drawn follows from those: without filters the chunk is found in them and only its ids are read again. Min-p, top-k and
top-p each keep a prefix of the ids in the order (larger logit, then lower id); from maxima and sums follows a logit
below which no filter keeps anything, so ``pick_kernel`` reads the chunks that reach it, lists the few ids that do
(``LIST`` at most) and works on the list. Rows that are too flat for that go through ``wide_rows``.

The token is the first kept id, in id order, at which the cumulative weight exceeds u times the total; u is
Philox4x32-10 keyed as on the CPU. Weights are float32, sums over chunks float64, so a token differs from the native
sampler's only where u lies within rounding of a boundary.
"""

from __future__ import annotations

import torch
from torch import Tensor

import triton
import triton.language as tl
from wcse.kernels.triton import wide_rows
from wcse.kernels.triton.wide_rows import key_of, least_logit, load_logits, uniform, value_of

CHUNK = 128
TILE = 64  # chunks of a program that scans
NEAR = 16  # chunks that are read at once for the list
LIST = 2048  # ids that a list holds
_FREE_BITS = {
    torch.float32: 0,
    torch.float16: 13,
    torch.bfloat16: 16,
}  # low bits of a float32 that are always 0

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.4028234663852886e38)
NOTHING = tl.constexpr(160.0)  # bits of weight below the largest at which a float32 is 0


@triton.jit
def scan_kernel(
    logits_ptr,
    row_ptr,
    temperature_ptr,
    chunk_top_ptr,
    chunk_raw_ptr,
    chunk_sum_ptr,
    V,
    NC,
    tiles,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Grid (draws * tiles,). float32 [draws, NC]: maximum; sums of e^(x - maximum), without and with temperature."""
    j = tl.program_id(0) // tiles
    c = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    ids = c[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    row = logits_ptr + tl.load(row_ptr + j).to(tl.int64) * V
    x = load_logits(row, ids, V)
    top = tl.max(x, 1)
    below = x - tl.maximum(top, LOWEST)[:, None]
    at = j.to(tl.int64) * NC + c
    raw = tl.sum(tl.exp2(below * LOG2E), 1)  # NaN if a logit is NaN or +inf
    tl.store(chunk_top_ptr + at, top, mask=c < NC)
    tl.store(chunk_raw_ptr + at, raw, mask=c < NC)
    temperature = tl.load(temperature_ptr + j)
    if (temperature != 1.0) & (temperature > 0.0):
        raw = tl.sum(tl.exp2(below * tl.minimum(LOG2E / temperature, 1e30)), 1)
    tl.store(chunk_sum_ptr + at, raw, mask=c < NC)


@triton.jit
def _first(good, fallback, n, SIZE: tl.constexpr):
    """The first place where ``good``; the last where ``fallback`` if there is none (rounding)."""
    found = tl.min(tl.where(good, n, SIZE), 0)
    return tl.where(found < SIZE, found, tl.max(tl.where(fallback, n, 0), 0))


@triton.jit
def _draw_all(row, V, top, scale, mass, u, CHUNK: tl.constexpr, CP: tl.constexpr):
    """A draw from all ids; ``mass`` float64 [CP] of the chunks."""
    c = tl.arange(0, CP)
    n = tl.arange(0, CHUNK)
    target = u * tl.sum(mass, 0)
    sums = tl.cumsum(mass, 0)
    chunk = _first((sums > target) & (mass > 0.0), mass > 0.0, c, CP)
    below = tl.sum(tl.where(c == chunk, sums - mass, 0.0), 0)
    weight = tl.exp2((load_logits(row, chunk * CHUNK + n, V) - top) * scale)
    passed = below + tl.cumsum(weight.to(tl.float64), 0) > target
    return chunk * CHUNK + _first(passed & (weight > 0.0), weight > 0.0, n, CHUNK)


@triton.jit
def _bound(tops, mass, top, scale, k, room, COUNT: tl.constexpr, CHUNK: tl.constexpr):
    """A logit that the top k ids all reach (COUNT), or all but ids of the weight ``room``: near to the largest such.

    Below a logit lie the chunks whose maximum does, and of every other chunk at most all but its maximum, and at most
    CHUNK - 1 ids of the logit's weight.
    """
    weight = tl.exp2((tops - top) * scale)
    shallow = 0.0
    deep = NOTHING  # what is lighter weighs nothing and is never drawn
    for _ in range(10):  # to a sixth of a bit
        middle = (shallow + deep) * 0.5
        reach = tops >= top - middle / scale
        if COUNT:
            enough = tl.sum(reach.to(tl.int32), 0) >= k
        else:
            rest = tl.minimum(mass - weight, (CHUNK - 1) * tl.exp2(-middle))
            enough = tl.sum(tl.where(reach, rest, mass), 0) <= room
        deep = tl.where(enough, middle, deep)
        shallow = tl.where(enough, shallow, middle)
    return top - deep / scale


@triton.jit
def _shortest(x, weight, wanted, FREE: tl.constexpr):
    """Of a list in the order of ids: which are in the shortest prefix of the order that weighs ``wanted``.

    What weighs nothing is in no prefix; all are in it where the list weighs less.
    """
    there = weight > 0.0
    low = tl.min(key_of(tl.where(there, x, float("inf")), FREE), 0)  # mass(key >= low) >= wanted
    high = tl.max(key_of(tl.where(there, x, float("-inf")), FREE), 0) + 1
    while high - low > 1:
        middle = low + (high - low) // 2
        mass = tl.sum(tl.where(x >= value_of(middle, FREE), weight, 0.0).to(tl.float64), 0)
        if mass >= wanted:
            low = middle
        else:
            high = middle
    edge = value_of(low, FREE)
    equal = there & (x == edge)
    above = tl.sum(tl.where(x > edge, weight, 0.0).to(tl.float64), 0)
    each = tl.max(tl.where(equal, weight, 0.0), 0)
    ties = tl.maximum(tl.ceil((wanted - above) / each), 1.0)
    return there & ((x > edge) | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= ties)))


@triton.jit
def _list(
    row,
    V,
    tops,
    least,
    NC,
    hot_ptr,
    list_ptr,
    CHUNK: tl.constexpr,
    CP: tl.constexpr,
    R: tl.constexpr,
    LIST: tl.constexpr,
):
    """Write the ids of at least the logit ``least``, ascending; returns how many, or more than LIST."""
    c = tl.arange(0, CP)
    hot = (tops >= least) & (tops > float("-inf"))
    tl.store(hot_ptr + tl.cumsum(hot.to(tl.int32), 0) - 1, c, mask=hot)
    n_hot = tl.sum(hot.to(tl.int32), 0)
    tl.debug_barrier()
    r = tl.arange(0, R)
    n = tl.arange(0, CHUNK)
    count = n_hot * 0
    i = 0
    while (i < n_hot) & (count <= LIST):
        chunk = tl.load(hot_ptr + i + r, mask=i + r < n_hot, other=NC)
        ids = tl.reshape(chunk[:, None] * CHUNK + n[None, :], [R * CHUNK])
        x = load_logits(row, ids, V)
        good = (x >= least) & (x > float("-inf"))
        at = count + tl.cumsum(good.to(tl.int32), 0) - 1
        tl.store(list_ptr + at, ids, mask=good & (at < LIST))
        count += tl.sum(good.to(tl.int32), 0)
        i += R
    tl.debug_barrier()
    return count


@triton.jit
def pick_kernel(
    logits_ptr,
    row_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    key_ptr,
    counter_ptr,
    chunk_top_ptr,
    chunk_raw_ptr,
    chunk_sum_ptr,
    hot_ptr,
    list_ptr,
    token_ptr,
    logprob_ptr,
    V,
    NC,
    CHUNK: tl.constexpr,
    CP: tl.constexpr,
    R: tl.constexpr,
    LIST: tl.constexpr,
    FREE: tl.constexpr,
):
    """Grid (draws,). hot int32 [draws, NC] and list [draws, LIST] are room to work in; leaves -2 to ``wide_rows``."""
    j = tl.program_id(0)
    row = logits_ptr + tl.load(row_ptr + j).to(tl.int64) * V
    c = tl.arange(0, CP)
    at = j.to(tl.int64) * NC + c
    tops = tl.load(chunk_top_ptr + at, mask=c < NC, other=float("-inf"))
    top = tl.max(tops, 0) + 0.0
    base = tl.maximum(tops, LOWEST) - top
    raws = tl.load(chunk_raw_ptr + at, mask=c < NC, other=0.0)
    raw = tl.sum(raws.to(tl.float64) * tl.exp2(base * LOG2E).to(tl.float64), 0)
    token = -1
    if (raw == raw) & (top > float("-inf")) & (top < float("inf")):
        temperature = tl.load(temperature_ptr + j)
        if temperature == 0.0:
            n = tl.arange(0, CHUNK)
            chunk = tl.min(tl.where(tops == top, c, CP), 0)
            x = load_logits(row, chunk * CHUNK + n, V)
            token = chunk * CHUNK + tl.min(tl.where(x == top, n, CHUNK), 0)
        else:
            scale = tl.minimum(LOG2E / temperature, 1e30)
            sums = tl.load(chunk_sum_ptr + at, mask=c < NC, other=0.0)
            mass = sums.to(tl.float64) * tl.exp2(base * scale).to(tl.float64)
            k = tl.load(top_k_ptr + j)
            p = tl.load(top_p_ptr + j)
            min_p = tl.load(min_p_ptr + j)
            u = uniform(key_ptr, counter_ptr, j)
            limited = (k > 0) & (k < V)
            if (p >= 1.0) & (min_p == 0.0) & (limited == 0):
                token = _draw_all(row, V, top, scale, mass, u, CHUNK, CP)
            else:
                total = tl.sum(mass, 0)
                least = top - NOTHING / scale
                if limited:
                    least = _bound(tops, mass, top, scale, k, 0.0, True, CHUNK)
                if min_p > 0.0:
                    least = tl.maximum(least, least_logit(top, temperature, min_p))
                elif limited == 0:
                    room = ((1.0 - p) * total - 1e-6 * total).to(tl.float32)  # sums are rounded
                    least = _bound(tops, mass.to(tl.float32), top, scale, k, room, False, CHUNK)
                list_at = list_ptr + j.to(tl.int64) * LIST
                hot_at = hot_ptr + j.to(tl.int64) * NC
                count = _list(row, V, tops, least, NC, hot_at, list_at, CHUNK, CP, R, LIST)
                token = -2
                if count <= LIST:
                    n = tl.arange(0, LIST)
                    ids = tl.load(list_at + n, mask=n < count, other=V)
                    x = load_logits(row, ids, V)
                    weight = tl.where(n < count, tl.exp2((x - top) * scale), 0.0)
                    if limited:
                        one = tl.where(weight > 0.0, 1.0, 0.0)
                        weight = tl.where(_shortest(x, one, k.to(tl.float64), FREE), weight, 0.0)
                    if p < 1.0:
                        if limited | (min_p > 0.0):
                            total = tl.sum(weight.to(tl.float64), 0)
                        weight = tl.where(_shortest(x, weight, p.to(tl.float64) * total, FREE), weight, 0.0)
                    sums64 = tl.cumsum(weight.to(tl.float64), 0)
                    target = u * tl.sum(weight.to(tl.float64), 0)
                    place = _first((sums64 > target) & (weight > 0.0), weight > 0.0, n, LIST)
                    token = tl.sum(tl.where(n == place, ids, 0), 0)
    tl.store(token_ptr + j, token)
    logprob = -(top.to(tl.float64) + tl.log(raw))  # less the token's logit
    if token >= 0:
        logprob += tl.load(row + token).to(tl.float64)
    logprob = tl.where(token == -1, float("nan"), logprob)
    tl.store(logprob_ptr + j, logprob.to(tl.float32))


def constants(vocab: int, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Constants and launch options of the three kernels; what the launcher and the ahead-of-time checks share."""
    padded = triton.next_power_of_2(triton.cdiv(vocab, CHUNK))
    free = _FREE_BITS[dtype]
    scan = {"CHUNK": CHUNK, "TILE": TILE, "num_warps": 8}
    pick = {"CHUNK": CHUNK, "CP": padded, "R": NEAR, "LIST": LIST, "FREE": free, "num_warps": 4}
    wide = {"CP": padded, "BLOCK": wide_rows.BLOCK, "FREE": free, "T": wide_rows.THRESHOLDS, "num_warps": 8}
    return scan, pick, wide


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
    draws, vocab = len(rows), logits.shape[1]
    chunks = triton.cdiv(vocab, CHUNK)
    tiles = triton.cdiv(chunks, TILE)
    tokens = torch.empty(draws, dtype=torch.int32, device=logits.device)
    logprobs = torch.empty(draws, dtype=torch.float32, device=logits.device)
    stats = torch.empty((3, draws, chunks), dtype=torch.float32, device=logits.device)
    room = torch.empty(draws * (chunks + LIST), dtype=torch.int32, device=logits.device)
    scan, pick, wide = constants(vocab, logits.dtype)
    scan_kernel[(draws * tiles,)](logits, rows, temperature, *stats, vocab, chunks, tiles, **scan)
    given = (logits, rows, temperature, top_k, top_p, min_p, keys, counters)
    parts = (*stats, room, room[draws * chunks :], tokens, logprobs)
    pick_kernel[(draws,)](*given, *parts, vocab, chunks, **pick)
    wide_kernel = wide_rows.wide_kernel
    wide_kernel[(draws,)](*given, stats[0], tokens, logprobs, vocab, chunks, **wide)
    return tokens, logprobs
