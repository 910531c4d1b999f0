"""``optimal.html`` and its tables: which strategy pays for which problems, and what choosing gains.

Made from what ``wcse optimal`` found, which is also ``optimal.json``. The tables serve the terminal, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wcse.report import results
from wcse.report.figures import frontier
from wcse.report.plots import draw
from wcse.report.results import section, table

Found = Mapping[str, Any]
Table = list[tuple[str, ...]]


def points_table(found: Found) -> Table:
    """Every single strategy, and the cross-validated choices."""
    rows: Table = [("strategy", "accuracy", "95 % interval", "tokens")]
    rows += [_point(point["strategy"], point) for point in found["fixed"]]
    for point in found["optimal"]:
        rows.append(_point(f"best fixed, cross-validated (n={point['n']})", point["best_fixed"]))
        rows.append(_point(f"auto, cross-validated (n={point['n']})", point["auto"]))
    return rows


def bins_table(found: Found, n: int) -> Table:
    """Every single strategy in every bin at a budget."""
    binned = [row for row in found["bins"] if row["n"] == n]
    numbers = sorted({row["bin"] for row in binned})
    cells: dict[str, dict[int, str]] = {}
    for row in binned:
        cells.setdefault(row["strategy"], {})[row["bin"]] = f"{row['accuracy']:.0%}"
    head = ("strategy", *(f"bin {number}" for number in numbers))
    return [head, *((name, *(row[b] for b in numbers)) for name, row in cells.items())]


def choices_table(found: Found) -> Table:
    """What ``auto`` does in each bin at each budget."""
    columns: Mapping[str, Any] = found["choices"]
    count = max((len(column["strategies"]) for column in columns.values()), default=0)
    rows: Table = [("budget", "probes", *(f"bin {number}" for number in range(count)))]
    for n, column in columns.items():
        names = column["strategies"] if column["probed"] else [f"{column['strategies'][0]} for all"]
        probes = str(found["difficulty"]["samples"]) if column["probed"] else "none pays"
        rows.append((f"n={n}", probes, *names, *[""] * (count - len(names))))
    return rows


def gain(point: Mapping[str, Any]) -> str:
    """What choosing gains at a budget, in points."""
    middle, low, high = (100 * point[name] for name in ("gain", "gain_low", "gain_high"))
    return f"{middle:+.1f} points ({low:+.1f} to {high:+.1f})"


def page(found: Found) -> bytes:
    """The whole page."""
    tiles = [("problems", f"{found['problems']:,}", f"difficulty by {found['difficulty']['kind']}")]
    for point in found["optimal"]:
        note = f"over the best single strategy: {gain(point)}"
        tiles.append((f"auto, N={point['n']}", f"{point['auto']['accuracy']:.1%}", note))
    note = (
        "Cross-validated in two folds: what a problem gets was chosen on others, for the best single strategy as for "
        "auto, whose probes are paid for. Intervals: 95 %, problems drawn anew. Bin 0 is the easiest."
    )
    budgets = sorted({row["n"] for row in found["bins"]})
    sections = [
        section(
            "Accuracy against tokens", f'<figure>{draw(frontier(found))}</figure><p class="note">{note}</p>'
        ),
        section("What auto does", table(choices_table(found))),
        *(section(f"By difficulty, N={n}", table(bins_table(found, n))) for n in budgets),
        section("Every strategy", table(points_table(found))),
    ]
    return results.page("which strategy for which problem", found.get("options", {}), tiles, sections)


def _point(name: str, point: Mapping[str, float]) -> tuple[str, ...]:
    interval = f"{point['low']:.1%} - {point['high']:.1%}"
    return name, f"{point['accuracy']:.1%}", interval, f"{point['tokens']:,.0f}"
