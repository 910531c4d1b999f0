"""``versus.html``, its figures and its tables: a small model with search beside larger models.

Made from what ``wcse.optimal.versus.compare`` found, which is also ``versus.json``. The tables serve the terminal,
too. Every text is escaped here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from wcse.report import results
from wcse.report.plots import Figure, Line, Point, draw, short
from wcse.report.results import section, table

Found = Mapping[str, Any]
Table = list[tuple[str, ...]]

_STYLES = {
    "majority": "line-majority",
    "best_of_n": "line-argmax",
    "weighted_best_of_n": "line-weighted",
    "beam_search": "hue-4",
    "dvts": "hue-7",
    "auto": "hue-5",
    "mcts": "hue-6",
    "rebase": "hue-8",
    "particle_filter": "hue-9",
    "lookahead_search": "hue-10",
    "speculative_rejection": "hue-11",
}
_LARGER = ("line-pass", "line-larger")


def figure(found: Found, group: str | None = None) -> Figure:
    """Accuracy against FLOPs of every strategy; larger models dashed, one sample of each as a level.

    Args:
        group: a difficulty bin; None for all problems.
    """
    lines, points = [], []
    for curve in found["curves"]:
        own, method = curve["model"] == found["policy"], curve["method"]
        if method == "greedy" or not (own or method in ("majority", "weighted_best_of_n")):
            continue
        name = method if own else f"{curve['model']}, {method}"
        style = _STYLES.get(method, "hue-0") if own else _larger_style(found, curve["model"])
        spots = [spot if group is None else spot["bins"][group] for spot in curve["points"]]
        if len(spots) == 1:
            (spot,) = spots
            points.append(Point(name, style, spot["flops"], spot["accuracy"], spot["low"], spot["high"]))
            continue
        columns = [[spot[key] for spot in spots] for key in ("flops", "accuracy", "low", "high")]
        xs, ys, lows, highs = columns
        banded = method == "auto" and own
        lines.append(Line(name, style, xs, ys, lows if banded else (), highs if banded else ()))
    return Figure(
        "FLOPs per problem, policy + PRM, probes included", lines + _levels(found, group, lines), points
    )


def _levels(found: Found, group: str | None, lines: Sequence[Line]) -> list[Line]:
    """One sample of each larger model as a horizontal line."""
    xs = [x for line in lines for x in line.xs]
    levels = []
    for curve in found["curves"]:
        if curve["model"] != found["policy"] and curve["method"] == "majority" and xs:
            spot = curve["points"][0] if group is None else curve["points"][0]["bins"][group]
            name = f"{curve['model']}, one sample"
            style = _larger_style(found, curve["model"])
            levels.append(Line(name, style, [min(xs), max(xs)], [spot["accuracy"]] * 2))
    return levels


def _larger_style(found: Found, model: str) -> str:
    models = dict.fromkeys(curve["model"] for curve in found["curves"] if curve["model"] != found["policy"])
    return _LARGER[list(models).index(model) % len(_LARGER)]


# --- tables -----------------------------------------------------------------------------------------------


def curves_table(found: Found) -> Table:
    """Every model, strategy and budget."""
    groups = list(found["bins"])
    rows: Table = [("model, strategy", "N", "GFLOPs", "accuracy", "95 % interval", *groups)]
    for curve in found["curves"]:
        rows += [
            (
                f"{curve['model']}, {curve['method']}",
                str(spot["n"]),
                f"{spot['flops'] / 1e9:,.2f}",
                f"{spot['accuracy']:.1%}",
                f"{spot['low']:.1%} - {spot['high']:.1%}",
                *(f"{spot['bins'][group]['accuracy']:.0%}" for group in groups),
            )
            for spot in curve["points"]
        ]
    return rows


def equal_table(found: Found) -> Table:
    """The small model's strategies at the FLOPs of each rival."""
    groups = list(found["bins"])
    rows: Table = [
        ("larger model", "GFLOPs", "small model", "GFLOPs", "accuracy", "difference (95 %)", *groups)
    ]
    for row in found["equal_flops"]:
        whole = row["bins"]["all"]
        rows.append(
            (
                f"{row['larger']}, {row['rival']}: {whole['rival']:.1%}",
                f"{row['rival_flops'] / 1e9:,.2f}",
                f"{row['method']}, N={row['n']}",
                f"{row['flops'] / 1e9:,.2f}",
                f"{whole['accuracy']:.1%}",
                gain(whole),
                *(f"{100 * row['bins'][group]['gain']:+.0f}" for group in groups),
            )
        )
    return rows


