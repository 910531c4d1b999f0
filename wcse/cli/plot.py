"""``wcse plot``: the report's figures as PNG, SVG or CSV."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wcse.cli.arguments import words
from wcse.cli.command import Command, Options
from wcse.types import WcseError

if TYPE_CHECKING:
    from wcse.report.plots import Figure


def plot(options: Options) -> int:
    """Draw one figure of a run, or of what ``wcse optimal`` or ``wcse versus`` found."""
    from wcse.report.figures import BY_X, with_levels
    from wcse.report.plotting import check_suffix, write_figure

    out, folder, axis = Path(options["to"]), Path(options["directory"]), options.get("x", "n")
    check_suffix(out)
    if axis not in BY_X:
        raise WcseError(f"x={axis!r} is unknown; use one of {', '.join(BY_X)}")
    found, run = _found(folder), folder
    if found is not None:
        command, axis_drawn, figure, run = found
        if "x" in options:
            raise WcseError(
                f"{str(folder)!r} holds a result of wcse {command}, drawn against {axis_drawn}; leave out --x"
            )
    else:
        curve = BY_X[axis](_summary(folder))
        if curve is None:
            raise WcseError(
                f"{str(folder)!r} has no curve against {axis}: it needs majority or best_of_n with n of at least 2"
            )
        figure = curve
    levels = [level for name in options.get("larger", ()) for level in _levels(Path(name), run)]
    write_figure(with_levels(figure, levels) if levels else figure, out)
    print(out)
    return 0


def _found(folder: Path) -> tuple[str, str, Figure, Path] | None:
    """The command whose result a directory holds, its x axis, its figure and the run that it is of; None for a run."""
    from wcse.report.figures import frontier
    from wcse.report.versus import figure

    for command, axis, draw in (("versus", "FLOPs", figure), ("optimal", "tokens", frontier)):
        path = folder / f"{command}.json"
        if path.is_file():
            try:
                result = json.loads(path.read_text(encoding="utf-8"))
                run = folder / (result["policy"] if command == "versus" else "sweep")
                return command, axis, draw(result), run
            except (ValueError, LookupError, TypeError) as error:
                raise WcseError(
                    f"{str(path)!r}: not a result of this wcse {command} ({error!r}); make it again"
                ) from error
    return None


def _levels(folder: Path, base: Path) -> list[tuple[str, float]]:
    """The accuracies of a run as horizontal lines in the figure of ``base``.

    Raises:
        WcseError: ``base`` is a run of other problems, or is not there to tell.
    """
    from wcse.data.journal import read_header

    summary = _summary(folder)
    prints = [read_header(each).inputs.get("problems") for each in (base, folder)]
    if prints[0] != prints[1]:
        raise WcseError(
            f"larger={str(folder)!r} solved other problems than {str(base)!r}; run both on the same problems"
        )
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


COMMANDS = (
    Command(
        "plot",
        "accuracy against N, tokens or FLOPs as PNG, SVG or CSV; or the result of wcse optimal or versus",
        plot,
        (
            ("x", {"metavar": "AXIS", "help": "n, tokens or flops (default n)"}),
            ("to", {"metavar": "FILE", "help": "where to: .png, .svg or .csv"}),
            (
                "larger",
                {
                    "type": words,
                    "metavar": "RUN[,RUN2]",
                    "help": "runs of other models, drawn as horizontal lines",
                },
            ),
        ),
        arguments=(
            (
                "directory",
                {"metavar": "DIR", "help": "directory of a run, of wcse optimal or of wcse versus"},
            ),
        ),
        needs=("to",),
    ),
)
