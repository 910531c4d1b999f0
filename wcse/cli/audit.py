"""``wcse audit``: what a fine-tuned model really gained over its base."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from wcse.cli.arguments import words, writing
from wcse.cli.command import Arguments, Command, Options
from wcse.types import WcseError


def audit(options: Options) -> int:
    """Ask, compare, and say what follows."""
    from wcse.audit.run import run_audit

    options = dict(options)
    out, quiet = options.pop("out", None), options.pop("quiet", False)
    students = _named("student", options.pop("student"))
    held_out = _named("held-out", options.pop("held_out", None) or [])
    report = run_audit(
        options.pop("base"),
        students,
        options.pop("teacher"),
        options.pop("in_domain"),
        held_out,
        say=lambda line: None if quiet else print(f"wcse: {line}", file=sys.stderr),
        **options,
    )
    if out:
        _write(out, report)
    for name, numbers in report["students"].items():
        print(_text(name, numbers))
    if len(students) > 1:
        print(_scaling(report["scaling"]))
    return 0


def _named(option: str, values: list[str]) -> dict[str, str]:
    """``NAME=VALUE`` pairs; a value alone is its own name."""
    named: dict[str, str] = {}
    for text in values:
        head, equals, tail = text.partition("=")
        name, value = (head, tail) if equals and head.replace("-", "_").isidentifier() else (text, text)
        if name in named:
            raise WcseError(
                f"--{option}: {name!r} is given twice; name them: --{option} a=... --{option} b=..."
            )
        named[name] = value
    return named


def _write(path: str, report: Mapping[str, Any]) -> None:
    import json
    from pathlib import Path

    from wcse.data.disk import atomic_file

    with writing("out", path), atomic_file(Path(path)) as file:
        file.write(json.dumps(report, indent=1).encode("ascii") + b"\n")


def _text(name: str, report: Mapping[str, Any]) -> str:
    from wcse.synth.card import table

    rows = [
        (
            where,
            numbers["problems"],
            *(f"{numbers[who]['accuracy']:.1%}" for who in ("base", "student", "teacher")),
            f"{numbers['difference']:+.1%} ({numbers['interval'][0]:+.1%} .. {numbers['interval'][1]:+.1%})",
            "undefined" if numbers["gap_closed"] is None else f"{numbers['gap_closed']:.0%}",
        )
        for where, numbers in report["sets"].items()
    ]
    head = ("problems", "n", "base", "student", "teacher", "student - base (95 %)", "gap closed")
    style = report["style"]
    habits = [
        (who, *(f"{value:.2f}" for value in numbers.values())) for who, numbers in style["habits"].items()
    ]
    return "\n".join(
        [
            f"## {name}\n",
            table(head, rows),
            f"Likeness to the teacher's style: {style['likeness_before']:.3f} before, "
            f"{style['likeness_after']:.3f} after.\n",
            table(("in domain", "words", "steps", "boxed", "equations"), habits),
            f"Verdict: {report['verdict']}\n",
        ]
    )


def _scaling(rows: list[dict[str, Any]]) -> str:
    from wcse.synth.card import table

    head = list(rows[0])
    cells = [
        [row["student"], f"{row['likeness']:.3f}", *(f"{row[name]:.1%}" for name in head[2:])] for row in rows
    ]
    return "## Scaling, in the order given\n\n" + table(head, cells)


_OPTIONS: Arguments = (
    ("base", {"metavar": "P", "help": "the model before fine-tuning"}),
    (
        "student",
        {"action": "append", "metavar": "[NAME=]P", "help": "after; give several for a scaling curve"},
    ),
    ("teacher", {"metavar": "P", "help": "the model whose data it learned from"}),
    ("in-domain", {"metavar": "SPEC", "help": "problems like the training data"}),
    (
        "held-out",
        {"action": "append", "metavar": "[NAME=]SPEC", "help": "problems unlike it; may be repeated"},
    ),
    (
        "tasks",
        {"type": words, "metavar": "T,T2", "help": "lm-eval tasks as further held-out sets (needs lm-eval)"},
    ),
    ("include-path", {"metavar": "DIR", "help": "folder with lm-eval tasks of your own"}),
    ("limit", {"type": int, "metavar": "K", "help": "only the first K problems of each set"}),
    (
        "max-tokens",
        {
            "type": int,
            "metavar": "K",
            "help": "most tokens of an answer, except of tasks that set their own (default 512)",
        },
    ),
    ("threads", {"type": int, "metavar": "T", "help": "CPU threads"}),
    ("out", {"metavar": "FILE", "help": "also write all numbers as JSON"}),
    ("quiet", {"action": "store_true", "help": "no progress lines"}),
)

COMMANDS = (
    Command(
        "audit",
        "what a fine-tuned model gained over its base: in its domain, elsewhere, and in style alone",
        audit,
        _OPTIONS,
        needs=("base", "student", "teacher", "in-domain"),
    ),
)
