"""``wcse eval`` and ``wcse replay``: numbers of recorded runs, without a model."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wcse.cli.arguments import counts, specs, words, writing
from wcse.cli.command import Command, Options
from wcse.types import WcseError


def evaluate(options: Options) -> int:
    """Print the methods' numbers, the metrics at k and the comparisons."""
    from wcse.evaluate import at_k, compare, load_methods, numbers, over_seeds
    from wcse.report.terminal import align

    methods = load_methods(options["runs"])
    labels = [method.label for method in methods]
    base = options.get("baseline", labels[0])
    matches = [method for method in methods if base in (method.label, method.strategy)]
    if not matches:
        raise WcseError(f"baseline={base!r} is none of the methods: {', '.join(labels)}")
    sizes = options.get("k")
    tables: dict[str, list[dict[str, Any]]] = {
        "methods": [numbers(method) for method in methods],
        "at k": [row for method in methods for row in at_k(method, sizes)],
        "over seeds": over_seeds(methods),
        "comparisons": [vars(compare(matches[0], method)) for method in methods if method is not matches[0]],
    }
    print(align([_METHOD_HEAD, *map(_method_row, tables["methods"])]))
    if tables["at k"]:
        print(f"\n{align([_K_HEAD, *map(_k_row, tables['at k'])])}")
    for row in tables["over seeds"]:
        print(f"\n{row['strategy']}: {row['mean']:.1%} ± {row['error']:.1%} (s.e. over {row['seeds']} seeds)")
    if tables["comparisons"]:
        print(f"\nagainst {matches[0].label}, problem by problem:")
        print(align([_COMPARE_HEAD, *map(_compare_row, tables["comparisons"])]))
    _save(options, [{"table": name, **row} for name, rows in tables.items() for row in rows])
    return 0


_METHOD_HEAD = (
    "method",
    "problems",
    "accuracy",
    "95 % interval",
    "any right",
    "selection",
    "policy tok",
    "PRM tok",
)
_K_HEAD = ("samples of", "k", "pass@k", "maj@k", "best@k", "weighted@k", "diversity@k")
_COMPARE_HEAD = ("method", "difference", "95 % interval", "only base", "only this", "McNemar p")


def _method_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["method"],
        str(row["problems"]),
        _share(row["accuracy"]),
        f"{row['accuracy_low']:.1%} - {row['accuracy_high']:.1%}",
        _share(row["coverage"]),
        "" if math.isnan(row["selection_efficiency"]) else f"{row['selection_efficiency']:+.2f}",
        f"{row['policy_tokens']:,.0f}",
        f"{row['prm_tokens']:,.0f}",
    )


def _k_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    shares = [
        f"{row[name]:.1%} ({row[f'{name}_low']:.0%} - {row[f'{name}_high']:.0%})" if name in row else ""
        for name in ("pass", "majority", "argmax", "weighted")
    ]
    return row["method"], str(row["k"]), *shares, f"{row['diversity']:.2f}"


def _compare_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    points = [f"{100 * row[name]:+.1f}" for name in ("difference", "low", "high")]
    return (
        row["other"],
        f"{points[0]} points",
        f"{points[1]} to {points[2]}",
        str(row["only_base"]),
        str(row["only_other"]),
        f"{row['p']:.3f}",
    )


def _share(value: float) -> str:
    return f"{value:.1%}"


def replay(options: Options) -> int:
    """Print accuracy at every N, selector and aggregation of a recorded run, or of strategies run on its trees."""
    from wcse.report.terminal import align

    rows = _reruns(options) if "strategies" in options else _replayed(options)
    sizes = sorted({row["n"] for row in rows})
    lines: dict[tuple[str, str, str], dict[int, str]] = {}
    for row in rows:
        name = (row["strategy"], row["aggregation"] or "", row["selector"])
        lines.setdefault(name, {})[row["n"]] = f"{row['accuracy']:.1%} ({row['low']:.0%} - {row['high']:.0%})"
    head = ("strategy", "aggregation", "selector", *(f"N={n}" for n in sizes))
    print(align([head, *((*name, *(cells.get(n, "") for n in sizes)) for name, cells in lines.items())]))
    _save(options, rows)
    return 0


def _replayed(options: Options) -> list[dict[str, Any]]:
    from wcse.replay_rows import replay as replayed

    return replayed(
        options["directory"],
        aggregations=options.get("agg_strategy", ()),
        selectors=options.get("selector", ()),
        sizes=options.get("n", ()),
    )


def _reruns(options: Options) -> list[dict[str, Any]]:
    from wcse.replay_rows import rerun_rows

    if "n" in options or "selector" in options or "agg_strategy" in options:
        raise WcseError(
            "--strategy goes without --n, --selector and --agg-strategy; "
            "write its options in parentheses: best_of_n(n=4,agg_strategy=min)"
        )
    return rerun_rows(options["directory"], options["strategies"])


def _save(options: Options, rows: Sequence[Mapping[str, Any]]) -> None:
    if "csv" not in options:
        return
    path = Path(options["csv"])
    fields = dict.fromkeys(name for row in rows for name in row)
    with writing("csv", path), path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(fields))
        writer.writeheader()
        writer.writerows(rows)


_CSV = ("csv", {"metavar": "FILE", "help": "write all numbers there, too"})

COMMANDS = (
    Command(
        "eval",
        "numbers of runs with intervals, and paired comparisons on the same problems",
        evaluate,
        (
            (
                "k",
                {
                    "type": counts,
                    "metavar": "K[,K2]",
                    "help": "samples for pass@k and the like (default 1,2,4..)",
                },
            ),
            (
                "baseline",
                {
                    "metavar": "METHOD",
                    "help": "what the others are compared with: RUN: STRATEGY or a strategy (default: the first)",
                },
            ),
            _CSV,
        ),
        arguments=(("runs", {"metavar": "RUN", "nargs": "+", "help": "directory of a run"}),),
    ),
    Command(
        "replay",
        "what a run would have answered at other N, selectors, aggregations or strategies; needs no model",
        replay,
        (
            (
                "n",
                {
                    "type": counts,
                    "metavar": "N[,N2]",
                    "help": "budgets (default: all that the run can show)",
                },
            ),
            (
                "selector",
                {"type": words, "metavar": "S[,S2]", "help": "argmax, majority, weighted (default: all)"},
            ),
            (
                "agg-strategy",
                {"type": words, "metavar": "A[,A2]", "help": "last, min, prod, mean (default: the run's)"},
            ),
            (
                "strategy",
                {
                    "dest": "strategies",
                    "type": specs,
                    "metavar": "S[,S2]",
                    "help": "run these on the recorded trees instead, say best_of_n(n=4),adaptive_vote",
                },
            ),
            _CSV,
        ),
        arguments=(("directory", {"metavar": "RUN", "help": "directory of the run"}),),
    ),
)
