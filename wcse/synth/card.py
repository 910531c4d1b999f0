"""The data set's card and the tables of its measures, in Markdown. Plain numbers in, text out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from wcse.synth.exports import FORMATS
from wcse.synth.recipe import SynthRecipe


def card(recipe: SynthRecipe, measures: Mapping[str, Any]) -> str:
    """``README.md`` of the data set: what it is, recipe, models and licences, costs, measures."""
    parts = [
        _front_matter(recipe),
        f"# Solutions sampled on {recipe.problems}\n",
        "Made with `wcse synth`. Every row is a solution that a model wrote; nobody has read them all.\n",
        "## Models\n\n" + _models(recipe, measures),
        "## Files\n\n" + _files(measures),
        "## Match and cost\n\n" + costs_table(measures) + "\n" + _balances(measures),
        "## Measures\n\n" + measures_tables(measures),
        "## What was kept\n\n" + _kept(measures),
        "## Errors\n\n" + _errors(measures),
        "## Recipe\n\n```json\n" + json.dumps(recipe.results(), indent=1, default=str) + "\n```\n",
    ]
    return "\n".join(parts)


def _front_matter(recipe: SynthRecipe) -> str:
    licences = {spec.license for spec in recipe.samplers.values() if spec.license}
    lines = ["---", "tags:", "- synthetic", "- wcse", "task_categories:", "- text-generation"]
    if len(licences) == 1:
        lines.append(f"license: {licences.pop()}")
    lines.append("configs:")
    for name in recipe.export:
        lines += [f"- config_name: {name}", f"  data_files: data/{name}-*.parquet"]
    return "\n".join([*lines, "---", ""])


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return (
        "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
        + "\n"
    )


def _models(recipe: SynthRecipe, measures: Mapping[str, Any]) -> str:
    rows = [
        (
            name,
            f"`{spec.model}`",
            f"{measures['costs'][name]['parameters']:,}",
            spec.license or "not stated",
            spec.strategy,
            spec.temperature,
            f"`{spec.prm}`" if spec.prm else "none",
        )
        for name, spec in recipe.samplers.items()
    ]
    return table(("sampler", "model", "parameters", "licence", "strategy", "temperature", "verifier"), rows)


def _files(measures: Mapping[str, Any]) -> str:
    rows = [
        (f"`data/{name}-*`", f"{count:,}", FORMATS[name].about) for name, count in measures["exports"].items()
    ]
    return table(("files (Parquet, JSONL)", "rows", "what"), rows)


def costs_table(measures: Mapping[str, Any]) -> str:
    """What each sampler's samples cost."""
    rows = []
    for name, cost in measures["costs"].items():
        money = "" if cost["money"] is None else f"{cost['money']:.6g}"
        rows.append(
            (
                name,
                f"{cost['samples']:,}",
                f"{cost['prompt_tokens']:,}",
                f"{cost['written_tokens']:,}",
                f"{cost['flops']:.4g}",
                money,
                f"{cost['seconds']:.1f}",
            )
        )
    return table(("sampler", "samples", "prompt tokens", "written tokens", "FLOPs", "money", "seconds"), rows)


def _balances(measures: Mapping[str, Any]) -> str:
    match = measures["match"]
    lines = [f"Matched by {match['by']} to {match['reference']}."]
    lines += [f"- {balance['says']}" for balance in match["balances"]]
    return "\n".join(lines) + "\n"


def measures_tables(measures: Mapping[str, Any]) -> str:
    """Coverage and diversity at matched cost and at equal samples, side by side, and false positives."""
    if not measures["problems"]:
        return "No problem was finished by every sampler and has a gold answer: nothing is measured.\n"
    intro = (
        f"{measures['problems']} problems. Coverage: some of k samples is right. Diversity: different right "
        "solutions among k. Intervals are 95 %, over problems; differences by a paired bootstrap.\n"
    )
    parts = [intro]
    for title, pairs in (("At matched cost", "matched"), ("At equal samples", "equal_samples")):
        if measures[pairs]:
            parts.append(f"### {title}\n\n" + _pairs(measures[pairs]))
    if not measures["matched"]:
        parts.append(_alone(measures))
    parts.append("### False positives: right answer, wrong reasoning\n\n" + _false_positives(measures))
    return "\n".join(parts)


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> str:
    head = ("samplers", "k", "coverage", "difference", "diversity", "difference")
    rows = []
    for pair in pairs:
        (a, b), (c, d) = pair["coverage_difference_interval"], pair["diversity_difference_interval"]
        rows.append(
            (
                f"{pair['sampler']} : {pair['reference']}",
                f"{pair['k']:g} : {pair['reference_k']}",
                f"{pair['coverage']:.1%} : {pair['reference_coverage']:.1%}",
                f"{pair['coverage_difference']:+.1%} ({a:+.1%} .. {b:+.1%})",
                f"{pair['diversity']:.2f} : {pair['reference_diversity']:.2f}",
                f"{pair['diversity_difference']:+.2f} ({c:+.2f} .. {d:+.2f})",
            )
        )
    return table(head, rows)


def _alone(measures: Mapping[str, Any]) -> str:
    rows = []
    for name, numbers in measures["samplers"].items():
        for k, share, (low, high), different in zip(
            numbers["k"], numbers["coverage"], numbers["coverage_interval"], numbers["diversity"], strict=True
        ):
            rows.append((name, k, f"{share:.1%} ({low:.1%} .. {high:.1%})", f"{different:.2f}"))
    return table(("sampler", "k", "coverage", "diversity"), rows)


def _false_positives(measures: Mapping[str, Any]) -> str:
    rows = []
    for name, numbers in measures["samplers"].items():
        for judge, rate in numbers["false_positives"].items():
            if rate["rate"] is None:
                rows.append((name, judge, "nothing to judge", rate["unknown"], ""))
                continue
            shown = f"{rate['rate']:.1%} ({rate['low']:.1%} .. {rate['high']:.1%}) of {rate['judged']:,}"
            fixed = rate.get("corrected")
            corrected = "" if fixed is None else f"{fixed:.1%} ± {rate['corrected_error']:.1%}"
            rows.append((name, judge, shown, rate["unknown"], corrected))
    return table(("sampler", "judge", "called wrong", "not decidable", "corrected (Rogan-Gladen)"), rows)


def _kept(measures: Mapping[str, Any]) -> str:
    rows = []
    for name, kept in measures["filters"].items():
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in kept["dropped"].items()) or "none"
        right = f"{kept['kept_right'] / kept['kept']:.1%}" if kept["kept"] else ""
        rows.append((name, f"{kept['kept']:,}", right, dropped))
    return table(("sampler", "kept", "of them right", "dropped"), rows)


def _errors(measures: Mapping[str, Any]) -> str:
    if not measures["errors"]:
        return "None.\n"
    return (
        "\n".join(f"- {kind}: {count:,}" for kind, count in measures["errors"].items())
        + "\n\nSee `errors.jsonl`.\n"
    )
