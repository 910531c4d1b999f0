"""The driver: opens sides, lets them take turns on the same items, and records every turn.

A side that cannot be installed, loaded or run stays in the record with its reason; turns that are recorded already are
not done again. It knows nothing of engines and nothing of ratios.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .process import SideError, SideProcess
from .workloads import Cell, Prompts, Shape, request

PAUSE = 0.5  # seconds before a turn, in which the threads of the side before fall asleep
LOAD_LIMIT = 1200.0
GRACE = 300.0  # seconds that a side has to notice that its time is over; then its process is ended
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
    """One item done by one side, or as much of it as its time allowed (``cut_off``), or the reason why it was not."""

    model: str
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
    cut_off: bool = False
    failed: str = ""

    @property
    def key(self) -> tuple[str, int, str, int, str, str]:
        """What this turn did."""
        return self.model, self.round, self.workload, self.n, self.side, self.mode

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Model:
    """What is run. ``paths``: ``path``, and where they are needed ``policy``, ``prm``, ``classifier``, ``cache``."""

    name: str
    paths: Mapping[str, str]
    prompts: Prompts


@dataclass
class Seat:
    """A side at the table, with a model. ``status`` is "ok" or why it takes no part."""

    entry: Startable
    model: Model
    status: str = "ok"
    facts: dict[str, Any] = field(default_factory=dict)
    load_seconds: list[float] = field(default_factory=list)
    process: SideProcess | None = None
    loaded: frozenset[str] = frozenset()  # the workloads that the process is ready for
    hopeless: dict[tuple[str, str], tuple[int, str]] = field(
        default_factory=dict
    )  # (workload, mode): from n on
    cut: set[tuple[str, int, str]] = field(default_factory=set)  # (workload, n, mode): once is enough

    def close(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.close()
            self.process = None

    def modes(self, workload: str) -> list[str]:
        """The ways in which this side does a workload; none before it was loaded once."""
        return list(self.facts.get("modes", {}).get(workload, [])) if self.status == "ok" else []


@dataclass
class Task:
    """Cells that the same seats do, equally often.

    Args:
        limit: seconds for one item; a side that takes longer is cut off, and not asked for the same again.
        together: all sides stay loaded and take turns item by item; else one is loaded at a time and does a round's
            items, for models that do not fit in memory side by side.
        modes: the ways that count, of a side that has several; none: all.
    """

    seats: Sequence[Seat]
    cells: Sequence[Cell]
    rounds: int
    limit: float
    together: bool
    modes: Sequence[str] = ()

    def modes_of(self, seat: Seat, workload: str) -> list[str]:
        """The ways in which a seat does a workload here: those asked for, or all where it has none of them."""
        there = seat.modes(workload)
        return [mode for mode in there if mode in self.modes] or there


@dataclass
class Campaign:
    """Everything one run does.

    Args:
        tasks: one after the other; a side that the next one needs, too, stays loaded.
        shape: sizes of all items.
        threads: of every side.
        logs: folder for what the sides print.
        hear: is told of every turn as it ends.
        done: turns of an earlier run, which are not done again.
        on_round: is called before each round in which something is left to do.
        until: no turn begins after this time (of time.monotonic); another run goes on from there.
    """

    tasks: Sequence[Task]
    shape: Shape
    threads: int
    logs: Path
    hear: Callable[[Turn], None]
    done: Iterable[Turn] = ()
    on_round: Callable[[], None] = lambda: None
    until: float = math.inf

    def run(self) -> None:
        """Install, load, take turns, close."""
        self._recorded = {turn.key for turn in self.done}
        self._installed: set[str] = set()
        seats = {id(seat): seat for task in self.tasks for seat in task.seats}
        for turn in self.done:
            for seat in seats.values():
                if turn.cut_off and (turn.model, turn.side) == (seat.model.name, seat.entry.label):
                    seat.cut.add((turn.workload, turn.n, turn.mode))
        try:
            for task in self.tasks:
                staying = {id(seat) for seat in task.seats} if task.together else set()
                for key, seat in seats.items():
                    if key not in staying:
                        seat.close()
                self._task(task)
        finally:
            for seat in seats.values():
                seat.close()

    def _task(self, task: Task) -> None:
        for seat in task.seats:
            self._install(seat)
        for round_ in range(task.rounds):
            first = round_ % len(task.seats)
            order = [*task.seats[first:], *task.seats[:first]]
            if any(self._pending(seat, task, round_) for seat in order):
                self.on_round()
            for group in [order] if task.together else [[seat] for seat in order]:
                self._round(task, round_, group)

    def _round(self, task: Task, round_: int, group: Sequence[Seat]) -> None:
        for seat in group:
            if self._pending(seat, task, round_):
                self._open(seat, task)
        for cell in task.cells:
            for seat in group:
                for mode in task.modes_of(seat, cell.workload):
                    if self._is_pending(seat, cell, mode, round_):
                        turn = self._turn(seat, task, cell, mode, round_)
                        self._recorded.add(turn.key)
                        self.hear(turn)
        if not task.together:
            for seat in group:
                seat.close()

    def _pending(self, seat: Seat, task: Task, round_: int) -> bool:
        """Whether a seat has anything left to do in a round, as far as is known before it was loaded."""
        if seat.status != "ok" or time.monotonic() > self.until:
            return False
        if not seat.facts:
            return True
        return any(
            self._is_pending(seat, cell, mode, round_)
            for cell in task.cells
            for mode in task.modes_of(seat, cell.workload)
        )

    def _is_pending(self, seat: Seat, cell: Cell, mode: str, round_: int) -> bool:
        if time.monotonic() > self.until:
            return False
        key = (seat.model.name, round_, cell.workload, cell.n, seat.entry.label, mode)
        return key not in self._recorded and (cell.workload, cell.n, mode) not in seat.cut

    def _install(self, seat: Seat) -> None:
        if seat.entry.label in self._installed or seat.status != "ok":
            return
        try:
            seat.entry.install()
            self._installed.add(seat.entry.label)
        except RuntimeError as error:
            seat.status = f"not installed: {error}"

    def _open(self, seat: Seat, task: Task) -> None:
        """Start and load a side that is not there, and let it do a little of everything once."""
        workloads = frozenset(cell.workload for cell in task.cells)
        if seat.process is not None and not workloads <= seat.loaded:
            seat.close()
        if seat.process is not None or seat.status != "ok":
            return
        log = self.logs / f"{seat.entry.label.replace(':', '-')}.log"
        try:
            seat.process = seat.entry.start(log, self.threads)
            load = {
                "model": dict(seat.model.paths),
                "precision": seat.entry.precision,
                "threads": self.threads,
            }
            facts = seat.process.ask({"op": "load", "workloads": sorted(workloads), **load}, LOAD_LIMIT)
        except (SideError, OSError) as error:
            seat.status = f"not loaded: {error}"
            seat.close()
            return
        seat.load_seconds.append(facts.pop("seconds"))
        seat.facts, seat.loaded = facts, workloads
        for workload in sorted(workloads):
            for mode in task.modes_of(seat, workload):
                self._warm(seat, task, workload, mode)

    def _warm(self, seat: Seat, task: Task, workload: str, mode: str) -> None:
        if (workload, mode) in seat.hopeless:  # it is here again because it died of this very thing
            return
        prompt = seat.model.prompts.of(Cell(workload, 0), 0)[:32]
        try:
            self._ask(seat, task, request(Cell(workload, 2), mode, prompt, self.shape, 0) | WARM)
        except SideError as error:
            seat.hopeless[workload, mode] = (0, str(error))

    def _turn(self, seat: Seat, task: Task, cell: Cell, mode: str, round_: int) -> Turn:
        label = (seat.model.name, round_, cell.workload, cell.n, seat.entry.label, mode)
        least, reason = seat.hopeless.get((cell.workload, mode), (cell.n + 1, ""))
        if cell.n >= least:
            return Turn(*label, failed=reason)
        prompt = seat.model.prompts.of(cell, round_)
        time.sleep(PAUSE)
        try:
            item = request(cell, mode, prompt, self.shape, round_)
            done = self._ask(seat, task, item | {"limit": task.limit})
        except SideError as error:
            reason = f"n={cell.n}: {error}"
            seat.hopeless[cell.workload, mode] = (cell.n, reason)
            return Turn(*label, failed=reason)
        if done["cut_off"]:
            seat.cut.add((cell.workload, cell.n, mode))
            if not done["tokens"]:
                return Turn(*label, cut_off=True, failed=f"wrote nothing within {task.limit:.0f} s")
        elif done["tokens"] != cell.tokens(self.shape):
            return Turn(*label, failed=f"wrote {done['tokens']} tokens of {cell.tokens(self.shape)}")
        names = ("tokens", "seconds", "cpu_seconds", "peak_rss", "extra", "cut_off")
        return Turn(*label, **{name: done[name] for name in names})

    def _ask(self, seat: Seat, task: Task, item: Mapping[str, Any]) -> dict[str, Any]:
        if seat.process is None:  # it died in its last turn
            self._open(seat, task)
        if seat.process is None:
            raise SideError(seat.status, alive=False)
        try:
            return seat.process.ask(item, task.limit + min(GRACE, 10 * task.limit))
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


def cpu_count() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
