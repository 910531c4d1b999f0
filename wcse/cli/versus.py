"""``wcse versus``: a small model with every strategy and with ``auto`` beside larger models, at equal FLOPs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wcse.cli.arguments import count, counts, specs, words
from wcse.cli.command import Command, Options
from wcse.cli.optimal import RECIPE, SAMPLERS, optimal
from wcse.cli.solve import solve
from wcse.types import WcseError

AUTO = "auto"
"""Directory of the run of ``auto``."""
_OWN = ("larger", "fit", "budgets", "strategies", "n", "larger_n", "difficulty", "probes", "bins", "out")


def versus(options: Options) -> int:
    """Fit the policy file, run what is missing, and write ``versus.json`` and ``versus.html``."""
    folder, budgets = Path(options["out"]), sorted(options.get("budgets", (8, 16, 32)))
    recipe = {name: value for name, value in options.items() if name not in _OWN}
    most = options.get("n", max(budgets))
    if most < max(budgets):
        raise WcseError(
            f"n={most} is below the largest budget {max(budgets)}; raise n or give smaller budgets"
        )
    if "fit" in options and ("prm" not in options or options.get("difficulty") == "oracle"):
        raise WcseError(
            "fit: auto asks a verifier and never the gold answers; set prm, and no difficulty=oracle"
        )
    _refuse_equal_names(options)
    _refuse_known_problems(options)
    strategies = _strategies(options, budgets)
    if "fit" in options:
        code = optimal(_fit_options(options, recipe, budgets, folder / "fit"))
        if code:
            return code
    runs = {_name(options["policy"]): recipe | {"strategies": strategies, "n": most}}
    if "fit" in options:  # in a run of its own, so that another fit leaves the long run as it is
        table = str(folder / "fit" / "policy.json")
        names = tuple(f"auto(n={n})" for n in budgets)
        runs[AUTO] = recipe | {"strategies": names, "n": max(budgets), "strategy_policy": table}
    for model in options.get("larger", ()):
        runs[_name(model)] = _larger(options, recipe, model)
    for name, fields in runs.items():
        print(f"\n{name}:", flush=True)
        code = solve(fields | {"out": str(folder / name)})
        if code:
            return code
    _finish(folder, list(runs), options)
    return 0


def _refuse_equal_names(options: Options) -> None:
    """Each model has a directory of its name."""
    names = ["fit", AUTO, *(_name(model) for model in (options["policy"], *options.get("larger", ())))]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise WcseError(
            f"policy and larger: {twice[0]!r} would be the directory of two runs; give models whose files or "
            f"folders have different names (not 'fit' or {AUTO!r})"
        )


def _refuse_known_problems(options: Options) -> None:
    """The policy file must not have seen the problems that judge it."""
    from wcse.problems import load_problems

    if "fit" not in options:
        return
    limit = options.get("limit")
    fresh = {problem.prompt for problem in load_problems(options["problems"], limit=limit)}
    shared = fresh & {problem.prompt for problem in load_problems(options["fit"], limit=limit)}
    if shared:
        raise WcseError(
            f"fit={options['fit']!r} and problems={options['problems']!r} share {len(shared)} problems; "
            "give others to fit on, another seed for example"
        )


def _strategies(options: Options, budgets: Sequence[int]) -> tuple[str, ...]:
    """Sample sets at the largest N, and each given strategy at every budget or at its own n."""
    from wcse.search import parse_strategy

    names: dict[str, None] = dict.fromkeys(("greedy", *(SAMPLERS if "prm" in options else SAMPLERS[:1])))
    for text in _given(options):
        spec = parse_strategy(text)
        for n in (spec.options["n"],) if "n" in spec.options else budgets:
            names[str(type(spec)(spec.name, {**spec.options, "n": n}))] = None
    return tuple(names)


def _given(options: Options) -> tuple[str, ...]:
    default = ("beam_search", "dvts") if "prm" in options else ()
    return tuple(options.get("strategies", default))


def _fit_options(options: Options, recipe: Options, budgets: Sequence[int], folder: Path) -> Options:
    """The call of ``wcse optimal``: it sweeps the strategies that have no n of their own."""
    from wcse.search import parse_strategy

    chosen = {name: options[name] for name in ("difficulty", "probes", "bins") if name in options}
    swept = tuple(text for text in _given(options) if "n" not in parse_strategy(text).options)
    return (
        recipe
        | chosen
        | {
            "problems": options["fit"],
            "budgets": tuple(budgets),
            "strategies": swept,
            "out": str(folder),
        }
    )


def _larger(options: Options, recipe: Options, model: str) -> Options:
    """A larger model's run: samples only, judged by the same verifier where that is a model of its own."""
    from wcse.recipe import OWN, SHARED

    fields = recipe | {"policy": model, "n": options.get("larger_n", 8)}
    prm = str(options.get("prm", SHARED))
    if prm == SHARED or prm.startswith(OWN):
        fields = {name: value for name, value in fields.items() if not name.startswith("prm")}
        return fields | {"strategies": ("greedy", *SAMPLERS[:1])}
    return fields | {"strategies": ("greedy", *SAMPLERS)}


