"""``wcse solve``, ``wcse demo`` and ``wcse report``: a run in a directory, resumed where it stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wcse.cli.arguments import specs, unescaped
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
    "problems": "gsm_symbolic:size=200,seed=20261122",
    "strategies": ("greedy", "majority", "best_of_n", "weighted_best_of_n", "beam_search", "dvts"),
    "n": 16,
    "max_tokens": 256,
}
"""The recipe of ``wcse demo``."""


def solve(options: Options) -> int:
    """Solve what the journal lacks, then write the outputs."""
    from wcse.problems import load_problems
    from wcse.recipe import Recipe

    options = _with_sal_recipe(dict(options))
    quiet, profiled = options.pop("quiet", False), options.pop("profile", False)
    recipe = Recipe.parse(options)
    problems = load_problems(recipe.problems, limit=recipe.limit)
    directory = recipe.out or f"runs/{recipe.digest[:12]}"
    with _open_journal(recipe, problems, directory) as journal:
        total = len(problems) * len(recipe.strategies)
        if not quiet:
            _announce(recipe, journal, directory, total)
        if len(journal.done) < total:
            try:
                if profiled:
                    _profiled(recipe, problems, journal, directory, quiet=quiet)
                else:
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


def _with_sal_recipe(options: Options) -> Options:
    """The options on top of those of a search-and-learn recipe, where one is given."""
    from wcse.types import WcseError

    path, exact = options.pop("sal_recipe", None), options.pop("sal_compat", False)
    if path is not None:
        from wcse.compat import read_recipe

        options = read_recipe(path, exact=exact) | options
    elif exact:
        raise WcseError("--sal-compat goes with --sal-recipe; or write beam_search(compat=search-and-learn)")
    missing = [name for name in ("policy", "problems", "strategies") if name not in options]
    if missing:
        names = ", ".join(f"--{'strategy' if name == 'strategies' else name}" for name in missing)
        raise WcseError(f"{names} missing; see wcse solve --help")
    return options


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


def _profiled(
    recipe: Recipe, problems: Sequence[Problem], journal: Journal, directory: str, *, quiet: bool
) -> None:
    """Solve, and say where the time went and which kernels the matrices took."""
    from wcse.kernels import ops
    from wcse.profile import Profile

    with Profile() as profile:
        _solve(recipe, problems, journal, quiet=quiet)
    matrices = {"policy": ops.linear_paths(recipe.quantization)}
    if recipe.prm is not None:
        matrices["prm"] = ops.linear_paths(recipe.prm_quantization)
    told = profile.times.to_json() | {"matrices": matrices}
    (Path(directory) / "profile.json").write_text(json.dumps(told, indent=2) + "\n")
    lines = "\n".join(f"{name}'s matrices: {path}" for name, path in matrices.items())
    print(f"{profile.times.table()}\n{lines}\n", file=sys.stderr)


def _open_journal(recipe: Recipe, problems: Sequence[Problem], directory: str) -> Journal:
    from wcse.data.fingerprint import fingerprint_problems
    from wcse.data.journal import Header, Journal
    from wcse.solve import arithmetic

    inputs = {"problems": fingerprint_problems(problems), **_models(recipe)}
    results = recipe.results() | arithmetic(recipe)
    return Journal.open(directory, Header(results, inputs, tuple(p.id for p in problems), _versions()))


def _models(recipe: Recipe) -> dict[str, str]:
    """Fingerprints of the models and of the policy file; a missing one is an error before anything is written."""
    from wcse.solve import fingerprint_inputs

    prints = fingerprint_inputs(recipe)
    if recipe.strategy_policy:
        prints["strategy_policy"] = _fingerprint_file(recipe.strategy_policy)
    return prints


def _fingerprint_file(path: str) -> str:
    from wcse.data.fingerprint import fingerprint_path
    from wcse.types import WcseError

    try:
        return fingerprint_path(Path(path))
    except OSError as error:
        raise WcseError(f"strategy_policy={path!r}: {error.strerror}; make one with wcse optimal") from error


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


RUNTIME = (
    ("out", {"metavar": "DIR", "help": "journal and outputs (default runs/<digest of the recipe>)"}),
    ("batch-size", {"type": int, "metavar": "ROWS", "help": "most rows in a batch"}),
    ("kv-memory-gb", {"type": float, "metavar": "GB", "help": "memory for keys and values"}),
    ("device", {"metavar": "D", "help": "cpu or cuda (default cpu)"}),
    ("threads", {"type": int, "metavar": "T", "help": "CPU threads"}),
    ("quiet", {"action": "store_true", "help": "no progress line"}),
    ("profile", {"action": "store_true", "help": "say where the time went; also in DIR/profile.json"}),
)
SOLVE_OPTIONS = (
    ("policy", {"metavar": "P", "help": "model: folder, .gguf file, tiny-wc, or hub id"}),
    (
        "prm",
        {
            "metavar": "R",
            "help": "verifier: a model, 'shared' (the policy's own head), or policy:mean_logprob",
        },
    ),
    ("prm-family", {"metavar": "F", "help": "how the verifier reads steps (default: ask the model)"}),
    (
        "quantization",
        {
            "metavar": "Q",
            "help": "policy weights: int8, int4 or gguf (as in the file); with 8-bit inputs too: w8a8, w4a8, gguf_a8; "
            "on a GPU fp8 (default: those of dtype)",
        },
    ),
    (
        "kv-cache-dtype",
        {
            "metavar": "D",
            "help": "keys and values: float16 takes half of float32; fp8 on a GPU (default: dtype)",
        },
    ),
    ("prm-quantization", {"metavar": "Q", "help": "the same for the verifier's weights"}),
    ("dtype", {"metavar": "T", "help": "float32, bfloat16 or float16 (default: float32; bfloat16 on a GPU)"}),
    ("problems", {"metavar": "SPEC", "help": "see below"}),
    ("limit", {"type": int, "metavar": "K", "help": "only the first K problems"}),
    (
        "strategy",
        {
            "dest": "strategies",
            "type": specs,
            "metavar": "S[,S2]",
            "help": "see below; each may have options of its own: beam_search(n=16,lookahead=1)",
        },
    ),
    ("n", {"type": int, "metavar": "N", "help": "budget: solutions per problem (default 4)"}),
    (
        "budget",
        {
            "metavar": "B",
            "help": "hard limit per problem: tokens=20000, flops=2e12, seconds=3 or money=.01,price_out=.4",
        },
    ),
    ("strategy-policy", {"metavar": "FILE", "help": "policy file of wcse optimal, for the strategy auto"}),
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
        {"type": unescaped, "metavar": "TEXT", "help": r"what ends a step (default \n\n, a blank line)"},
    ),
    ("agg-strategy", {"metavar": "A", "help": "last, min, prod or mean (default: the verifier's own)"}),
    ("seed", {"type": int, "metavar": "S", "help": "seed of all random numbers (default 42)"}),
    ("system-prompt", {"metavar": "TEXT", "help": "system turn before each problem"}),
    ("few-shot", {"metavar": "SET", "help": "solved examples before it: a set's name or a JSONL file"}),
    ("few-shot-k", {"type": int, "metavar": "K", "help": "only the first K examples"}),
    *RUNTIME,
)
_SAL = (
    (
        "sal-recipe",
        {"metavar": "FILE", "help": "options from a search-and-learn YAML recipe; others come after it"},
    ),
    ("sal-compat", {"action": "store_true", "help": "follow that project's rules of search, too"}),
)
_DEMO = (
    ("problems", {"metavar": "SPEC", "help": f"see below (default {DEMO['problems']})"}),
    ("limit", {"type": int, "metavar": "K", "help": "only the first K problems"}),
    ("n", {"type": int, "metavar": "N", "help": f"budget: solutions per problem (default {DEMO['n']})"}),
    ("seed", {"type": int, "metavar": "S", "help": "seed of all random numbers (default 42)"}),
    *RUNTIME,
)

_STRATEGY_HELP = """\
S is one of greedy, majority, best_of_n, weighted_best_of_n, and
  beam_search, dvts                (beam_width, lookahead, compat=search-and-learn)
  lookahead_search                 (beam_width, lookahead)
  rebase                           (softmax_temperature, rounding=remainder|ceil)
  particle_filter                  (potential=ratio|product|odds, ess_threshold, resampling=systematic|multinomial)
  speculative_rejection            (rejection_rate, checkpoint_tokens)
  adaptive_vote                    (chunk, stop_rule=beta|certain, confidence)
  mcts                             (beam_width, exploration)
  auto                             the strategy that the problem needs, by --strategy-policy
Every one also takes n, num_iterations and agg_strategy in parentheses; the same options outside of them hold
for all.

"""

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
        (*SOLVE_OPTIONS, *_SAL),
        epilog=_STRATEGY_HELP + _SPEC_HELP,
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
