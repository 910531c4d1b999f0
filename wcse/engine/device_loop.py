"""Several tokens for every row before the host looks: a step, its drawing and what follows, recorded and replayed.

One iteration is ``forward``, logits, ``sample``, ``advance`` and, for every work list, ``grow``. A CUDA graph of it is
captured for each bucket of sizes and replayed as often as tokens are wanted; rows that ended do nothing meanwhile. All
inputs of a round go up in one copy, all results come down in one. Without CUDA the iterations run as they are, which
is how all of it is tested. Knows rows of numbers, nothing of spans, text or requests.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wcse import _core
from wcse.engine.graphs import FixedPlan, bucket, bucketed_lists, lists_key
from wcse.engine.lanes import Download, Lane
from wcse.kernels import ops
from wcse.models.decoder import Batch, Decoder
from wcse.models.kv_pool import KVPool

if TYPE_CHECKING:
    from wcse.kernels.triton.work import DevicePlan

MACHINES = 3  # delimiter, stop strings, ids


@dataclass(frozen=True, slots=True)
class RoundRows:
    """What rows bring to a round; numpy, [R] each."""

    tokens: np.ndarray  # int64, the last token of each, not stored yet
    slots: np.ndarray  # int32, its place
    counters: np.ndarray  # int32, of the next random number
    left: np.ndarray  # int32, tokens that the row may write
    keys: np.ndarray  # int64, of random numbers
    temperature: np.ndarray  # float32
    top_k: np.ndarray  # int32
    top_p: np.ndarray  # float32
    min_p: np.ndarray  # float32
    machines: np.ndarray  # int32 [R, MACHINES]

    def take(self, order: np.ndarray) -> RoundRows:
        return RoundRows(*(getattr(self, field.name)[order] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Round:
    """What rows wrote, in the order in which they were given."""

    tokens: np.ndarray  # int32 [K, R]
    logprobs: np.ndarray  # float32 [K, R]
    counts: np.ndarray  # int32 [R], tokens of each

    def take(self, rows: list[int]) -> Round:
        """What some of the rows wrote."""
        return Round(self.tokens[:, rows], self.logprobs[:, rows], self.counts[rows])


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a round needs of its plan, on its way to the device."""

    plan: DevicePlan
    order: np.ndarray  # of the plan's segments
    positions: np.ndarray  # int32 [R]
    lists: dict[int, Any]  # by window: kernels.triton.work.DeviceList
    tails: list[np.ndarray]  # of each list, int32 [R]


@dataclass(frozen=True, slots=True)
class Started:
    """A round that the device works on."""

    outputs: Download
    tokens: int
    prepared: Prepared  # kept until the device has copied it

    @property
    def order(self) -> np.ndarray:
        return self.prepared.order

    def wait(self) -> Round:
        """What the rows wrote."""
        found = self.outputs.wait()
        back = np.empty(len(self.order), np.int64)
        back[self.order] = np.arange(len(self.order))
        tokens, logprobs = found[: self.tokens, back], found[self.tokens : -1].view(np.float32)[:, back]
        return Round(tokens, logprobs, found[-1, back])


_WIDE = ("keys", "tokens")
_INTS = ("positions", "slots", "counters", "left", "done", "top_k")
_FLOATS = ("temperature", "top_p", "min_p")


@dataclass
class _Memory:
    """The fixed memory of one bucket, views of ``inputs`` and ``outputs``, and what was captured over it."""

    inputs: Tensor  # int32
    outputs: Tensor  # int32 [2 K + 1, R]: tokens, bits of log-probabilities, counts
    rows: ops.DecodeRows
    draws: tuple[Tensor, ...]  # as ``ops.sample`` takes them after the logits
    lists: dict[int, Any]
    tails: list[Tensor]
    batch: Batch
    table: Tensor
    runs: int = 0
    graph: torch.cuda.CUDAGraph | None = None


