"""``report.html`` of a data run: coverage at matched cost and at equal samples as curves, and the card's tables.

One file without scripts; colours are those of the report of ``wcse solve``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from wcse.report.overview import hue, short
from wcse.report.plots import Line, plot
from wcse.synth.card import costs_table, measures_tables


def page(title: str, measures: Mapping[str, Any]) -> str:
    """The page; without figures where nothing was compared."""
    style = files("wcse.report").joinpath("page.css").read_text(encoding="utf-8")
    figures = "".join(f"<figure>{figure}</figure>" for figure in _figures(measures))
    says = "".join(f"<p>{escape(balance['says'])}</p>" for balance in measures["match"]["balances"])
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>\n"
        f'<header><div class="brand"><b>wcse</b><span>{escape(title)}</span></div></header><main>\n'
        f'<section class="card"><div class="figures">{figures}</div></section>\n'
        f'<section class="card scroll"><h2>Match and cost</h2>{_html(costs_table(measures))}{says}</section>\n'
        f'<section class="card scroll"><h2>Measures</h2>{_html(measures_tables(measures))}</section>\n'
        "</main></body></html>\n"
    )


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
    parts, rows = [], []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("| "):
            rows.append([escape(cell.strip().replace("\\|", "|")) for cell in line[1:-1].split(" | ")])
            continue
        if rows:
            head, body = rows[0], rows[2:]
            cells = "".join(f"<th>{cell}</th>" for cell in head)
            lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body)
            parts.append(f"<table><tr>{cells}</tr>{lines}</table>")
            rows = []
        if line.startswith("#"):
            parts.append(f"<h3>{escape(line.lstrip('# '))}</h3>")
        elif line.strip():
            parts.append(f"<p>{escape(line)}</p>")
    return "".join(parts)
