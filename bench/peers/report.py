"""Ratios, the table and the JSON of a comparison. Knows turns and seats, not how they came about."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .driver import Seat, Turn
from .workloads import WORKLOADS

Key = tuple[str, int, str, str]
LETTERS = {name: letter for letter, name in WORKLOADS.items()}
Spread = dict[str, float]


def by_line(turns: Iterable[Turn]) -> dict[Key, list[Turn]]:
    """Turns of the same workload, size, side and mode, in the order of rounds; lines by workload and size."""
    lines: dict[Key, list[Turn]] = {}
    for turn in turns:
        lines.setdefault((turn.workload, turn.n, turn.side, turn.mode), []).append(turn)
    return dict(sorted(lines.items(), key=lambda item: (LETTERS[item[0][0]], item[0][1])))


def spread(values: Sequence[float]) -> Spread:
    """Least, median and most."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def ratios(line: Sequence[Turn], base: Sequence[Turn]) -> Spread | None:
    """How many times longer than ``base`` a line took, round by round; None without a common round."""
    seconds = {turn.round: turn.seconds for turn in base if not turn.failed}
    found = [turn.seconds / seconds[turn.round] for turn in line if not turn.failed and turn.round in seconds]
    return spread(found) if found else None


def summary(turns: Sequence[Turn], bases: Sequence[str]) -> list[dict[str, Any]]:
    """One record for each line: rates, memory, and for each side of ``bases`` how many times longer it took.

    A base is compared in its only mode; where a round of one of the two is missing, it does not count.
    """
    lines = by_line(turns)
    records = []
    for (workload, n, side, mode), line in lines.items():
        good = [turn for turn in line if not turn.failed]
        record: dict[str, Any] = {
            "workload": workload,
            "n": n,
            "side": side,
            "mode": mode,
            "rounds": len(good),
        }
        if good:
            record |= {
                "tokens_per_second": spread([turn.tokens / turn.seconds for turn in good]),
                "tokens_per_cpu_second": spread([turn.tokens / max(turn.cpu_seconds, 1e-9) for turn in good]),
                "peak_rss": max(turn.peak_rss for turn in good),
                "extra": _medians([turn.extra for turn in good]),
                "times": {
                    base: found
                    for base in bases
                    if (found := ratios(line, _line_of(lines, workload, n, base))) is not None
                },
            }
        failures = sorted({turn.failed for turn in line if turn.failed})
        records.append(record | ({"failed": failures} if failures else {}))
    return records


def table(records: Sequence[Mapping[str, Any]], seats: Sequence[Seat], bases: Sequence[str]) -> str:
    """Markdown: one row for each line, then the sides that took no part and why."""
    titles = ["workload", "N", "side", "tokens/s", "tokens/CPU-s", "peak MiB"]
    rows = [[*titles, *(f"times {base}: min / median / max" for base in bases)]]
    for record in records:
        row = [LETTERS[record["workload"]], str(record["n"]), f"{record['side']} {record['mode']}"]
        if record["rounds"]:
            rates = (record["tokens_per_second"], record["tokens_per_cpu_second"])
            row += [f"{rate['median']:.1f}" for rate in rates] + [f"{record['peak_rss'] / 2**20:.0f}"]
            row += [_times(record["times"].get(base)) for base in bases]
        else:
            row += ["failed: " + "; ".join(record["failed"]), *[""] * (len(rows[0]) - 4)]
        rows.append(row)
    rows.insert(1, ["---"] * len(rows[0]))
    text = "".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |\n" for row in rows)
    for seat in seats:
        if seat.status != "ok":
            text += f"\n{seat.entry.label}: {seat.status}\n"
    return text


def side_records(seats: Sequence[Seat]) -> dict[str, dict[str, Any]]:
    """What every side is, or why it took no part."""
    return {
        seat.entry.label: {"status": seat.status, "load_seconds": seat.load_seconds, **seat.facts}
        for seat in seats
    }


def write(folder: Path, name: str, facts: Mapping[str, Any], turns: Sequence[Turn], text: str) -> None:
    """``name.json`` and ``name.md``, each replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    data = json.dumps({**facts, "turns": [asdict(turn) for turn in turns]}, indent=1)
    for suffix, content in ((".json", data + "\n"), (".md", text)):
        part = folder / f"{name}{suffix}.part"
        part.write_text(content)
        os.replace(part, folder / f"{name}{suffix}")


def _line_of(lines: Mapping[Key, list[Turn]], workload: str, n: int, side: str) -> list[Turn]:
    return next((line for key, line in lines.items() if key[:3] == (workload, n, side)), [])


def _medians(extras: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = sorted({name for extra in extras for name in extra})
    return {name: statistics.median([extra[name] for extra in extras if name in extra]) for name in names}


def _times(found: Spread | None) -> str:
    return "" if found is None else " / ".join(f"{found[name]:.2f}" for name in ("min", "median", "max"))
