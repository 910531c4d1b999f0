"""A plan made ready for the device: tile size, work list, upload.

One work list serves all layers with the same window and all kv heads. Knows the shape of the attention kernel's
tiles and assumed device rates; knows nothing of kernels' code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from wcse import _core
from wcse.kernels.triton.prompt import LEAST, path_slots
from wcse.kernels.triton.rates import H200, Device, Load

TILE_M = (16, 32, 64, 128)
"""Rows of the score matrix of one tile; a row is a tree row times a query head of the group."""

PAGE = 16
_ALIGN = 4  # int32s: parts of the upload begin on 16 bytes, so that a kernel is compiled once


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a work list makes the kernel read, in tokens of one layer and one kv head."""

    unique: int  # every token that some row sees, once
    read: int  # whole pages, once a tile

    @property
    def ratio(self) -> float:
        return self.read / max(1, self.unique)


@dataclass(frozen=True, slots=True)
class DeviceList:
    """A work list in device memory. Views of one int32 buffer, which is uploaded in one copy."""

    buffer: Tensor  # int32, all of the tensors below
    tile_m: int
    n_items: int
    n_slots: int
    n_rows: int
    items: Tensor  # [5 n_items]
    page: Tensor
    rows: Tensor
    pos: Tensor
    merge: Tensor  # [3 n_rows]
    row_pos: Tensor  # [n_rows], absolute positions
    traffic: Traffic


