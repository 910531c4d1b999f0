"""The static half of the report: the run's options, the headline numbers, the table and the plots.

HTML made from ``summary.json`` alone, so it shows without JavaScript. Every text is escaped here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from html import escape
from typing import Any

from wcse.data.tables import clean
from wcse.report.plots import Line, Point, plot

Numbers = Mapping[str, Any]
"""One strategy's part of ``summary.json``, or all of it."""

_SHOWN = (
    "policy",
    "prm",
    "problems",
    "n",
    "beam_width",
    "temperature",
    "top_p",
    "max_tokens",
    "agg_strategy",
    "seed",
)
_CURVES = {
    "pass": "any right (pass@N)",
    "weighted": "weighted vote",
    "argmax": "best of N",
    "majority": "majority",
}
_HUES = 6  # classes hue-0 .. hue-5 of the style sheet


def facts(recipe: Numbers) -> str:
    """The options that a reader asks for first."""
    items = [(name, recipe[name]) for name in _SHOWN if recipe.get(name) is not None]
    return "".join(f"<span><i>{escape(name)}</i> {escape(clean(str(value)))}</span>" for name, value in items)


def tiles(summary: Numbers) -> str:
    """The headline numbers."""
    strategies = summary["strategies"]
    shown = [("problems", f"{summary['problems']:,}", f"{len(strategies)} strategies")]
    best = best_strategy(summary)
    if best is not None:
        numbers = strategies[best]
        interval = f"{numbers['accuracy_low']:.1%} – {numbers['accuracy_high']:.1%}"
        shown.append((f"best: {best}", f"{numbers['accuracy']:.1%}", f"95 % interval {interval}"))
        single = _pass_at_1(strategies.values())
        if single is not None:
            gain = (numbers["accuracy"] - single) * 100
            shown.append(("over one sample", f"{gain:+.1f} points", f"pass@1 is {single:.1%}"))
    for who, name in (("policy", "policy tokens"), ("prm", "verifier tokens")):
        computed = sum(numbers[f"{who}_tokens_computed"] for numbers in strategies.values())
        reused = sum(numbers[f"{who}_tokens_reused"] for numbers in strategies.values())
        if computed or reused:
            shown.append((name, short(computed), f"{short(reused)} more came from the tree"))
    return "".join(
        f'<div class="tile"><div class="what">{escape(what)}</div><div class="number">{escape(number)}</div>'
        f'<div class="note">{escape(note)}</div></div>'
        for what, number, note in shown
    )


def best_strategy(summary: Numbers) -> str | None:
    """The most accurate strategy; None if nothing was graded."""
    graded = {name: n["accuracy"] for name, n in summary["strategies"].items() if n["accuracy"] is not None}
    return max(graded, key=lambda name: graded[name], default=None)


def _pass_at_1(strategies: Iterable[Numbers]) -> float | None:
    """From several samples a problem; greedy decoding has one, which is no sample of the distribution."""
    return next(
        (n["pass@1"] for n in strategies if n["pass@1"] is not None and n["solutions"] > n["problems"]), None
    )


# --- the table --------------------------------------------------------------------------------------------

_HEADINGS = (
    ("strategy", ""),
    ("accuracy", "95 % interval"),
    ("any right", ""),
    ("no answer", ""),
    ("policy tokens", "computed / problem"),
    ("reused", ""),
    ("PRM tokens", "computed / problem"),
    ("reused", ""),
    ("sharing", "tokens apart : in the tree"),
    ("GFLOPs", "/ problem"),
    ("KV pages", "peak, vs unshared"),
    ("seconds", "/ problem"),
)


def table(summary: Numbers) -> str:
    """One row a strategy."""
    heads = "".join(f"<th>{name}<br><small>{note}</small></th>" for name, note in _HEADINGS)
    rows = "".join(_row(index, name, n) for index, (name, n) in enumerate(summary["strategies"].items()))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _row(index: int, name: str, numbers: Numbers) -> str:
    count = numbers["problems"]
    cells = [
        "–" if numbers["coverage"] is None else f"{numbers['coverage']:.1%}",
        f"{numbers['no_answer']:,}",
        _per(numbers["policy_tokens_computed"], count),
        _reuse(numbers["policy_tokens_computed"], numbers["policy_tokens_reused"]),
        _per(numbers["prm_tokens_computed"], count),
        _reuse(numbers["prm_tokens_computed"], numbers["prm_tokens_reused"]),
        f"{numbers['sharing_factor']:.1f}×",
        f"{(numbers['policy_flops'] + numbers['prm_flops']) / 1e9 / count:,.2f}" if count else "–",
        _pages(numbers["kv_pages_peak"], numbers["kv_pages_unshared_peak"]),
        f"{numbers['seconds'] / count:.2f}" if count else "–",
    ]
    return (
        f'<tr><td class="name"><span class="swatch {hue(index)}"></span>{escape(name)}</td>'
        f"<td>{_interval(index, numbers)}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
    )


