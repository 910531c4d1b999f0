"""Figures as files: PNG and SVG by matplotlib (the extra ``plot``), CSV by hand."""

from __future__ import annotations

import csv
from pathlib import Path

from wcse.data.disk import atomic_file
from wcse.report.plots import Figure, short
from wcse.types import WcseError

SUFFIXES = (".png", ".svg", ".csv")
_COLOURS = {
    **{
        "line-pass": "#8b95a5",
        "line-majority": "#d18400",
        "line-argmax": "#2f6fde",
        "line-weighted": "#8a46c9",
    },
    **{"hue-0": "#6b7686", "hue-1": "#d18400", "hue-2": "#2f6fde", "hue-3": "#8a46c9", "hue-4": "#0d8f7b"},
    **{"hue-5": "#d0407e", "hue-6": "#8a6a35", "hue-7": "#4d8f1f", "hue-8": "#c0452f", "hue-9": "#2396b8"},
    **{"hue-10": "#8c8a1c", "hue-11": "#5054b5", "line-larger": "#5d6878"},
}


def check_suffix(path: Path) -> None:
    """Refuse a file whose kind is none of ``SUFFIXES``.

    Raises:
        WcseError: names the kinds.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise WcseError(f"out={str(path)!r}: unknown kind of file; end it with {', '.join(SUFFIXES)}")


def write_figure(figure: Figure, path: Path) -> None:
    """Write the figure; the suffix says how.

    Raises:
        WcseError: another suffix, no matplotlib, or a file that cannot be written.
    """
    check_suffix(path)
    try:
        if path.suffix.lower() == ".csv":
            _write_csv(figure, path)
        else:
            _write_picture(figure, path)
    except OSError as error:
        raise WcseError(f"out={str(path)!r}: cannot be written: {error.strerror or error}") from error


def _write_csv(figure: Figure, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "x", figure.y_title, "low", "high"])
        for line in figure.lines:
            lows, highs = (line.lows, line.highs) if line.lows else ([""] * len(line.xs),) * 2
            writer.writerows((line.name, *row) for row in zip(line.xs, line.ys, lows, highs, strict=True))
        writer.writerows((p.name, p.x, p.y, p.low, p.high) for p in figure.points)


def _write_picture(figure: Figure, path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
        from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter
    except ImportError as error:
        raise WcseError(
            f"out={str(path)!r}: PNG and SVG need matplotlib; pip install 'wcse[plot]'"
        ) from error
    canvas = Canvas(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    for line in figure.lines:
        colour = _COLOURS[line.style]
        dashed = {"line-pass": "--", "line-larger": ":"}.get(line.style, "-")
        axes.plot(line.xs, line.ys, dashed, color=colour, marker="o", markersize=4, label=line.name)
        if line.lows:
            axes.fill_between(line.xs, line.lows, line.highs, color=colour, alpha=0.10, linewidth=0)
    for point in figure.points:
        around = [[point.y - point.low], [point.high - point.y]]
        axes.errorbar(
            [point.x],
            [point.y],
            yerr=around,
            fmt="D",
            markersize=6,
            capsize=3,
            color=_COLOURS[point.style],
            label=point.name,
        )
    axes.set_xscale("log")
    if figure.ticks is not None:
        axes.set_xticks(list(figure.ticks))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(xlabel=figure.x_title, ylabel=figure.y_title)
    axes.grid(axis="y", color="#e1e5eb")
    axes.spines[["top", "right"]].set_visible(False)
    canvas.legend(loc="outside right upper", frameon=False, fontsize=8.5)
    with atomic_file(path) as file:
        # Without a date equal figures are equal files.
        kind = path.suffix[1:].lower()
        canvas.savefig(file, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
