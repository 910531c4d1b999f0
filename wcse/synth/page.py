"""``report.html`` of a data run: coverage at matched cost and at equal samples as curves, and the card's tables.

One file without scripts, in the frame that every page of results has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from wcse.report import results
from wcse.report.overview import hue, short
from wcse.report.plots import Line, plot
from wcse.report.results import section, table
from wcse.synth.card import costs_table, measures_tables


def page(title: str, measures: Mapping[str, Any]) -> bytes:
    """The page; without figures where nothing was compared."""
    figures = "".join(f"<figure>{figure}</figure>" for figure in _figures(measures))
    match = measures["match"]
    says = "".join(f"<p>{escape(balance['says'])}</p>" for balance in match["balances"])
    sections = [
        section("Match and cost", _html(costs_table(measures)) + says),
        section("Measures", _html(measures_tables(measures))),
    ]
    if figures:
        sections.insert(0, section("Coverage", f'<div class="figures">{figures}</div>'))
    tiles = [("problems", f"{measures['problems']:,}", "finished by every sampler, with a gold answer")]
    tiles += [
        (name, f"{cost['samples']:,}", f"samples, {short(cost['flops'])} FLOPs")
        for name, cost in measures["costs"].items()
    ]
    options = {"matched by": match["by"], "reference": match["reference"]}
    return results.page(title, options, tiles, sections)


def _figures(measures: Mapping[str, Any]) -> list[str]:
    """Coverage against the reference's samples at equal cost, and against samples."""
    figures = []
    for pairs, x_title in (
        ("matched", "budget, in samples of the reference per problem"),
        ("equal_samples", "samples per problem"),
    ):
        lines = _lines(measures[pairs])
        if lines:
            ticks = sorted({x for line in lines for x in line.xs})
            figures.append(plot(lines, [], x_title=x_title, y_title="coverage", x_format=short, ticks=ticks))
    return figures


def _lines(pairs: Sequence[Mapping[str, Any]]) -> list[Line]:
    """A curve a sampler, through the grid's points; none with fewer than two points."""
    curves: dict[str, dict[float, float]] = {}
    for pair in pairs:
        curves.setdefault(pair["reference"], {})[pair["reference_k"]] = pair["reference_coverage"]
        curves.setdefault(pair["sampler"], {})[pair["reference_k"]] = pair["coverage"]
    return [
        Line(name, hue(2 * index + 1), list(points), list(points.values()))
        for index, (name, points) in enumerate(curves.items())
        if len(points) > 1
    ]


def _html(markdown: str) -> str:
    """Our own Markdown, tables and headings and plain lines, as HTML."""
    parts: list[str] = []
    rows: list[list[str]] = []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("| "):
            rows.append([cell.strip().replace("\\|", "|") for cell in line[1:-1].split(" | ")])
            continue
        if rows:
            parts.append(table([rows[0], *rows[2:]]))  # without the line of dashes
            rows = []
        if line.startswith("#"):
            parts.append(f"<h3>{escape(line.lstrip('# '))}</h3>")
        elif line.strip():
            parts.append(f"<p>{escape(line)}</p>")
    return "".join(parts)
