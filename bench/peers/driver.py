"""The driver: opens sides, lets them take turns on the same items, and records every turn.

A side that cannot be installed, loaded or run stays in the record with its reason. It knows nothing of engines and
nothing of ratios.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .process import SideError, SideProcess
from .workloads import Cell, Prompts, Shape, request

PAUSE = 0.5  # seconds before a turn, in which the threads of the side before fall asleep
LOAD_LIMIT = 1200.0
WARM = {"new_tokens": 4, "steps": 2, "step_tokens": 4, "n": 2}


class Startable(Protocol):
    """What the driver needs of a side: see ``registry.Entry``."""

    @property
    def label(self) -> str: ...
    @property
    def precision(self) -> str: ...
    def install(self) -> None:
        """Raises RuntimeError with the reason."""

    def start(self, log: Path, threads: int) -> SideProcess: ...


@dataclass(frozen=True)
class Turn:
    """One item done by one side, or the reason why it was not."""

    round: int
    workload: str
    n: int
    side: str
    mode: str
    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_rss: int = 0
    extra: Mapping[str, float] = field(default_factory=dict)
    failed: str = ""


@dataclass
class Seat:
    """A side at the table. ``status`` is "ok" or why it takes no part."""

    entry: Startable
    status: str = "ok"
    facts: dict[str, Any] = field(default_factory=dict)
    load_seconds: list[float] = field(default_factory=list)
    process: SideProcess | None = None
    hopeless: dict[tuple[str, str], tuple[int, str]] = field(
        default_factory=dict
    )  # (workload, mode): from n on

    def close(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.close()
            self.process = None


@dataclass
class Campaign:
    """Everything one run does.

    Args:
        seats: the sides, in the order of the first round; each next round another one begins.
        cells: what they do.
        rounds: how often.
        model: what a side loads: ``path``, and where they are needed ``policy``, ``prm``, ``classifier`` and ``cache``.
        threads: of every side.
        limit: seconds for one item; a side that takes longer is not asked for as many beams again.
        together: all sides stay loaded and take turns item by item; else one is loaded at a time and does a round's
            items, for models that do not fit in memory side by side.
        logs: folder for what the sides print.
        hear: is told of every turn as it ends.
    """

    seats: Sequence[Seat]
    cells: Sequence[Cell]
    prompts: Prompts
    shape: Shape
    rounds: int
    model: Mapping[str, str]
    threads: int
    limit: float
    together: bool
    logs: Path
    hear: Callable[[Turn], None]

    def run(self) -> None:
        """Install, load, take turns, close."""
        try:
            for seat in self.seats:
                self._install(seat)
            for round_ in range(self.rounds):
                first = round_ % len(self.seats)
                order = [*self.seats[first:], *self.seats[:first]]
                for group in [order] if self.together else [[seat] for seat in order]:
                    self._round(round_, group)
        finally:
            for seat in self.seats:
                seat.close()

    def _round(self, round_: int, group: Sequence[Seat]) -> None:
        for seat in group:
            self._open(seat)
        for cell in self.cells:
            for seat in group:
                for mode in seat.facts.get("modes", {}).get(cell.workload, []) if seat.status == "ok" else []:
                    self.hear(self._turn(seat, cell, mode, round_))
        if not self.together:
            for seat in group:
                seat.close()

    def _install(self, seat: Seat) -> None:
        try:
            seat.entry.install()
        except RuntimeError as error:
            seat.status = f"not installed: {error}"

    def _open(self, seat: Seat) -> None:
        """Start and load a side that is not there, and let it do a little of everything once."""
        if seat.process is not None or seat.status != "ok":
            return
        workloads = sorted({cell.workload for cell in self.cells})
        log = self.logs / f"{seat.entry.label.replace(':', '-')}.log"
        try:
            seat.process = seat.entry.start(log, self.threads)
            load = {"model": dict(self.model), "precision": seat.entry.precision, "threads": self.threads}
            facts = seat.process.ask({"op": "load", "workloads": workloads, **load}, LOAD_LIMIT)
        except (SideError, OSError) as error:
            seat.status = f"not loaded: {error}"
            seat.close()
            return
        seat.load_seconds.append(facts.pop("seconds"))
        seat.facts = seat.facts or facts
        for workload in workloads:
            for mode in seat.facts["modes"].get(workload, []):
                self._warm(seat, workload, mode)

    def _warm(self, seat: Seat, workload: str, mode: str) -> None:
        if (workload, mode) in seat.hopeless:  # it is here again because it died of this very thing
            return
        prompt = self.prompts.of(Cell(workload, 0), 0)[:32]
        try:
            self._ask(seat, request(Cell(workload, 2), mode, prompt, self.shape, 0) | WARM)
        except SideError as error:
            seat.hopeless[workload, mode] = (0, str(error))

    def _turn(self, seat: Seat, cell: Cell, mode: str, round_: int) -> Turn:
        label = (round_, cell.workload, cell.n, seat.entry.label, mode)
        least, reason = seat.hopeless.get((cell.workload, mode), (cell.n + 1, ""))
        if cell.n >= least:
            return Turn(*label, failed=reason)
        prompt = self.prompts.of(cell, round_)
        time.sleep(PAUSE)
        try:
            done = self._ask(seat, request(cell, mode, prompt, self.shape, round_))
        except SideError as error:
            reason = f"n={cell.n}: {error}"
            seat.hopeless[cell.workload, mode] = (cell.n, reason)
            return Turn(*label, failed=reason)
        if done["tokens"] != cell.tokens(self.shape):
            return Turn(*label, failed=f"wrote {done['tokens']} tokens of {cell.tokens(self.shape)}")
        kept = {name: done[name] for name in ("tokens", "seconds", "cpu_seconds", "peak_rss", "extra")}
        return Turn(*label, **kept)

    def _ask(self, seat: Seat, item: Mapping[str, Any]) -> dict[str, Any]:
        self._open(seat)  # it may have died in its last turn
        if seat.process is None:
            raise SideError(seat.status, alive=False)
        try:
            return seat.process.ask(item, self.limit)
        except SideError as error:
            if not error.alive:
                seat.close()
            raise


def memory_available() -> int | None:
    """Bytes that new processes may take; None where the system does not say."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return None
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def fits_together(sides: int, parameters: int, verifier: bool) -> bool:
    """Whether so many sides, each with fp32 weights, a packed copy and caches, fit in memory at one time."""
    available = memory_available()
    weights = 8 * parameters * (2 if verifier else 1)
    return available is not None and sides * (weights + 3 * 2**30) < 0.9 * available


def cpu_count() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