@dataclass(slots=True, eq=False)
class DevicePlan:
    """A ``_core.Plan`` with its work lists, made once a step and used by all layers.

    Args:
        plan: the plan.
        device: where the lists go.
        group: query heads of one kv head.
        kv_heads: of one layer.
        head_dim: size of a head.
        dtype: of queries, keys and values.
        tile_m: rows of a tile, one of ``TILE_M``; None chooses by cost.
        chunks: wanted work items of each kv head; None fills the device once.
        tile_rows: tree rows of a tile; None: as many as fit in ``tile_m``. 1 reads every row's path by itself.
        ahead: int32 [rows, pages], pages that each row will grow into, -1 for none; see ``_core.work_list``.
    """

    plan: _core.Plan
    device: torch.device
    group: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype = torch.bfloat16
    tile_m: int | None = None
    chunks: int | None = None
    rates: Device = H200
    tile_rows: int | None = None
    ahead: np.ndarray | None = None
    _lists: dict[int, DeviceList] = field(default_factory=dict)
    _path: Tensor | Literal[False] | None = False  # False: not looked for yet

    @property
    def last_page(self) -> int:
        """The largest page id that the lists hold."""
        ahead = -1 if self.ahead is None else int(self.ahead.max(initial=-1))
        return max(int(self.plan.pages.max(initial=-1)), ahead)

    @property
    def n_rows(self) -> int:
        return self.plan.n_rows

    def path(self) -> Tensor | None:
        """Slots int64 [tokens] of the one path that all rows are on, if they are many and on one; see ``prompt``."""
        if self._path is False:
            slots = path_slots(self.plan) if self.n_rows >= LEAST else None
            self._path = None if slots is None else torch.from_numpy(slots).to(self.device, non_blocking=True)
        assert self._path is not False
        return self._path

    def list(self, window: int) -> DeviceList:
        """The work list for this window; made and uploaded when it is asked for first."""
        if window not in self._lists:
            self._lists[window] = self._make(window)
        return self._lists[window]

    def _make(self, window: int) -> DeviceList:
        return upload(self.cut(window), self.plan, self.tile(), self.device)

    def tile(self) -> int:
        """Rows of a tile: given, or chosen by cost."""
        if self.tile_m is None:
            sizes = tile_sizes(self.group, self.head_dim, self.dtype, self.rates.major)
            self.tile_m = choose_tile(self.plan, self.group, self.kv_heads, self.head_dim, self.rates, sizes)
        return self.tile_m

    def cut(self, window: int) -> _core.WorkList:
        """The work list for this window, on the host."""
        full = self.rates.processors * self.rates.resident
        tile_rows = self.tile_rows or self.tile() // self.group
        pages = tile_pages(self.plan, tile_rows)
        return _core.work_list(
            self.plan,
            tile_rows=tile_rows,
            block_pages=block_tokens(self.head_dim, self.dtype) // PAGE,
            items=self.chunks or max(1, full // self.kv_heads),
            least_pages=1 if self.chunks else least_pages(pages, self.kv_heads, self.rates),
            window=window,
            ahead=None if self.ahead is None else self.ahead.ravel(),
        )


@dataclass(frozen=True, slots=True)
class Room:
    """Sizes of a work list, or of the memory for one."""

    items: int
    entries: int
    slots: int
    rows: int

    @staticmethod
    def of(work: _core.WorkList, plan: _core.Plan) -> Room:
        return Room(len(work.items) // 5, len(work.page), work.slots, plan.n_rows)


def upload(
    work: _core.WorkList, plan: _core.Plan, tile_m: int, device: torch.device, room: Room | None = None
) -> DeviceList:
    """Copy a work list to the device, in one piece and, on CUDA, from pinned memory without waiting.

    ``room`` leaves space for longer lists. Zeros there are items without rows and rows without partials: kernels that
    are launched for all of the room do nothing for them.
    """
    room = room or Room.of(work, plan)
    sizes = [5 * room.items, *[room.entries] * 3, 3 * room.rows, room.rows]
    starts = np.cumsum([0] + [-(-size // _ALIGN) * _ALIGN for size in sizes])
    host = torch.zeros(int(starts[-1]) or _ALIGN, dtype=torch.int32, pin_memory=device.type == "cuda")
    flat = host.numpy()
    parts = [work.items, work.page, work.rows, work.pos, work.merge, plan.positions]
    for part, start in zip(parts, starts, strict=False):
        flat[start : start + len(part)] = part
    there = host.to(device, non_blocking=True)
    views = [there[start : start + size] for size, start in zip(sizes, starts, strict=False)]
    nodes = plan.nodes
    seen = np.minimum(nodes.length, nodes.seen + nodes.hi - 1 - nodes.lo)
    traffic = Traffic(unique=int(seen.sum()), read=work.entries * PAGE)
    return DeviceList(there, tile_m, room.items, room.slots, room.rows, *views, traffic=traffic)


def block_tokens(head_dim: int, dtype: torch.dtype) -> int:
    """KV tokens of one step of the kernel's loop: what fits registers and shared memory."""
    return 32 if head_dim > 128 or dtype is torch.float32 else 64


def tile_sizes(group: int, head_dim: int, dtype: torch.dtype, major: int = 9) -> tuple[int, ...]:
    """Tiles that a group fits in and that compile without spills (float32 takes three products for one)."""
    if dtype is torch.float32:
        most = 16
    elif major < 9:  # operands of the older matrix instruction lie in registers
        most = 32 if head_dim > 64 else 128
    else:
        most = 64 if head_dim > 128 else 128
    fit = [m for m in TILE_M if m >= group]
    return tuple(m for m in fit if m <= most) or (fit[0],)


def tile_pages(plan: _core.Plan, tile_rows: int) -> int:
    """Pages in all lists when tiles have so many rows: every node once for each tile that it touches."""
    nodes = plan.nodes
    pages = nodes.page_end.astype(np.int64) - nodes.page_begin
    tiles = -(-nodes.hi.astype(np.int64) // tile_rows) - nodes.lo // tile_rows
    return int((pages * tiles * (nodes.hi > nodes.lo)).sum())


def least_pages(pages: int, kv_heads: int, rates: Device) -> int:
    """Pages of a piece of a list that is split: 256 tokens, fewer where that would leave processors idle."""
    return min(16, max(4, pages * kv_heads // rates.processors))


def choose_tile(
    plan: _core.Plan,
    group: int,
    kv_heads: int,
    head_dim: int,
    rates: Device,
    sizes: tuple[int, ...] = TILE_M,
) -> int:
    """Rows of a tile with the least modelled time, for 16-bit keys and values.

    Wide tiles read a shared page less often; narrow ones waste fewer rows on pages that few see, and are more, so that
    a small batch is split into fewer partial results.
    """
    stored = PAGE * float((plan.nodes.page_end - plan.nodes.page_begin).sum())

    def seconds(tile_m: int) -> float:
        tile_rows = tile_m // group
        pages, tiles = tile_pages(plan, tile_rows), -(-plan.n_rows // tile_rows)
        target = max(
            least_pages(pages, kv_heads, rates), pages * kv_heads / (rates.processors * rates.resident)
        )
        chunks = max(1, round(pages / tiles / target))
        partials = 0 if chunks == 1 else chunks * plan.n_rows * kv_heads * group * (2 * head_dim + 4)
        load = Load(
            tile_m=tile_m,
            kv_heads=kv_heads,
            head_dim=head_dim,
            stored=stored,
            read=float(pages * PAGE),
            items=tiles * chunks,
            rows_bytes=4.0 * plan.n_rows * kv_heads * group * head_dim,
            partial_bytes=float(partials),
        )
        return rates.resources(load).seconds

    costs = {tile_m: seconds(tile_m) for tile_m in TILE_M if tile_m in sizes}
    # Of nearly equal ones the widest: that it reads less is certain, the rest is a model.
    return max(tile_m for tile_m, cost in costs.items() if cost <= 1.06 * min(costs.values()))
