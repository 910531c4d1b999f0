"""``wcse optimal``: sweep strategies over budgets, and find which one pays for which problems."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wcse.cli.arguments import counts, specs
from wcse.cli.command import Command, Options
from wcse.cli.solve import SOLVE_OPTIONS, solve
from wcse.types import WcseError

if TYPE_CHECKING:
    from wcse.optimal.difficulty import Difficulty

SAMPLERS = ("majority", "best_of_n", "weighted_best_of_n")
FEWEST = 6
"""Problems that a sweep needs: five bins, in two folds."""
_OWN = ("budgets", "strategies", "difficulty", "probes", "bins", "out", "quiet")


def optimal(options: Options) -> int:
    """Run what the sweep lacks, fit, print, and write ``optimal.json``, ``optimal.html`` and ``policy.json``."""
    from wcse.optimal.difficulty import Difficulty
    from wcse.problems import load_problems
    from wcse.recipe import Recipe

    budgets = sorted(options.get("budgets", (4, 16)))
    difficulty = Difficulty(
        options.get("difficulty", "verifier"), options.get("probes", 4), options.get("bins", "quintile")
    )
    _refuse_impossible(difficulty, max(budgets), scored="prm" in options)
    folder = Path(options["out"])
    recipe = {k: v for k, v in options.items() if k not in _OWN or k == "quiet"}
    recipe |= {
        "n": max(budgets),
        "strategies": sweep(
            options.get("strategies", ("beam_search", "dvts")),
            budgets,
            difficulty.samples,
            scored="prm" in options,
            beam_width=options.get("beam_width", 4),
        ),
        "out": str(folder / "sweep"),
    }
    checked = Recipe.parse({k: v for k, v in recipe.items() if k != "quiet"})  # before anything is written
    count = len(load_problems(checked.problems, limit=checked.limit))
    if count < FEWEST:
        raise WcseError(
            f"problems={checked.problems!r}: {count} problems are too few to choose from; give {FEWEST} or more"
        )
    code = solve(recipe)
    if code == 0:
        shown: dict[str, Any] = {"policy": checked.policy, "prm": checked.prm, "problems": checked.problems}
        shown |= {"difficulty": difficulty.kind, "probes": difficulty.samples, "bins": difficulty.bins}
        _fit(folder, budgets, difficulty, shown)
    return code


def _refuse_impossible(difficulty: Difficulty, most: int, *, scored: bool) -> None:
    """What would fail after the sweep fails before it."""
    if difficulty.kind == "verifier" and not scored:
        raise WcseError("difficulty=verifier needs a verifier; set prm, or take difficulty=agreement")
    if difficulty.kind != "oracle" and difficulty.samples > most:
        raise WcseError(
            f"probes={difficulty.samples} is above the largest budget {most}; use fewer probes or larger budgets"
        )


def sweep(
    trees: Sequence[str], budgets: Sequence[int], probes: int, *, scored: bool, beam_width: int
) -> tuple[str, ...]:
    """The strategies to run: the sample sets at the largest budget, the tree searches at every budget, whole
    and less the probes."""
    from wcse.optimal.policy_file import tree_budgets
    from wcse.search import STRATEGIES, parse_strategy

    names: dict[str, None] = dict.fromkeys(SAMPLERS if scored else SAMPLERS[:1])
    for text in trees if scored else ():
        spec = parse_strategy(text)
        if "n" in spec.options:
            raise WcseError(f"strategy={text!r}: n comes from --budgets; leave it out")
        if spec.name in (*SAMPLERS, "auto") or not STRATEGIES[spec.name].needs_prm:
            raise WcseError(
                f"strategy={text!r}: give searches that ask a verifier; sample sets are swept anyway"
            )
        width = spec.options.get("beam_width", beam_width)
        for n in tree_budgets(budgets, probes, width):
            names[str(type(spec)(spec.name, {**spec.options, "n": n}))] = None
    return tuple(names)


def _fit(folder: Path, budgets: Sequence[int], difficulty: Difficulty, options: Mapping[str, Any]) -> None:
    from wcse.data.disk import atomic_file
    from wcse.data.journal import read_header, read_records
    from wcse.optimal.fit import by_bin, cross_validate, fit, fixed_points
    from wcse.optimal.grid import read_grid
    from wcse.optimal.policy_file import save
    from wcse.report.optimal import page
    from wcse.search.auto import FEATURES

    grid = read_grid(folder / "sweep", budgets, difficulty)
    table = fit(grid, budgets)
    found = {
        "options": options,
        "difficulty": asdict(difficulty),
        "problems": len(grid.problems),
        "fixed": [point for n in budgets for point in fixed_points(grid, n)],
        "optimal": [cross_validate(grid, n) for n in budgets],
        "bins": [row for n in budgets for row in by_bin(grid, n)],
        "choices": {
            str(n): {"probed": column.probed, "strategies": [cell.strategy for cell in column.cells]}
            for n, column in table.choices.items()
        },
    }
    _show(found, budgets)
    with atomic_file(folder / "optimal.json") as file:
        file.write(json.dumps(found, indent=2).encode("ascii") + b"\n")
    with atomic_file(folder / "optimal.html") as file:
        file.write(page(found))
    print(f"report: {folder / 'optimal.html'}")
    if difficulty.kind in FEATURES and options["prm"] is not None:  # auto asks a verifier
        header = read_header(folder / "sweep")
        scores = {record.agg_strategy for record in read_records(folder / "sweep")} - {None}
        save(
            folder / "policy.json",
            table,
            difficulty,
            agg_strategy=str(next(iter(sorted(map(str, scores))), "last")),
            recipe=header.recipe,
            inputs=header.inputs,
        )
        print(f"\npolicy file: {folder / 'policy.json'}")


def _show(found: Mapping[str, Any], budgets: Sequence[int]) -> None:
    from wcse.report.optimal import bins_table, choices_table, gain, points_table
    from wcse.report.terminal import align

    print(f"\neach strategy alone, {found['problems']} problems:")
    print(align(points_table(found)))
    for point in found["optimal"]:
        probes = point["auto"]["tokens"] - point["auto"]["tokens_without_probes"]
        print(
            f"n={point['n']}: auto over best fixed {gain(point)}; "
            f"{probes:,.0f} of its tokens a problem are probes before a tree search"
        )
    print(f"\nby difficulty (bin 0 is the easiest), n={max(budgets)}:")
    print(align(bins_table(found, max(budgets))))
    print("\nwhat auto does:")
    print(align(choices_table(found)))
    print()


RECIPE = tuple(
    option
    for option in SOLVE_OPTIONS
    if option[0] not in ("strategy", "n", "budget", "out", "strategy-policy", "profile")
)
"""Options of ``wcse solve`` that the sweep takes over as they are."""

COMMANDS = (
    Command(
        "optimal",
        "which strategy pays for which problems, at each budget; makes the policy file of strategy auto",
        optimal,
        (
            ("budgets", {"type": counts, "metavar": "N[,N2]", "help": "budgets in solutions (default 4,16)"}),
            (
                "strategy",
                {
                    "dest": "strategies",
                    "type": specs,
                    "metavar": "S[,S2]",
                    "help": "tree searches to sweep (default beam_search,dvts); sample sets are always swept",
                },
            ),
            ("difficulty", {"metavar": "D", "help": "verifier, agreement or oracle (default verifier)"}),
            ("probes", {"type": int, "metavar": "K", "help": "samples that measure difficulty (default 4)"}),
            ("bins", {"metavar": "B", "help": "quintile or absolute (default quintile)"}),
            (
                "out",
                {
                    "metavar": "DIR",
                    "help": "directory of the sweep, optimal.json, optimal.html and policy.json",
                },
            ),
            *RECIPE,
        ),
        needs=("policy", "problems", "out"),
        epilog="With --difficulty oracle the table explains, and no policy file is written; without --prm neither.\n",
    ),
)
