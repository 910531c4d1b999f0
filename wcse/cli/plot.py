"""``wcse plot``: the report's figures as PNG, SVG or CSV."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wcse.cli.command import Command, Options
from wcse.types import WcseError


def plot(options: Options) -> int:
    """Draw one figure of a run, or of what ``wcse optimal`` found."""
    from wcse.report.figures import BY_X, frontier, with_levels
    from wcse.report.plotting import check_suffix, write_figure

    out, folder, axis = Path(options["to"]), Path(options["directory"]), options.get("x", "n")
    check_suffix(out)
    if axis not in BY_X:
        raise WcseError(f"x={axis!r} is unknown; use one of {', '.join(BY_X)}")
    if (folder / "optimal.json").is_file():
        if "x" in options:
            raise WcseError(
                f"{str(folder)!r} holds a result of wcse optimal, drawn against tokens; leave out --x"
            )
        figure = frontier(json.loads((folder / "optimal.json").read_text(encoding="utf-8")))
    else:
        made = BY_X[axis](_summary(folder))
        if made is None:
            raise WcseError(
                f"{str(folder)!r} has no curve against {axis}: it needs majority or best_of_n with n of at least 2"
            )
        figure = made
    levels = [level for name in options.get("larger", ()) for level in _levels(Path(name))]
    write_figure(with_levels(figure, levels) if levels else figure, out)
    print(out)
    return 0


def _levels(folder: Path) -> list[tuple[str, float]]:
    """The accuracies of a run as horizontal lines."""
    summary = _summary(folder)
    name = Path(str(summary["recipe"].get("policy", folder))).name
    return [
        (f"{name}, {strategy}", numbers["accuracy"])
        for strategy, numbers in summary["strategies"].items()
        if numbers["accuracy"] is not None
    ]


def _summary(folder: Path) -> Mapping[str, Any]:
    """The numbers of a run, derived from its journal anew: an old file may lack some."""
    from wcse.data.journal import read_header, read_records
    from wcse.data.outputs import run_digest
    from wcse.data.summary import Summary

    header = read_header(folder)
    summary = Summary(header, run_digest(header))
    for record in read_records(folder):
        summary.add(record)
    return summary.to_json()


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


COMMANDS = (
    Command(
        "plot",
        "accuracy against N, tokens or FLOPs as PNG, SVG or CSV; or the result of wcse optimal",
        plot,
        (
            ("x", {"metavar": "AXIS", "help": "n, tokens or flops (default n)"}),
            ("to", {"metavar": "FILE", "help": "where to: .png, .svg or .csv"}),
            (
                "larger",
                {
                    "type": _names,
                    "metavar": "RUN[,RUN2]",
                    "help": "runs of other models, drawn as horizontal lines",
                },
            ),
        ),
        arguments=(("directory", {"metavar": "DIR", "help": "directory of a run, or of wcse optimal"}),),
        needs=("to",),
    ),
)
