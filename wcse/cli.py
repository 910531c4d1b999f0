"""The command line: ``wcse solve``, ``wcse demo``, ``wcse report``.

Only argparse is imported here, so that ``wcse --help`` answers at once; everything heavy waits for the
command that needs it. A mistake of the user is one line on stderr and exit code 2, never a traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from wcse.names import suggest
from wcse.types import WcseError

if TYPE_CHECKING:
    from wcse.data.journal import Journal
    from wcse.data.outputs import Outputs
    from wcse.recipe import Recipe
    from wcse.types import Problem

Solver = Callable[..., None]
"""``wcse.solve.solve`` or a stand-in of a test."""

INTERRUPTED = 130

DEMO = {
    "policy": "tiny-wc",
    "prm": "tiny-wc-prm",
    # Seeds from ten million up were kept out of the embedded models' training data.
    "problems": "gsm_symbolic:size=100,seed=20261122",
    "strategies": ("greedy", "majority", "best_of_n", "weighted_best_of_n", "beam_search", "dvts"),
    "n": 16,
    "max_tokens": 256,
}
"""The recipe of ``wcse demo``."""


def main(argv: Sequence[str] | None = None, *, solver: Solver | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for a mistake of the user, 130 when interrupted.

    Args:
        argv: arguments without the program's name; None takes the process's own.
        solver: stands in for ``wcse.solve.solve``.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character must not end the run
    try:
        return _dispatch(_parse(argv), solver)
    except WcseError as error:
        print(f"wcse: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nwcse: interrupted", file=sys.stderr)
        return INTERRUPTED


def _dispatch(args: argparse.Namespace, solver: Solver | None) -> int:
    options = dict(vars(args))
    command, quiet = options.pop("command"), options.pop("quiet", False)
    if command is None:
        _parser().print_help()
        return 2
    if command == "report":
        _show(_outputs(options["directory"]))
        return 0
    return _run(DEMO | options if command == "demo" else options, quiet=quiet, solver=solver)


def _run(options: Mapping[str, Any], *, quiet: bool, solver: Solver | None) -> int:
    """Solve what the journal lacks, then write the outputs."""
    from wcse.problems import load_problems
    from wcse.recipe import Recipe

    recipe = Recipe.parse(options)
    problems = load_problems(recipe.problems, limit=recipe.limit)
    directory = recipe.out or f"runs/{recipe.digest[:12]}"
    with _open_journal(recipe, problems, directory) as journal:
        total = len(problems) * len(recipe.strategies)
        if not quiet:
            _announce(recipe, journal, directory, total)
        if len(journal.done) < total:
            try:
                _solve(recipe, problems, journal, quiet=quiet, solver=solver)
            except KeyboardInterrupt:
                print(
                    f"\nwcse: interrupted: {len(journal.done)} of {total} are stored in {directory}; "
                    "run the same command again to go on",
                    file=sys.stderr,
                )
                return INTERRUPTED
    _show(_outputs(directory))
    return 0


def _solve(
    recipe: Recipe, problems: Sequence[Problem], journal: Journal, *, quiet: bool, solver: Solver | None
) -> None:
    from wcse.progress import ProgressLine

    if solver is None:
        from wcse.solve import solve

        solver = solve
    line = ProgressLine(sys.stderr, quiet=quiet)
    try:
        solver(
            recipe,
            list(problems),
            on_record=journal.append,
            on_progress=line,
            skip=frozenset(journal.done),
        )
    finally:
        line.close()


def _open_journal(recipe: Recipe, problems: Sequence[Problem], directory: str) -> Journal:
    from wcse.data.fingerprint import fingerprint_problems
    from wcse.data.journal import Header, Journal

    inputs = {"problems": fingerprint_problems(problems), **_models(recipe)}
    return Journal.open(
        directory, Header(recipe.results(), inputs, tuple(p.id for p in problems), _versions())
    )


def _models(recipe: Recipe) -> dict[str, str]:
    """Fingerprints of the models on this machine; a missing one is an error before anything is written."""
    from wcse.data.fingerprint import fingerprint_path
    from wcse.models.load import find_model
    from wcse.recipe import SHARED

    names = {"policy": recipe.policy, "prm": recipe.prm}
    return {
        field: fingerprint_path(find_model(name))
        for field, name in names.items()
        if name is not None and name != SHARED  # a shared head lies in the policy's folder
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = {name: version(name) for name in ("wcse", "torch", "transformers", "numpy")}
    return {"python": sys.version.split()[0], **packages}


def _announce(recipe: Recipe, journal: Journal, directory: str, total: int) -> None:
    say = [
        f"{recipe.policy} on {recipe.problems}: {', '.join(recipe.strategies)}, n={recipe.n} -> {directory}"
    ]
    if journal.done:
        say.append(f"resuming: {len(journal.done)} of {total} are done")
    if journal.torn:
        say.append("an unfinished last record was cut; it is done again")
    if journal.damaged:
        say.append(f"{journal.damaged} damaged records in the journal are done again; check the disk")
    print("\n".join(f"wcse: {line}" for line in say), file=sys.stderr)


def _outputs(directory: str) -> Outputs:
    from wcse.data.outputs import write_outputs

    return write_outputs(directory)


def _show(outputs: Outputs) -> None:
    from wcse.report.terminal import summary_table

    print(summary_table(outputs.summary))
    print(f"\nreport: {outputs.report}")


# --- arguments --------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Mistakes become a WcseError instead of a usage text and an exit."""

    def error(self, message: str) -> NoReturn:
        raise WcseError(f"{message}; see {self.prog} --help")


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"wcse {version('wcse')}")
        parser.exit(0)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        raise WcseError(_unknown_argument(unknown[0], args.command))
    missing = [
        f"--{option}" for option, field in _NEEDED.items() if args.command == "solve" and field not in args
    ]
    if missing:
        raise WcseError(f"{', '.join(missing)} missing; see wcse solve --help")
    return args


