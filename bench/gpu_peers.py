"""Attention of a decode step as others compute it: our two-level cascade, flex_attention, FlashInfer.

Each is a function of no arguments to be timed; what it needs is gathered beforehand and not charged, and stated in the
note where a peer would have to do it every step. A peer that is not installed, or refuses, is skipped with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gpu_trees import Grown
from torch import Tensor
from workloads import paged


@dataclass(frozen=True)
class Peer:
    name: str
    run: Callable[[], Tensor] | None  # None: skipped
    note: str = ""


def peers(
    q: Tensor, k: Tensor, v: Tensor, grown: Grown, *, prompt: int, dry: bool, flex_too: bool
) -> Iterator[Peer]:
    """Peers on queries [leaves, heads, d] and pools [pages, kv heads, 16, d]."""
    yield Peer("two-level cascade of ours", cascade(q, k, v, grown, prompt))
    try:
        if dry or flex_too:
            attend = flex(q, k, v, grown, compiled=not dry)
            yield Peer("flex_attention, flattened tree", attend, "mask made beforehand")
    except Exception as error:  # torch's compiler raises what it likes
        yield Peer("flex_attention", None, f"{type(error).__name__}: {str(error)[:90]}")
    yield from flashinfer(q, k, v, grown)


def cascade(q: Tensor, k: Tensor, v: Tensor, grown: Grown, prompt: int) -> Callable[[], Tensor]:
    """The prompt once for all rows below it, the rest once for each row, merged: vLLM's cascade with our kernels."""
    from wcse.kernels.triton import attention
    from wcse.kernels.triton.work import DeviceList, Traffic

    shared, device, rows = -(-prompt // 16), q.device, len(grown.slots)
    group, block = q.shape[1] // k.shape[1], 4
    firsts = [int(slots[0]) for slots in grown.slots]

    def made(tile_m: int, spans: list[tuple[int, int, np.ndarray]], base: int) -> DeviceList:
        """Items (first row, rows, slots of their tokens), with partial results from ``base`` on."""
        items, page, seen = [], [], []
        for row, count, slots in spans:
            begin = len(page)
            ids, valid = np.unique(slots // 16, return_counts=True)
            page += [int(p) | int(n) << 27 for p, n in zip(ids, valid, strict=True)]
            seen += [count << 8 | 255 << 16] * len(ids)
            pad = -len(ids) % block
            page += [0] * pad
            seen += [0] * pad
            items.append([row, count, begin, len(page), base + row])
        arrays = [
            np.asarray(x, np.int64).astype(np.uint32).view(np.int32).ravel() for x in (items, page, seen)
        ]
        there = [torch.from_numpy(x.copy()).to(device) for x in arrays]
        empty = torch.zeros(rows, dtype=torch.int32, device=device)
        return DeviceList(
            empty, tile_m, len(items), 2 * rows, rows, *there, empty, empty, empty, Traffic(1, 1)
        )

    tile = 128 // group
    tops, begin = [], 0
    for row in range(1, rows + 1):  # rows of one prompt, at most a tile
        if row == rows or firsts[row] != firsts[begin] or row - begin == tile:
            tops.append((begin, row - begin, grown.slots[begin][:prompt]))
            begin = row
    rests = [(row, 1, slots[prompt:]) for row, slots in enumerate(grown.slots)]
    lists = made(128, tops, 0), made(16, rests, rows)
    merge = torch.tensor([[row, rows, 2] for row in range(rows)], dtype=torch.int32, device=device).ravel()
    assert shared * 16 >= prompt
    options = {"scale": q.shape[2] ** -0.5, "softcap": 0.0, "window": 0}

    def run() -> Tensor:
        out = torch.empty_like(q)
        parts = attention.partials(q, 2 * rows)
        for list_ in lists:
            attention.run_tiles(q, k.transpose(2, 3), v, list_, out, parts, **options)
        attention.run_merge(out, parts, merge)
        return out

    return run


def flex(q: Tensor, k: Tensor, v: Tensor, grown: Grown, *, compiled: bool) -> Callable[[], Tensor]:
    """flex_attention over the tokens of the tree in depth-first order: row r sees a node's tokens if lo <= r < hi."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    nodes = grown.plan.nodes
    low = np.repeat(nodes.lo, nodes.length)
    high = np.repeat(nodes.hi, nodes.length)
    slots = []
    for begin, length in zip(nodes.page_begin.tolist(), nodes.length.tolist(), strict=True):
        at = np.arange(length)
        slots.append(np.asarray(grown.plan.pages)[begin + at // 16].astype(np.int64) * 16 + at % 16)
    index = torch.from_numpy(np.concatenate(slots)).to(q.device)
    keys, values = (x[index // 16, :, index % 16].transpose(0, 1)[None].contiguous() for x in (k, v))
    lo, hi = (torch.from_numpy(x.astype(np.int32)).to(q.device) for x in (low, high))

    def mask(b: Tensor, h: Tensor, row: Tensor, token: Tensor) -> Tensor:
        return (row >= lo[token]) & (row < hi[token])

    attend: Any = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
    blocks = create_block_mask(mask, None, None, len(q), len(index), device=q.device)
    first = q.transpose(0, 1)[None].contiguous()

    def run() -> Tensor:
        return attend(first, keys, values, block_mask=blocks, enable_gqa=True)[0].transpose(0, 1)

    run()
    return run


def flashinfer(q: Tensor, k: Tensor, v: Tensor, grown: Grown) -> Iterator[Peer]:
    """Paged decode, and the cascade with a level for each depth of the tree. Its plans are made beforehand."""
    try:
        import flashinfer as fi
    except ImportError:
        yield Peer("FlashInfer", None, "not installed")
        return
    heads, kv_heads, d = q.shape[1], k.shape[1], q.shape[2]
    pages = torch.stack([k, v], 1)  # [pages, 2, kv heads, 16, d]: HND
    space = torch.empty(2**28, dtype=torch.uint8, device=q.device)
    common = (heads, kv_heads, d, 16)
    try:
        # Partly filled pages inside a path cannot be told to a kernel of whole sequences: it reads them as full.
        rows = {name: x.to(q.device) for name, x in paged(grown).items()}
        decode = fi.BatchDecodeWithPagedKVCacheWrapper(space, "HND")
        decode.plan(*rows.values(), *common, q_data_type=q.dtype, kv_data_type=q.dtype)
        yield Peer(
            "FlashInfer decode", lambda: decode.run(q, pages), "reads inner pages as full: not checked"
        )
    except Exception as error:  # it compiles at run time, with what it finds
        yield Peer("FlashInfer decode", None, f"{type(error).__name__}: {str(error)[:90]}")
    try:
        levels = tree_levels(grown)
        wrapper = fi.MultiLevelCascadeAttentionWrapper(len(levels), torch.empty_like(space), "HND")
        parts = [[part[i].to(q.device) for part in levels] for i in range(4)]
        wrapper.plan(*parts, *common, q_data_type=q.dtype)
        yield Peer(f"FlashInfer cascade, {len(levels)} levels", lambda: wrapper.run(q, pages))
    except Exception as error:
        yield Peer("FlashInfer cascade", None, f"{type(error).__name__}: {str(error)[:90]}")


def tree_levels(grown: Grown) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For each depth: bounds of rows, bounds of pages, pages, tokens in each last page. Every depth has all rows.

    Rows whose path is shorter end in an empty entry.
    """
    nodes, rows = grown.plan.nodes, grown.plan.n_rows
    open_: list[int] = []
    levels: list[list[int]] = []
    for x, lo in enumerate(nodes.lo.tolist()):
        open_ = [y for y in open_ if nodes.hi[y] > lo] + [x]
        if len(open_) > len(levels):
            levels.append([])
        levels[len(open_) - 1].append(x)
    found = []
    for level in levels:
        bounds, pointer, pages, last = [0], [0], [], []
        for x in level:
            if bounds[-1] < nodes.lo[x]:  # rows without a node at this depth
                bounds.append(int(nodes.lo[x]))
                pointer.append(pointer[-1])
                last.append(0)
            bounds.append(int(nodes.hi[x]))
            own = np.asarray(grown.plan.pages)[nodes.page_begin[x] : nodes.page_end[x]].tolist()
            pages += own
            pointer.append(len(pages))
            last.append((int(nodes.length[x]) - 1) % 16 + 1)
        if bounds[-1] < rows:
            bounds.append(rows)
            pointer.append(pointer[-1])
            last.append(0)
        found.append(tuple(torch.tensor(x, dtype=torch.int32) for x in (bounds, pointer, pages, last)))
    return found