def _name(model: str) -> str:
    return Path(model).name


def _finish(folder: Path, names: Sequence[str], options: Options) -> None:
    from wcse.data.disk import atomic_file
    from wcse.optimal.versus import Side, compare
    from wcse.report.terminal import align
    from wcse.report.versus import auto_table, beam_table, crossings_table, curves_table, equal_table, page

    name, *rest = [name for name in names if name != AUTO]
    small = Side.read(name, folder / name, *(folder / other for other in names if other == AUTO))
    larger = [Side.read(other, folder / other) for other in rest]
    found = compare(small, larger, _best_fixed(folder / "fit")) | {
        "options": {name: _plain(options[name]) for name in options if name != "quiet"}
    }
    for title, make in (
        ("Every strategy", curves_table),
        ("At equal FLOPs", equal_table),
        ("Where the small model draws level", crossings_table),
        ("auto beside single strategies at the same N", auto_table),
        ("Tree search less sampling at the same N, points", beam_table),
    ):
        rows = make(found)
        if len(rows) > 1:
            print(f"\n{title}\n\n{align(rows)}")
    with atomic_file(folder / "versus.json") as file:
        file.write(json.dumps(found, indent=1).encode("ascii") + b"\n")
    with atomic_file(folder / "versus.html") as file:
        file.write(page(found))
    print(f"\nreport: {folder / 'versus.html'}", flush=True)
    sys.stdout.flush()


def _best_fixed(folder: Path) -> dict[int, str]:
    """The best single strategy at each budget on the problems of the fit."""
    path = folder / "optimal.json"
    if not path.is_file():
        return {}
    best: dict[int, Mapping[str, Any]] = {}
    for point in json.loads(path.read_text(encoding="utf-8"))["fixed"]:
        if point["n"] not in best or point["accuracy"] > best[point["n"]]["accuracy"]:
            best[point["n"]] = point
    return {n: str(point["strategy"]) for n, point in best.items()}


def _plain(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else value


COMMANDS = (
    Command(
        "versus",
        "a small model with search beside larger models, at equal FLOPs and by difficulty",
        versus,
        (
            ("larger", {"type": words, "metavar": "P[,P2]", "help": "larger models (default: none)"}),
            ("fit", {"metavar": "SPEC", "help": "problems to make auto's policy file on (default: no auto)"}),
            (
                "budgets",
                {
                    "type": counts,
                    "metavar": "N[,N2]",
                    "help": "budgets of auto and searches (default 8,16,32)",
                },
            ),
            (
                "strategy",
                {
                    "dest": "strategies",
                    "type": specs,
                    "metavar": "S[,S2]",
                    "help": "tree searches, at every budget or at an n of their own: beam_search,mcts(n=16) "
                    "(default beam_search,dvts); sample sets always run",
                },
            ),
            (
                "n",
                {
                    "type": count,
                    "metavar": "N",
                    "help": "samples of the small model (default: the largest budget)",
                },
            ),
            ("larger-n", {"type": count, "metavar": "N", "help": "samples of the larger models (default 8)"}),
            ("difficulty", {"metavar": "D", "help": "of auto: verifier or agreement (default verifier)"}),
            ("probes", {"type": int, "metavar": "K", "help": "samples that measure difficulty (default 4)"}),
            ("bins", {"metavar": "B", "help": "of auto: quintile or absolute (default quintile)"}),
            ("out", {"metavar": "DIR", "help": "directory of the runs, versus.json and versus.html"}),
            *RECIPE,
        ),
        needs=("policy", "problems", "out"),
        epilog="Give the same command again to go on where it stopped.\n",
    ),
)
