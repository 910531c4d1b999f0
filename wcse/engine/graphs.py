"""Decode steps from CUDA graphs: one launch a step instead of a dozen a layer.

A graph is captured for every bucket of sizes (rows, work items, page entries, partial results; powers of two) when it
is first met. Its inputs lie in fixed memory, which a step fills; rows and items beyond the step's own do nothing. The
result is that of a plain ``forward``, but for the rounding of matrix products with more rows. On a device without
graphs the padded step runs as it is, which is how the padding is tested. Knows nothing of spans, sampling or requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wcse.models.decoder import Batch, Decoder
from wcse.models.kv_pool import KVPool

LEAST = 16  # smallest bucket of rows and items
LEAST_ENTRIES = 1024  # of entries and partial results, which cost memory only


@dataclass
class _Slot:
    """The fixed memory of one bucket and what was captured over it."""

    batch: Batch
    lists: dict[int, Any]  # by window: kernels.triton.work.DeviceList
    graph: torch.cuda.CUDAGraph | None = None
    hidden: Tensor | None = None


@dataclass(frozen=True)
class _FixedPlan:
    """What ``ops.tree_attention`` needs of a plan, over fixed memory."""

    n_rows: int
    lists: dict[int, Any]
    last_page: int = -1  # checked by ``StepGraphs``, which sees every step's own plan

    def list(self, window: int) -> Any:
        return self.lists[window]


class StepGraphs:
    """Runs batches of one new token a segment.

    Args:
        decoder: a dense one (``Decoder.dense``).
        pool: its keys and values.
    """

    def __init__(self, decoder: Decoder, pool: KVPool) -> None:
        self.decoder = decoder
        self.pool = pool
        self.captures = 0
        self._slots: dict[tuple[Any, ...], _Slot] = {}
        self._tables = 0  # rows of the rope tables that the graphs hold
        self._memory: Any = None  # one pool for all graphs: only one runs at a time

    def forward(self, batch: Batch) -> Tensor:
        """As ``decoder.forward(decoder.place(batch), pool)``; the result is not overwritten by later steps."""
        placed = self.decoder.place(batch, upload=False)
        plan = placed.plan
        if plan.last_page >= self.pool.num_pages:
            raise RuntimeError(f"the plan reads page {plan.last_page} of {self.pool.num_pages}")
        if self._tables != self.decoder.rope_rows:  # the graphs hold the addresses of tables that are gone
            self._slots.clear()
            self._tables = self.decoder.rope_rows
        slot = self._fill(batch, plan)
        if slot.hidden is None:
            self._capture(slot)
        elif slot.graph is not None:
            slot.graph.replay()
        else:
            slot.hidden = self.decoder.forward(slot.batch, self.pool)
        assert slot.hidden is not None
        return slot.hidden[batch.out_rows.to(slot.hidden.device, non_blocking=True)]

    def _fill(self, batch: Batch, plan: Any) -> _Slot:
        """The step's inputs in the fixed memory of its bucket."""
        from wcse.kernels.triton.work import Room, upload

        device, rows = self.decoder.device, _bucket(plan.n_rows)
        lists = {}
        for window in sorted({layer.window for layer in self.decoder.spec.layers}):
            work = plan.cut(window)
            need = Room.of(work, plan.plan)
            slots = _bucket(need.slots, LEAST_ENTRIES) if need.slots else 0
            room = Room(_bucket(need.items), _bucket(need.entries, LEAST_ENTRIES), slots, rows)
            lists[window] = upload(work, plan.plan, plan.tile(), device, room)
        key = (rows, *((w, x.tile_m, x.n_items, len(x.page), x.n_slots) for w, x in lists.items()))
        inputs = torch.zeros((3, rows), dtype=torch.int64, pin_memory=device.type == "cuda")
        inputs[2] = -1  # a slot that is not written to
        for row, part in zip(inputs, (batch.tokens, batch.positions, batch.slots), strict=True):
            row[: len(part)] = part
        there = inputs.to(device, non_blocking=True)
        slot = self._slots.get(key)
        if slot is None:
            fixed = Batch(
                tokens=there[0],
                positions=there[1].to(torch.int32),
                slots=there[2].to(torch.int32),
                plan=_FixedPlan(rows, lists),
                out_rows=torch.arange(rows, device=device),
            )
            slot = self._slots[key] = _Slot(fixed, lists)
            return slot
        for window, fresh in lists.items():
            slot.lists[window].buffer.copy_(fresh.buffer)
        targets = (slot.batch.tokens, slot.batch.positions, slot.batch.slots)
        for target, source in zip(targets, there, strict=True):
            target.copy_(source)
        return slot

    def _capture(self, slot: _Slot) -> None:
        """Run the step once (kernels are compiled meanwhile), then record it. Both write the same to the pool."""
        slot.hidden = self.decoder.forward(slot.batch, self.pool)
        if self.decoder.device.type != "cuda":
            return
        torch.cuda.synchronize(self.decoder.device)
        graph = torch.cuda.CUDAGraph()
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._memory):
            slot.hidden = self.decoder.forward(slot.batch, self.pool)
        slot.graph = graph
        self.captures += 1
        graph.replay()


def _bucket(size: int, least: int = LEAST) -> int:
    return max(least, 1 << (size - 1).bit_length())
