"""``wcse solve``, ``wcse demo`` and ``wcse report``: a run in a directory, resumed where it stopped."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wcse.cli.command import INTERRUPTED, Command, Options

if TYPE_CHECKING:
    from wcse.data.journal import Journal
    from wcse.data.outputs import Outputs
    from wcse.recipe import Recipe
    from wcse.types import Problem

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


def solve(options: Options) -> int:
    """Solve what the journal lacks, then write the outputs."""
    from wcse.problems import load_problems
    from wcse.recipe import Recipe

    options = dict(options)
    quiet = options.pop("quiet", False)
    recipe = Recipe.parse(options)
    problems = load_problems(recipe.problems, limit=recipe.limit)
    directory = recipe.out or f"runs/{recipe.digest[:12]}"
    with _open_journal(recipe, problems, directory) as journal:
        total = len(problems) * len(recipe.strategies)
        if not quiet:
            _announce(recipe, journal, directory, total)
        if len(journal.done) < total:
            try:
                _solve(recipe, problems, journal, quiet=quiet)
            except KeyboardInterrupt:
                print(
                    f"\nwcse: interrupted: {len(journal.done)} of {total} are stored in {directory}; "
                    "run the same command again to go on",
                    file=sys.stderr,
                )
                return INTERRUPTED
    _show(_outputs(directory))
    return 0


def _solve(recipe: Recipe, problems: Sequence[Problem], journal: Journal, *, quiet: bool) -> None:
    from wcse.progress import ProgressLine
    from wcse.solve import solve

    line = ProgressLine(sys.stderr, quiet=quiet)
    try:
        solve(
            recipe, list(problems), on_record=journal.append, on_progress=line, skip=frozenset(journal.done)
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


def demo(options: Options) -> int:
    """All strategies with the embedded models."""
    return solve(DEMO | options)


def report(options: Options) -> int:
    """Write the outputs of a run again."""
    _show(_outputs(options["directory"]))
    return 0


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _strategies(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


RUNTIME = (
    ("out", {"metavar": "DIR", "help": "journal and outputs (default runs/<digest of the recipe>)"}),
    ("batch-size", {"type": int, "metavar": "ROWS", "help": "most rows in a batch"}),
    ("kv-memory-gb", {"type": float, "metavar": "GB", "help": "memory for keys and values"}),
    ("threads", {"type": int, "metavar": "T", "help": "CPU threads"}),
    ("quiet", {"action": "store_true", "help": "no progress line"}),
)
_SOLVE = (
    ("policy", {"metavar": "P", "help": "model: folder, .gguf file, tiny-wc, or hub id"}),
    ("prm", {"metavar": "R", "help": "verifier: a model, or 'shared' for the policy's own head"}),
    ("prm-family", {"metavar": "F", "help": "how the verifier reads steps (default: ask the model)"}),
    (
        "quantization",
        {"metavar": "Q", "help": "policy weights: int8, int4 or gguf (as in the file) (default: float32)"},
    ),
    ("prm-quantization", {"metavar": "Q", "help": "the same for the verifier's weights"}),
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
    (
        "delimiter",
        {"type": _unescaped, "metavar": "TEXT", "help": r"what ends a step (default \n\n, a blank line)"},
    ),
    ("agg-strategy", {"metavar": "A", "help": "last, min, prod or mean (default: the verifier's own)"}),
    ("seed", {"type": int, "metavar": "S", "help": "seed of all random numbers (default 42)"}),
    ("system-prompt", {"metavar": "TEXT", "help": "system turn before each problem"}),
    *RUNTIME,
)
_DEMO = (
    ("problems", {"metavar": "SPEC", "help": f"see below (default {DEMO['problems']})"}),
    ("limit", {"type": int, "metavar": "K", "help": "only the first K problems"}),
    ("n", {"type": int, "metavar": "N", "help": f"budget: solutions per problem (default {DEMO['n']})"}),
    ("seed", {"type": int, "metavar": "S", "help": "seed of all random numbers (default 42)"}),
    *RUNTIME,
)

_SPEC_HELP = """\
SPEC is one of
  gsm_symbolic:size=100,seed=7     a reasoning-gym task with its options
  problems.jsonl, .json, .parquet  rows with problem (or question, prompt) and answer
  owner/name:split=test            a Hugging Face dataset

A run stops and goes on: the same command resumes what DIR holds. Changed options are refused there.
"""

COMMANDS = (
    Command(
        "solve",
        "solve problems with a policy, a verifier and search strategies",
        solve,
        _SOLVE,
        needs=("policy", "problems", "strategy"),
        epilog=_SPEC_HELP,
    ),
    Command(
        "demo",
        "all strategies with the embedded models; a few minutes on a plain CPU",
        demo,
        _DEMO,
        epilog=_SPEC_HELP,
    ),
    Command(
        "report",
        "write the outputs of a run again",
        report,
        arguments=(("directory", {"metavar": "DIR", "help": "directory of the run"}),),
    ),
)
