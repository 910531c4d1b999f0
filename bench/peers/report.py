"""Ratios, the table and the JSON of a comparison. Knows turns and seats, not how they came about."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .driver import Seat, Turn
from .workloads import WORKLOADS

Cell = tuple[str, str, int]  # model, workload, n
Line = tuple[str, str]  # side, mode
LETTERS = {name: letter for letter, name in WORKLOADS.items()}
Spread = dict[str, float]
OURS = "wcse"


def by_cell(turns: Iterable[Turn]) -> dict[Cell, dict[Line, list[Turn]]]:
    """Turns of the same cell, side and mode, in the order of rounds; cells by model, workload and size."""
    cells: dict[Cell, dict[Line, list[Turn]]] = {}
    for turn in turns:
        lines = cells.setdefault((turn.model, turn.workload, turn.n), {})
        lines.setdefault((turn.side, turn.mode), []).append(turn)
    return dict(sorted(cells.items(), key=lambda item: (item[0][0], LETTERS[item[0][1]], item[0][2])))


def spread(values: Sequence[float]) -> Spread:
    """Least, median and most."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def ratios(line: Sequence[Turn], base: Sequence[Turn]) -> Spread | None:
    """How many times the rate of ``line`` that of ``base`` was, round by round; None without a common round."""
    rates = {turn.round: turn.rate for turn in line if turn.tokens}
    found = [turn.rate / rates[turn.round] for turn in base if turn.tokens and turn.round in rates]
    return spread(found) if found else None


def bits(dtype: str) -> int:
    """Bits of a weight, by the name of its type: 32 for ``float32``, 8 for ``q8_0`` and ``w8a8``; 0 if it has none."""
    found = re.findall(r"(?:float|int|f|q|w)(\d+)", dtype.lower())
    return int(found[-1]) if found else 0


def summary(
    turns: Sequence[Turn], dtypes: Mapping[tuple[str, str], str], floors: Mapping[Cell, float]
) -> list[dict[str, Any]]:
    """One record for each line: rates, memory, and how many times faster each wcse was than it.

    Args:
        dtypes: by model and side; lines of as many bits are compared as of equal precision, with the faster wcse
            where there are two.
        floors: most tokens a second in fp32, by cell.
    """
    records = []
    for cell, lines in by_cell(turns).items():
        wide = {side: bits(dtypes.get((cell[0], side), "") or side.partition(":")[2]) for side, _ in lines}
        own = {side: line for (side, _), line in lines.items() if side.partition(":")[0].startswith(OURS)}
        for (side, mode), line in lines.items():
            record: dict[str, Any] = dict(zip(("model", "workload", "n"), cell, strict=True))
            record |= {"side": side, "mode": mode, "bits": wide[side]}
            good = [turn for turn in line if turn.tokens]
            record["rounds"] = len(good)
            if good:
                record |= _figures(good, floors.get(cell, 0.0))
                times = {name: ratios(line, base) for name, base in own.items()}
                record["times"] = {name: found for name, found in times.items() if found is not None}
                equal = [name for name in record["times"] if wide[name] == wide[side]]
                record["equal"] = max(equal, key=lambda name: record["times"][name]["median"], default="")
            if failures := sorted({turn.failed for turn in line if turn.failed}):
                record["failed"] = failures
            records.append(record)
    return records


def _figures(good: Sequence[Turn], floor: float) -> dict[str, Any]:
    rate = spread([turn.rate for turn in good])
    return {
        "cut_off": any(turn.cut_off for turn in good),
        "tokens": statistics.median([turn.tokens for turn in good]),
        "tokens_per_second": rate,
        "tokens_per_cpu_second": spread([turn.tokens / max(turn.cpu_seconds, 1e-9) for turn in good]),
        "peak_rss": max(turn.peak_rss for turn in good),
        "extra": _medians([turn.extra for turn in good]),
    } | ({"share_of_floor": rate["median"] / floor} if floor else {})


def table(records: Sequence[Mapping[str, Any]], seats: Sequence[Seat]) -> str:
    """Markdown: for each model one row for each line, then the sides that took no part and why."""
    titles = ["", "N", "side", "bits", "tokens/s", "tokens/CPU-s", "of fp32 floor", "peak MiB"]
    titles += ["wcse in fp32 is faster by", "wcse at equal precision is faster by"]
    text = ""
    for model in dict.fromkeys(record["model"] for record in records):
        rows = [titles, ["---"] * len(titles)]
        rows += [_row(record) for record in records if record["model"] == model]
        text += f"### {model}\n\n"
        text += "".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |\n" for row in rows)
        text += "\n"
    if any(record.get("cut_off") for record in records):
        text += "~: cut off at its time limit; rate and ratios are those of the part that was done.\n\n"
    absent = [f"{s.entry.label} ({s.model.name}): {s.status}\n" for s in seats if s.status != "ok"]
    return text + "\n".join(dict.fromkeys(absent))


def _row(record: Mapping[str, Any]) -> list[str]:
    row = [LETTERS[record["workload"]], str(record["n"]), f"{record['side']} {record['mode']}"]
    row.append(str(record["bits"] or ""))
    if not record["rounds"]:
        return [*row, "failed: " + "; ".join(record["failed"]), *[""] * 5]
    mark = "~" if record["cut_off"] else ""
    rates = [record[name]["median"] for name in ("tokens_per_second", "tokens_per_cpu_second")]
    share = record.get("share_of_floor")
    times, equal = record["times"], record["equal"]
    base = next((name for name in times if name.endswith(":float32")), "")
    return [
        *row,
        *(f"{mark}{rate:.1f}" for rate in rates),
        "" if share is None else f"{share:.0%}",
        f"{record['peak_rss'] / 2**20:.0f}",
        "" if record["side"] == base else _times(times.get(base), mark),
        "" if record["side"] in times else _times(times.get(equal), mark, equal),
    ]


def side_records(seats: Sequence[Seat]) -> dict[str, dict[str, Any]]:
    """What every side is, or why it took no part, by model and side."""
    return {
        f"{seat.model.name} {seat.entry.label}": {
            "status": seat.status,
            "load_seconds": seat.load_seconds,
            **seat.facts,
        }
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


def _medians(extras: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = sorted({name for extra in extras for name in extra})
    return {name: statistics.median([extra[name] for extra in extras if name in extra]) for name in names}


def _times(found: Spread | None, mark: str, by: str = "") -> str:
    if found is None:
        return ""
    name = f" ({by.partition(':')[2]})" if by else ""
    return mark + " / ".join(f"{found[name]:.2f}" for name in ("min", "median", "max")) + name
