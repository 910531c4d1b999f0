"""Rows of the GPU suite: timing with events and a flushed L2 cache, shares of measured rates, table and JSON."""

from __future__ import annotations

import json
import math
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass
class Row:
    """One side of one case. Bytes and FLOPs are floors: each unique byte once, each needed product once."""

    part: str
    case: str
    side: str
    ms: float | None = None  # median; None in a dry run
    p10: float | None = None
    p90: float | None = None
    bytes: float = 0.0
    flops: float = 0.0
    copy_share: float | None = None  # of the copy rate measured in the same run
    predicted_ms: float | None = None  # by roofline.py, from assumed rates
    error: float | None = None  # largest, against float32 or float64
    note: str = ""


@dataclass
class Suite:
    """Collects rows. ``dry`` runs everything once, small, on the CPU, and reports no times."""

    device: torch.device
    dry: bool
    quick: bool = False  # fewer cases
    dtype: torch.dtype = torch.bfloat16
    copy_rate: float = 0.0  # bytes a second, read and written
    gemm_rate: float = 0.0  # FLOPs a second
    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    deadline: float = math.inf  # of the part, by the monotonic clock

    def late(self, what: str) -> bool:
        """Whether the part's time is over; the case is skipped then."""
        if time.monotonic() < self.deadline:
            return False
        self.skip(what, "the part's time is over; run it alone (--parts)")
        return True

    def fail(self, what: str, error: Exception) -> None:
        """Note a case that went wrong; the others go on."""
        self.failed.append(f"{what}: {type(error).__name__}: {error}")
        print(f"-- FAILED {self.failed[-1]}", flush=True)

    def time(
        self,
        part: str,
        case: str,
        side: str,
        run: Callable[[], Any],
        *,
        bytes: float = 0.0,
        flops: float = 0.0,
        error: float | None = None,
        note: str = "",
    ) -> Row:
        """Time ``run`` (already checked) and add its row. ``triton.testing`` empties the L2 cache between runs."""
        row = Row(part, case, side, bytes=bytes, flops=flops, error=error, note=note)
        if self.dry:
            run()
        else:
            import triton.testing  # late: a dry run has no use for it

            row.ms, row.p10, row.p90 = triton.testing.do_bench(
                run, warmup=50, rep=200, quantiles=[0.5, 0.1, 0.9]
            )
            if bytes and self.copy_rate:
                row.copy_share = bytes / (row.ms / 1e3) / self.copy_rate
        self.rows.append(row)
        print(line(row), flush=True)
        return row

    def skip(self, what: str, why: str) -> None:
        self.skipped.append(f"{what}: {why}")
        print(f"-- skipped {what}: {why}", flush=True)


def line(row: Row) -> str:
    """A row of the table."""
    time = (
        "dry run"
        if row.ms is None
        else f"{row.ms * 1e3:10.1f} us  ({row.p10 * 1e3:.1f} - {row.p90 * 1e3:.1f})"
    )  # type: ignore[operator]
    share = f"{row.copy_share:6.1%} of copy" if row.copy_share else ""
    error = f"error {row.error:.1e}" if row.error is not None else ""
    if row.predicted_ms and row.ms:
        error += f" predicted {row.predicted_ms * 1e3:.1f} us"
    return f"{row.part:10s} {row.case:34s} {row.side:24s} {time:34s} {share:16s} {error} {row.note}".rstrip()


def environment(device: torch.device) -> dict[str, Any]:
    """Date, device, versions and commit: what a number needs to mean anything."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "rev-parse", "HEAD"),
        "dirty": bool(_output("git", "status", "--porcelain")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
    }
    for name in ("flash_attn", "flashinfer-python", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "processors": properties.multi_processor_count,
            "memory_gib": properties.total_memory / 2**30,
            "cuda": torch.version.cuda,
            "driver_and_clocks": _output(
                "nvidia-smi",
                "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit",
                "--format=csv,noheader",
            ),
        }
    return found


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def write(suite: Suite) -> Path:
    """``bench/results/DATE-gpu-PARTS.json``."""
    about = environment(suite.device)
    parts = "-".join(dict.fromkeys(row.part for row in suite.rows))
    path = RESULTS / f"{about['date'][:10]}-gpu-{parts}.json"
    rows = [asdict(row) for row in suite.rows]
    path.write_text(
        json.dumps(
            {"environment": about, "rows": rows, "skipped": suite.skipped, "failed": suite.failed}, indent=1
        )
    )
    return path


def summary(suite: Suite) -> str:
    """One line a case: our best side, the best other, and how many times faster ours is."""
    ours_words = ("tree", "triton", "incremental")
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in suite.rows:
        if row.ms is not None:
            cases.setdefault((row.part, row.case), []).append(row)
    lines = []
    for (part, case), rows in cases.items():
        ours = [row for row in rows if row.side.startswith(ours_words)]
        others = [row for row in rows if row not in ours]
        if not ours or not others:
            continue
        best, rival = (min(side, key=lambda row: row.ms or 0.0) for side in (ours, others))
        ratio = (rival.ms or 0.0) / (best.ms or 1.0)
        share = f"{best.copy_share:5.0%} of copy" if best.copy_share else ""
        lines.append(
            f"{part:10s} {case:34s} {(best.ms or 0.0) * 1e3:9.1f} us {ratio:5.2f}x {rival.side:26s} {share}"
        )
    return "\n".join(lines)
