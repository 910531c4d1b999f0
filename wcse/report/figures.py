"""What the plots show, taken from ``summary.json`` or ``optimal.json``: lines with bands, and single results.

Knows neither SVG nor matplotlib; ``plots`` and ``plotting`` draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from wcse.report.plots import Figure, Line, Point, hue

Numbers = Mapping[str, Any]
"""One strategy's part of ``summary.json``, or all of it."""

_CURVES = {
    "pass": "any right (pass@N)",
    "weighted": "weighted vote",
    "argmax": "best of N",
    "majority": "majority",
}


def accuracy_vs_n(summary: Numbers) -> Figure | None:
    """Accuracy against solutions a problem; None without samples to draw from."""
    source = sample_strategy(summary)
    if source is None:
        return None
    sizes = summary["curves"][source]["n"]
    points = _points(summary, lambda n: max(1, round(n["solutions"] / n["problems"])))
    return Figure("N, solutions per problem", _lines(summary, source, lambda _: sizes), points, sizes)


def accuracy_vs_tokens(summary: Numbers) -> Figure | None:
    """Accuracy against the tokens that policy and verifier computed for a problem."""
    source = sample_strategy(summary)
    if source is None or not summary["strategies"][source]["policy_tokens_sampled"]:
        return None
    numbers, sizes = summary["strategies"][source], summary["curves"][source]["n"]
    fixed = numbers["policy_tokens_computed"] - numbers["policy_tokens_sampled"]

    def costs(verified: bool) -> list[float]:
        grows = numbers["policy_tokens_sampled"] + (numbers["prm_tokens_computed"] if verified else 0)
        return _costs(numbers, sizes, fixed, grows)

    points = _points(
        summary, lambda n: (n["policy_tokens_computed"] + n["prm_tokens_computed"]) / n["problems"]
    )
    return Figure("tokens computed per problem, policy + PRM", _lines(summary, source, costs), points)


def accuracy_vs_flops(summary: Numbers) -> Figure | None:
    """Accuracy against floating-point operations a problem; None for runs that did not count them."""
    source = sample_strategy(summary)
    if source is None or not summary["strategies"][source]["policy_flops"]:
        return None
    numbers, sizes = summary["strategies"][source], summary["curves"][source]["n"]
    read = numbers["tokens_unique"] or 1
    fixed = numbers["policy_flops"] * numbers["prompt_tokens"] / read

    def costs(verified: bool) -> list[float]:
        grows = numbers["policy_flops"] - fixed + (numbers["prm_flops"] if verified else 0)
        return _costs(numbers, sizes, fixed, grows)

    points = _points(summary, lambda n: (n["policy_flops"] + n["prm_flops"]) / n["problems"])
    return Figure("FLOPs per problem, policy + PRM", _lines(summary, source, costs), points)


BY_X: dict[str, Callable[[Numbers], Figure | None]] = {
    "n": accuracy_vs_n,
    "tokens": accuracy_vs_tokens,
    "flops": accuracy_vs_flops,
}
"""The figure for each x axis."""


def frontier(found: Numbers) -> Figure:
    """``optimal.json``: each strategy alone, and the choice by difficulty, against tokens."""
    lines: dict[str, list[tuple[float, float, float, float]]] = {}
    for point in found["fixed"]:
        lines.setdefault(_family(point["strategy"]), []).append(_spot(point))
    for point in found["optimal"]:
        lines.setdefault("best fixed (cross-validated)", []).append(_spot(point["best_fixed"]))
        lines.setdefault("auto (cross-validated)", []).append(_spot(point["auto"]))
    drawn = []
    for index, (name, spots) in enumerate(lines.items()):
        xs, ys, lows, highs = zip(*sorted(spots), strict=True)
        banded = name.startswith("auto")
        drawn.append(Line(name, hue(index), xs, ys, lows if banded else (), highs if banded else ()))
    return Figure("tokens per problem, policy + PRM, probes included", drawn, ())


def with_levels(figure: Figure, levels: Sequence[tuple[str, float]]) -> Figure:
    """The figure with horizontal lines: accuracies of other models, say larger ones."""
    xs = [x for line in figure.lines for x in line.xs] + [point.x for point in figure.points]
    ends = [min(xs), max(xs)]
    drawn = [Line(name, "line-pass", ends, [value, value]) for name, value in levels]
    return replace(figure, lines=[*figure.lines, *drawn])


def sample_strategy(summary: Numbers) -> str | None:
    """The strategy whose samples show most: the most selectors, then the largest N."""
    curves = summary["curves"]
    return max(curves, key=lambda name: (len(curves[name]), curves[name]["n"][-1]), default=None)


def _lines(summary: Numbers, source: str, xs_of: Callable[[bool], Sequence[float]]) -> list[Line]:
    curves, bands = dict(summary["curves"][source]), dict(summary["bands"][source])
    alone = summary["curves"].get("majority")
    if alone is not None and alone["n"] == curves["n"]:
        # With a verifier's scores its ties would be broken better.
        curves["majority"], bands["majority"] = alone["majority"], summary["bands"]["majority"]["majority"]
    lines = []
    for name, label in _CURVES.items():
        if name in curves:
            lows, highs = zip(*bands[name], strict=True)
            xs = xs_of(name in ("weighted", "argmax"))
            lines.append(Line(label, f"line-{name}", xs, curves[name], lows, highs))
    return lines


def _points(summary: Numbers, x_of: Callable[[Numbers], float]) -> list[Point]:
    """The strategies that are no point of the curves."""
    return [
        Point(name, hue(index), x_of(n), n["accuracy"], n["accuracy_low"], n["accuracy_high"])
        for index, (name, n) in enumerate(summary["strategies"].items())
        if n["accuracy"] is not None and name not in summary["curves"]
    ]


def _costs(numbers: Numbers, sizes: Iterable[int], fixed: float, grows: float) -> list[float]:
    """Cost per problem at each N: the prompt once, and N solutions of mean cost."""
    count, per_problem = numbers["problems"], numbers["solutions"] / numbers["problems"]
    return [max(1.0, (fixed + grows * size / per_problem) / count) for size in sizes]


def _family(strategy: str) -> str:
    """A strategy's name without its n, which the axis shows."""
    name, _, rest = strategy.partition("(")
    options = [part for part in rest.removesuffix(")").split(",") if part and not part.startswith("n=")]
    return f"{name}({','.join(options)})" if options else name


def _spot(point: Numbers) -> tuple[float, float, float, float]:
    return point["tokens"], point["accuracy"], point["low"], point["high"]
