"""The record of a comparison on disk: turns, what the sides are, the machine; read again when a run goes on.

Knows files and machines, not how turns come about.
"""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wcse import _core

from . import report
from .driver import Seat, Turn, cpu_count
from .floor import Floor, gemm_peak
from .registry import HERE
from .workloads import Cell, Shape


@dataclass
class Record:
    """What ``NAME.json`` holds.

    Args:
        folder, name: of the files.
        peaks: FLOP/s of this machine's fp32 GEMM, measured before each round.
        runs: when and from which commit each run was that wrote here.
    """

    folder: Path
    name: str
    shape: Shape
    threads: int
    machine: dict[str, Any]
    turns: list[Turn] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    sides: dict[str, dict[str, Any]] = field(default_factory=dict)
    plan: list[dict[str, Any]] = field(default_factory=list)
    seats: list[Seat] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, name: str, shape: Shape, threads: int, *, fresh: bool) -> Record:
        """The record of that name, or a new one.

        Raises:
            ValueError: there is one of other sizes, threads or of another machine.
        """
        record = cls(folder, name, shape, threads, _machine())
        path = folder / f"{name}.json"
        if path.exists() and not fresh:
            old = json.loads(path.read_text())
            mine = {"shape": asdict(shape), "threads": threads, "machine": record.machine}
            if differing := [key for key, value in mine.items() if old.get(key) != value]:
                raise ValueError(
                    f"{path} is of another {' and '.join(differing)}; give --fresh or another --name"
                )
            record.turns = [Turn(**turn) for turn in old["turns"]]
            record.peaks, record.runs, record.sides = old["peaks"], old["runs"], old["sides"]
        record.runs.append(
            {"date": _now(), "commit": _output("git", "-C", str(HERE), "rev-parse", "--short", "HEAD")}
        )
        return record

    def facts_of(self, model: str, side: str) -> dict[str, Any]:
        """What is known of a side from an earlier run; nothing if it did not take part."""
        known = self.sides.get(f"{model} {side}", {})
        return {key: value for key, value in known.items() if key not in ("status", "load_seconds")}

    def hear(self, turn: Turn) -> None:
        """Keep a turn, say what it came to, and write everything."""
        self.turns.append(turn)
        said = turn.failed or f"{turn.rate:.1f} tokens/s"
        if turn.cut_off:
            said = f"cut off after {turn.seconds:.0f} s at {turn.tokens} tokens, {said}"
        where = f"{turn.model} round {turn.round + 1} {turn.workload} n={turn.n} {turn.side} {turn.mode}"
        print(f"{where}: {said}", flush=True)
        self.save()

    def measure(self) -> None:
        """Measure this machine's GEMM once more."""
        self.peaks.append(gemm_peak(self.threads))

    def save(self) -> str:
        """Write the files; the table."""
        self.sides |= report.side_records(self.seats)
        dtypes = {tuple(key.split(" ", 1)): str(facts.get("dtype", "")) for key, facts in self.sides.items()}
        records = report.summary(self.turns, dtypes, self._floors())  # type: ignore[arg-type]
        text = self._heading() + report.table(records, self.seats)
        facts: Mapping[str, Any] = {
            "shape": asdict(self.shape), "threads": self.threads, "machine": self.machine, "runs": self.runs,
            "plan": self.plan, "peaks": self.peaks, "sides": self.sides, "summary": records,
        }  # fmt: skip
        report.write(self.folder, self.name, facts, self.turns, text)
        return text

    def _floors(self) -> dict[report.Cell, float]:
        """Tokens a second that fp32 GEMM allows, by cell; none before the first measurement."""
        models = {seat.model.name: Floor(Path(seat.model.paths["policy"])) for seat in self.seats}
        if not self.peaks:
            return {}
        peak = statistics.median(self.peaks)
        floors = {}
        for turn in self.turns:
            if turn.model in models:
                cell = Cell(turn.workload, turn.n)
                flops = models[turn.model].flops(cell, self.shape)
                floors[turn.model, turn.workload, turn.n] = peak * cell.tokens(self.shape) / flops
        return floors

    def _heading(self) -> str:
        machine, last = self.machine, self.runs[-1]
        peak = f"; fp32 GEMM {statistics.median(self.peaks) / 1e9:.0f} GFLOP/s" if self.peaks else ""
        return (
            f"{self.threads} threads of {machine['cores']} cores of {machine['cpu']} ({machine['isa']}){peak}; "
            f"{last['date']}, commit {last['commit']}. Rates are medians; ratios are least / median / largest over "
            "rounds.\n\n"
        )


def _machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "cores": cpu_count(),
        "isa": _core.cpu_isa(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"