def crossings_table(found: Found) -> Table:
    """Where each strategy reaches each rival."""
    rows: Table = [("larger model", "accuracy", "small model", "reached at", "FLOPs, larger model = 1")]
    for (larger, rival, accuracy), group in groupby(
        found["crossings"], key=lambda row: (row["larger"], row["rival"], row["accuracy"])
    ):
        crossed = list(group)
        head = (f"{larger}, {rival}", f"{accuracy:.1%}")
        reached = sorted((row for row in crossed if row["n"] is not None), key=lambda row: row["flops_ratio"])
        rows += [(*head, row["method"], f"N={row['n']}", f"{row['flops_ratio']:.2f}") for row in reached]
        others = [row["method"] for row in crossed if row["n"] is None]
        if others:
            rows.append((*head, f"{len(others)} others" if reached else "none", "not reached", ""))
    return rows


def auto_table(found: Found) -> Table:
    """``auto`` beside the best and the worst single strategy."""
    rows: Table = [
        (
            "N",
            "auto",
            "95 % interval",
            "auto less ...",
            "its accuracy",
            "difference (95 %)",
            "GFLOPs, auto : it",
        )
    ]
    says = {
        "fixed": "best on other problems",
        "best": "best here, with hindsight",
        "worst": "worst here, with hindsight",
    }
    for row in found["auto"]:
        own = row["auto"]
        rows += [
            (
                str(row["n"]),
                f"{own['accuracy']:.1%}",
                f"{own['low']:.1%} - {own['high']:.1%}",
                f"{says[role]}: {row[role]['strategy']}",
                f"{row[role]['accuracy']:.1%}",
                gain(row[role]),
                f"{own['flops'] / 1e9:.2f} : {row[role]['flops'] / 1e9:.2f}",
            )
            for role in says
            if role in row
        ]
    return rows


def beam_table(found: Found) -> Table:
    """Tree searches less sample sets."""
    rows: Table = [("search less sampling", "N", "all", *found["bins"])]
    for row in found["beam"]:
        gains = (gain(row["bins"][group]) for group in ("all", *found["bins"]))
        rows.append((f"{row['method']} - {row['base']}", str(row["n"]), *gains))
    return rows


def gain(row: Mapping[str, float]) -> str:
    """A difference in points with its interval."""
    middle, low, high = (100 * row[key] for key in ("gain", "gain_low", "gain_high"))
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


# --- the page ---------------------------------------------------------------------------------------------


def page(found: Found) -> bytes:
    """The whole page."""
    parts = [
        f"<figure><h3>{escape(name)}: {part['problems']} problems, one sample {part['pass@1']:.0%}</h3>"
        f"{draw(figure(found, name))}</figure>"
        for name, part in found["bins"].items()
    ]
    note = (
        "Thirds of the problems by the small model's own pass@1, which needs the gold answers. Intervals: 95 %, "
        "problems drawn anew; differences are paired problem by problem."
    )
    sections = [
        section("Accuracy against FLOPs", f"<figure>{draw(figure(found))}</figure>"),
        section("By difficulty", f'<div class="figures">{"".join(parts)}</div><p class="note">{note}</p>'),
        section("At equal FLOPs", table(equal_table(found))),
        section("Where it draws level", table(crossings_table(found))),
        section("auto beside single strategies", table(auto_table(found))),
        section("Tree search beside sampling, at equal N", table(beam_table(found))),
        section("Every strategy", table(curves_table(found))),
    ]
    title = f"{found['policy']} with search beside larger models"
    return results.page(title, found.get("options", {}), _tiles(found), sections)


def _tiles(found: Found) -> list[tuple[str, str, str]]:
    shown = [("problems", f"{found['problems']:,}", "the same for every model")]
    for curve in found["curves"]:
        if curve["method"] == "majority":
            shown.append((f"{curve['model']}, one sample", *_number(curve["points"][0])))
    own = [
        (spot, c["method"]) for c in found["curves"] if c["model"] == found["policy"] for spot in c["points"]
    ]
    best, method = max(own, key=lambda pair: (pair[0]["accuracy"], -pair[0]["flops"]))
    shown.append((f"best with hindsight: {found['policy']}, {method}, N={best['n']}", *_number(best)))
    return shown


def _number(spot: Mapping[str, float]) -> tuple[str, str]:
    note = f"95 % interval {spot['low']:.1%} – {spot['high']:.1%}; {short(spot['flops'])} FLOPs"
    return f"{spot['accuracy']:.1%}", note