def _unknown_argument(argument: str, command: str | None) -> str:
    name = argument.partition("=")[0]
    known = [f"--{option}" for option, _ in _COMMANDS.get(command or "", ())]
    return (
        f"unknown argument {name!r}{suggest(name, known)}; see wcse {f'{command} ' if command else ''}--help"
    )


def _strategies(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


_Options = tuple[tuple[str, dict[str, Any]], ...]

_RUNTIME: _Options = (
    ("out", {"metavar": "DIR", "help": "journal and outputs (default runs/<digest of the recipe>)"}),
    ("batch-size", {"type": int, "metavar": "ROWS", "help": "most rows in a batch"}),
    ("kv-memory-gb", {"type": float, "metavar": "GB", "help": "memory for keys and values"}),
    ("threads", {"type": int, "metavar": "T", "help": "CPU threads"}),
    ("quiet", {"action": "store_true", "help": "no progress line"}),
)
_SOLVE: _Options = (
    ("policy", {"metavar": "P", "help": "model: folder, .gguf file, tiny-wc, or hub id"}),
    ("prm", {"metavar": "R", "help": "verifier: a model, or 'shared' for the policy's own head"}),
    ("prm-family", {"metavar": "F", "help": "how the verifier reads steps (default: ask the model)"}),
    ("problems", {"metavar": "SPEC", "help": "see below"}),
    ("limit", {"type": int, "metavar": "K", "help": "only the first K problems"}),
    (
        "strategy",
        {
            "dest": "strategies",
            "type": _strategies,
            "metavar": "S[,S2]",
            "help": "greedy, majority, best_of_n, weighted_best_of_n, beam_search, dvts",
        },
    ),
    ("n", {"type": int, "metavar": "N", "help": "budget: solutions per problem (default 4)"}),
    ("beam-width", {"type": int, "metavar": "M", "help": "children of a kept step (default 4)"}),
    ("num-iterations", {"type": int, "metavar": "K", "help": "most steps of a solution (default 40)"}),
    ("temperature", {"type": float, "metavar": "T", "help": "sampling temperature (default 0.8)"}),
    ("top-p", {"type": float, "metavar": "P", "help": "nucleus probability (default 1.0)"}),
    ("top-k", {"type": int, "metavar": "K", "help": "most likely tokens kept; 0 keeps all (default 0)"}),
    (
        "min-p",
        {"type": float, "metavar": "P", "help": "least share of the best token's probability (default 0.0)"},
    ),
    ("max-tokens", {"type": int, "metavar": "K", "help": "most tokens of a solution (default 2048)"}),
    (
        "max-step-tokens",
        {"type": int, "metavar": "K", "help": "most tokens of a step; 0: no limit (default 0)"},
    ),
    ("agg-strategy", {"metavar": "A", "help": "last, min, prod or mean (default: the verifier's own)"}),
    ("seed", {"type": int, "metavar": "S", "help": "seed of all random numbers (default 42)"}),
    ("system-prompt", {"metavar": "TEXT", "help": "system turn before each problem"}),
    *_RUNTIME,
)
_DEMO: _Options = (
    ("problems", {"metavar": "SPEC", "help": f"see below (default {DEMO['problems']})"}),
    ("limit", {"type": int, "metavar": "K", "help": "only the first K problems"}),
    ("n", {"type": int, "metavar": "N", "help": f"budget: solutions per problem (default {DEMO['n']})"}),
    ("seed", {"type": int, "metavar": "S", "help": "seed of all random numbers (default 42)"}),
    *_RUNTIME,
)
_NEEDED = {"policy": "policy", "problems": "problems", "strategy": "strategies"}
"""What ``wcse solve`` cannot do without: option -> field. Checked last, so that a typo is named first."""

_COMMANDS: dict[str, _Options] = {"solve": _SOLVE, "demo": _DEMO}

_SPEC_HELP = """\
SPEC is one of
  gsm_symbolic:size=100,seed=7     a reasoning-gym task with its options
  problems.jsonl, .json, .parquet  rows with problem (or question, prompt) and answer
  owner/name:split=test            a Hugging Face dataset

A run stops and goes on: the same command resumes what DIR holds. Changed options are refused there.
"""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="wcse",
        description="Search over partial solutions with a weak, cheap policy and a verifier.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="print the version"
    )
    commands = parser.add_subparsers(dest="command", metavar="command", parser_class=_Parser)
    about = {
        "solve": "solve problems with a policy, a verifier and search strategies",
        "demo": "all strategies with the embedded models; a few minutes on a plain CPU",
    }
    for name, options in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=about[name],
            description=about[name],
            epilog=_SPEC_HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for option, settings in options:
            command.add_argument(f"--{option}", default=argparse.SUPPRESS, **settings)
    report = commands.add_parser("report", help="write the outputs of a run again", allow_abbrev=False)
    report.add_argument("directory", metavar="DIR", help="directory of the run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
