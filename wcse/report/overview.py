"""The static half of the report: the run's options, the headline numbers, the table and the plots.

HTML made from ``summary.json`` alone, so it shows without JavaScript. Every text is escaped here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from wcse.report import figures, results
from wcse.report.plots import draw, hue, short

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


def facts(recipe: Numbers) -> str:
    """The options that a reader asks for first."""
    return results.facts({name: recipe.get(name) for name in _SHOWN})


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
    return "".join(results.tile(*texts) for texts in shown)


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
    ("policy tokens", "a problem; reused"),
    ("PRM tokens", "a problem; reused"),
    ("sharing", "apart : in the tree"),
    ("GFLOPs", "a problem"),
    ("KV pages", "peak; unshared"),
    ("seconds", "a problem"),
)


def table(summary: Numbers) -> str:
    """One row a strategy."""
    heads = "".join(f"<th>{name}<br><small>{note}</small></th>" for name, note in _HEADINGS)
    rows = "".join(_row(index, name, n) for index, (name, n) in enumerate(summary["strategies"].items()))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _row(index: int, name: str, numbers: Numbers) -> str:
    count = numbers["problems"]
    cells = [
        ("–" if numbers["coverage"] is None else f"{numbers['coverage']:.1%}", ""),
        (f"{numbers['no_answer']:,}", ""),
        _computed(numbers, "policy"),
        _computed(numbers, "prm"),
        (
            f"{numbers['sharing_factor']:.1f}×",
            f"{_per(numbers['tokens_apart'], count)} : {_per(numbers['tokens_unique'], count)}",
        ),
        (f"{(numbers['policy_flops'] + numbers['prm_flops']) / 1e9 / count:,.2f}" if count else "–", ""),
        _pages(numbers["kv_pages_peak"], numbers["kv_pages_unshared_peak"]),
        (f"{numbers['seconds'] / count:.2f}" if count else "–", ""),
    ]
    return (
        f'<tr><td class="name"><span class="swatch {hue(index)}"></span>{escape(name)}</td>'
        f"<td>{_interval(index, numbers)}</td>{''.join(_cell(*texts) for texts in cells)}</tr>"
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


def _cell(text: str, note: str) -> str:
    return f"<td>{escape(text)}{f' <small>{escape(note)}</small>' if note else ''}</td>"


def _computed(numbers: Numbers, who: str) -> tuple[str, str]:
    """What went through the model's layers, and the share of all it needed that the tree had."""
    computed, reused = numbers[f"{who}_tokens_computed"], numbers[f"{who}_tokens_reused"]
    share = f"{reused / (computed + reused):.0%}" if reused else ""
    return _per(computed, numbers["problems"]), share


def _per(total: int, count: int) -> str:
    return f"{total / count:,.0f}" if count and total else "–"


def _pages(peak: int, unshared: int) -> tuple[str, str]:
    if not peak:
        return "–", ""
    return f"{peak:,}", f"{unshared / peak:.1f}× less" if unshared > peak else ""


# --- the plots --------------------------------------------------------------------------------------------


def plots(summary: Numbers) -> str:
    """Accuracy against N, tokens and FLOPs, and by difficulty; empty without a set of samples to draw from."""
    source = figures.sample_strategy(summary)
    if source is None:
        return ""
    made = [make(summary) for make in figures.BY_X.values()]
    shown = "".join(f"<figure>{draw(figure)}</figure>" for figure in made if figure is not None)
    note = (
        f"Lines: the samples of <code>{escape(source)}</code>, each selector at each N, averaged over subsets of "
        "the samples, with 95 % bands over problems drawn anew. Diamonds: strategies that are no subset of them, "
        "with 95 % Wilson intervals, moved to the right where they would hide one another. Tokens are those that went "
        "through a model; sharing compares what independent samples would have computed with what the tree holds."
    )
    return f'<div class="figures">{shown}</div><p class="note">{note}</p>{_by_difficulty(summary)}'


def _by_difficulty(summary: Numbers) -> str:
    """Each strategy's accuracy in fifths of the problems."""
    bins = summary["difficulty"]
    if not bins:
        return ""
    heads = "".join(
        f'<th class="bin">{name}<br><small>pass@1 {part["pass@1"]:.0%}, {part["problems"]} problems</small></th>'
        for name, part in zip(
            ("easiest fifth", "second", "third", "fourth", "hardest fifth"), bins, strict=True
        )
    )
    rows = "".join(
        f'<tr><td class="name"><span class="swatch {hue(index)}"></span>{escape(strategy)}</td>'
        f"{''.join(_meter(index, part['accuracy'].get(strategy)) for part in bins)}</tr>"
        for index, strategy in enumerate(summary["strategies"])
    )
    return (
        '<h2>By difficulty</h2><div class="scroll"><table>'
        f"<thead><tr><th>strategy</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _meter(index: int, share: float | None) -> str:
    if share is None:
        return '<td class="bin">–</td>'
    return (
        f'<td class="bin">{share:.0%}<svg class="meter {hue(index)}" viewBox="0 0 100 5" preserveAspectRatio="none" '
        f'aria-hidden="true"><rect class="track" width="100" height="5"/>'
        f'<rect class="fill" width="{100 * share:.1f}" height="5"/></svg></td>'
    )