def _interval(index: int, numbers: Numbers) -> str:
    if numbers["accuracy"] is None:
        return "not graded"
    low, middle, high = (numbers[key] * 100 for key in ("accuracy_low", "accuracy", "accuracy_high"))
    return (
        f'<div class="accuracy"><b>{middle:.1f} %</b> <small>{low:.1f} – {high:.1f}</small>'
        f'<svg class="interval {hue(index)}" viewBox="0 0 100 14" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="14"/>'
        f'<rect class="span" x="{low:.1f}" y="4" width="{max(0.6, high - low):.1f}" height="6"/>'
        f'<rect class="mark" x="{middle - 0.6:.1f}" width="1.2" height="14"/></svg></div>'
    )


def _per(total: int, count: int) -> str:
    return f"{total / count:,.0f}" if count and total else "–"


def _reuse(computed: int, reused: int) -> str:
    return f"{reused / (computed + reused):.0%}" if reused else "–"


def _pages(peak: int, unshared: int) -> str:
    if not peak:
        return "–"
    return f"{peak:,} ({unshared / peak:.1f}× less)" if unshared > peak else f"{peak:,}"


# --- the plots --------------------------------------------------------------------------------------------


def plots(summary: Numbers) -> str:
    """Accuracy against N and against tokens; empty without a set of samples to draw from."""
    source = _sample_strategy(summary)
    if source is None:
        return ""
    figures = [_accuracy_vs_n(summary, source)]
    if summary["strategies"][source]["policy_tokens_sampled"]:
        figures.append(_accuracy_vs_tokens(summary, source))
    note = (
        f"Lines: the samples of <code>{escape(source)}</code>, each selector at each N, averaged over subsets of "
        "the samples. Diamonds: strategies that are no subset of them, with 95 % Wilson intervals."
    )
    shown = "".join(f"<figure>{figure}</figure>" for figure in figures)
    return f'<div class="figures">{shown}</div><p class="note">{note}</p>'


def _accuracy_vs_n(summary: Numbers, source: str) -> str:
    sizes = summary["curves"][source]["n"]
    return plot(
        [Line(label, style, sizes, ys) for label, style, ys, _ in _curves(summary, source)],
        _points(summary, lambda numbers: max(1, round(numbers["solutions"] / numbers["problems"]))),
        x_title="N, solutions per problem",
        y_title="accuracy",
        x_format=short,
        ticks=sizes,
    )


def _accuracy_vs_tokens(summary: Numbers, source: str) -> str:
    numbers, sizes = summary["strategies"][source], summary["curves"][source]["n"]
    lines = [
        Line(label, style, _costs(numbers, sizes, prm=prm), ys)
        for label, style, ys, prm in _curves(summary, source)
    ]
    return plot(
        lines,
        _points(summary, lambda n: (n["policy_tokens_computed"] + n["prm_tokens_computed"]) / n["problems"]),
        x_title="tokens computed per problem, policy + PRM",
        y_title="accuracy",
        x_format=short,
    )


def _curves(summary: Numbers, source: str) -> list[tuple[str, str, list[float], bool]]:
    """(label, style, accuracies, needs the verifier) of each selector."""
    curves = dict(summary["curves"][source])
    alone = summary["curves"].get("majority")
    if alone is not None and alone["n"] == curves["n"]:
        curves["majority"] = alone["majority"]  # with a verifier's scores its ties would be broken better
    verified = ("weighted", "argmax")
    return [
        (label, f"line-{name}", curves[name], name in verified)
        for name, label in _CURVES.items()
        if name in curves
    ]


def _sample_strategy(summary: Numbers) -> str | None:
    """The strategy whose samples show most: the most selectors, then the largest N."""
    curves = summary["curves"]
    return max(curves, key=lambda name: (len(curves[name]), curves[name]["n"][-1]), default=None)


def _points(summary: Numbers, x_of: Callable[[Numbers], float]) -> list[Point]:
    """The strategies that are no point of the curves."""
    return [
        Point(name, hue(index), x_of(n), n["accuracy"], n["accuracy_low"], n["accuracy_high"])
        for index, (name, n) in enumerate(summary["strategies"].items())
        if n["accuracy"] is not None and name not in summary["curves"]
    ]


def _costs(numbers: Numbers, sizes: Iterable[int], *, prm: bool) -> list[float]:
    """Tokens per problem at each N: the prompt once, and N solutions of mean length."""
    count, per_problem = numbers["problems"], numbers["solutions"] / numbers["problems"]
    sampled = numbers["policy_tokens_sampled"] / count
    fixed = numbers["policy_tokens_computed"] / count - sampled
    verifier = numbers["prm_tokens_computed"] / count if prm else 0.0
    return [max(1.0, fixed + (sampled + verifier) * size / per_problem) for size in sizes]


def hue(index: int) -> str:
    """The class of the colour of the strategy at this place in the recipe."""
    return f"hue-{index % _HUES}"


def short(value: float) -> str:
    """1234 -> ``1.2k``; small numbers as they are."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            text = f"{value / size:.1f}" if value < 100 * size else f"{value / size:.0f}"
            return text.removesuffix(".0") + unit
    return f"{value:.0f}"