class DeviceLoop:
    """Runs rounds of at most ``tokens`` tokens a row.

    Args:
        decoder: a dense one (``Decoder.dense``), with its output matrix.
        pool: its keys and values.
        tile_rows: tree rows that share a tile of attention; None chooses. 1 reads each sequence by itself.
        lane: where its work goes; who calls has entered it.
    """

    def __init__(
        self,
        decoder: Decoder,
        pool: KVPool,
        *,
        tokens: int,
        tile_rows: int | None = None,
        lane: Lane | None = None,
    ) -> None:
        self.lane = lane or Lane(decoder.device)
        self.decoder = decoder
        self.pool = pool
        self.tokens = tokens
        self.tile_rows = tile_rows
        self.captures = 0
        self._memories: dict[tuple[Any, ...], _Memory] = {}
        self._tables = (0, 0)  # rows of the rope tables and address of the machines that the graphs hold
        self._pool_handle: Any = None

    def run(
        self, plan: _core.Plan, rows: RoundRows, ahead: np.ndarray, table: Tensor, *, count: int
    ) -> Round:
        """``prepare``, ``start``, and wait for the end."""
        return self.start(self.prepare(plan, ahead, count=count), rows, table, count=count).wait()

    def prepare(self, plan: _core.Plan, ahead: np.ndarray, *, count: int) -> Prepared:
        """Cut the work lists of a round and send them to the device.

        Args:
            plan: one new token for every row, none of which is above another.
            ahead: int32 [R, pages], in the order of the plan's segments; the pages that hold the next ``count - 1``
                tokens of each row.
        """
        positions = np.asarray(plan.positions)
        last = torch.from_numpy(positions + (count - 1))  # the rope tables must reach as far
        nothing = torch.zeros(len(positions), dtype=torch.int64)
        placed = self.decoder.place(Batch(nothing, last, nothing, plan, nothing), upload=False).plan
        order = np.asarray(plan.order)
        placed.ahead, placed.tile_rows = ahead[order], self.tile_rows
        if placed.last_page >= self.pool.num_pages:
            raise RuntimeError(f"the plan reads page {placed.last_page} of {self.pool.num_pages}")
        fresh = bucketed_lists(self.decoder, placed)
        lists = {window: there for window, (there, _) in fresh.items()}
        return Prepared(placed, order, positions, lists, [work.tails for _, work in fresh.values()])

    def foresee(self, plan: _core.Plan, ahead: np.ndarray, *, count: int) -> Prepared | None:
        """``prepare`` while a round runs, and beside it. None: the tables that it reads would have to be replaced."""
        if int(np.asarray(plan.positions).max()) + count > self.decoder.rope_rows:
            return None
        with self.lane.beside():
            return self.prepare(plan, ahead, count=count)

    def start(self, prepared: Prepared, rows: RoundRows, table: Tensor, *, count: int) -> Started:
        """Queue up to ``count`` tokens of every row; the host may do other things meanwhile.

        Args:
            prepared: of a plan of these rows and as many tokens.
            rows: in the order of the plan's segments.
            table: see ``ops.advance``.
        """
        memory = self._fill(prepared, rows.take(prepared.order), table, count)
        for _ in range(count):
            self._iterate(memory)
        return Started(self.lane.download(memory.outputs), self.tokens, prepared)

    def _fill(self, prepared: Prepared, rows: RoundRows, table: Tensor, count: int) -> _Memory:
        """The round's inputs in the fixed memory of its bucket."""
        self.decoder.check_tokens(torch.from_numpy(rows.tokens))
        tables = self.decoder.rope_rows, table.data_ptr()
        if self._tables != tables:  # the graphs hold the addresses of tables that are gone
            self._memories.clear()
            self._tables = tables
        size, lists = bucket(prepared.plan.n_rows), prepared.lists
        key = lists_key(size, lists)
        host = self._pack(rows, prepared.positions, prepared.tails, size, count)
        if key not in self._memories:
            self._memories[key] = self._allocate(host, lists, table, size)
            return self._memories[key]
        memory = self._memories[key]
        memory.inputs.copy_(host, non_blocking=True)
        memory.outputs.zero_()
        for window, there in lists.items():
            memory.lists[window].buffer.copy_(there.buffer)
        return memory

    def _pack(
        self, rows: RoundRows, positions: np.ndarray, tails: list[np.ndarray], size: int, count: int
    ) -> Tensor:
        """All inputs in one pinned buffer; rows of padding are done from the start."""
        n = len(positions)
        n_words = size * (2 * len(_WIDE) + len(_INTS) + len(_FLOATS) + MACHINES + len(tails))
        host = torch.zeros(n_words, dtype=torch.int32, pin_memory=self.decoder.device.type == "cuda")
        parts = _split(host.numpy(), size, len(tails))
        for name in (*_WIDE, *_FLOATS, "slots", "counters", "top_k"):
            parts[name][:n] = getattr(rows, name)
        parts["positions"][:n] = positions
        parts["left"][:n] = np.minimum(rows.left, count)
        parts["slots"][n:] = -1
        parts["done"][n:] = 1
        parts["top_p"][n:] = 1.0
        for state, column in zip(parts["machines"], rows.machines.T, strict=True):
            state[:n] = column
        for row, ends in zip(parts["tails"], tails, strict=True):
            row[:n] = ends
        return host

    def _allocate(self, host: Tensor, lists: dict[int, Any], table: Tensor, size: int) -> _Memory:
        device = self.decoder.device
        inputs = torch.empty_like(host, device=device, pin_memory=False)
        inputs.copy_(host, non_blocking=True)
        outputs = torch.zeros((2 * self.tokens + 1, size), dtype=torch.int32, device=device)
        parts = _split(inputs, size, len(lists))
        rows = ops.DecodeRows(
            tokens=parts["tokens"],
            positions=parts["positions"],
            slots=parts["slots"],
            counters=parts["counters"],
            left=parts["left"],
            machines=parts["machines"],
            done=parts["done"],
            counts=outputs[-1],
            written=outputs[: self.tokens],
            logprobs=outputs[self.tokens : -1].view(torch.float32),
        )
        index = torch.arange(size, dtype=torch.int32, device=device)
        draws = (
            index,
            *(parts[name] for name in ("temperature", "top_k", "top_p", "min_p", "keys", "counters")),
        )
        batch = Batch(rows.tokens, rows.positions, rows.slots, FixedPlan(size, lists), index.long())
        return _Memory(inputs, outputs, rows, draws, lists, list(parts["tails"]), batch, table)

    def _iterate(self, memory: _Memory) -> None:
        """One token. The first time kernels are compiled, the second time what the device does is recorded."""
        if memory.graph is None and memory.runs and self.decoder.device.type == "cuda":
            torch.cuda.synchronize(self.decoder.device)
            if self._pool_handle is None:
                self._pool_handle = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool_handle):
                self._step(memory)
            memory.graph = graph
            self.captures += 1
        if memory.graph is not None:
            memory.graph.replay()
        else:
            self._step(memory)
        memory.runs += 1

    def _step(self, memory: _Memory) -> None:
        backend = self.decoder.backend
        logits = self.decoder.logits(self.decoder.forward(memory.batch, self.pool))
        drawn, logprobs = ops.sample(logits, *memory.draws, backend=backend)
        ops.advance(drawn, logprobs, memory.rows, memory.table, backend=backend)
        for tails, list_ in zip(memory.tails, memory.lists.values(), strict=True):
            ops.grow(memory.rows, tails, list_, backend=backend)


def _split(words: Any, size: int, lists: int) -> dict[str, Any]:
    """Names for the parts of the inputs, of a numpy array or a tensor; every part begins on 16 bytes."""
    kinds = (np.int64, np.float32) if isinstance(words, np.ndarray) else (torch.int64, torch.float32)
    parts, at = {}, 0
    for name in _WIDE:
        parts[name] = words[at : at + 2 * size].view(kinds[0])
        at += 2 * size
    for name in (*_INTS, *_FLOATS):
        part = words[at : at + size]
        parts[name] = part.view(kinds[1]) if name in _FLOATS else part
        at += size
    parts["machines"] = words[at : at + MACHINES * size].reshape(MACHINES, size)
    at += MACHINES * size
    parts["tails"] = words[at : at + lists * size].reshape(lists, size)
    return parts
