"""``wcse synth``: training data from weak-cheap and strong-expensive models, matched in cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wcse.cli.arguments import numbers, prices, words
from wcse.cli.command import INTERRUPTED, Arguments, Command, Options
from wcse.types import WcseError

if TYPE_CHECKING:
    from wcse.data.journal import Journal
    from wcse.synth.outputs import Derived
    from wcse.synth.recipe import SynthRecipe
    from wcse.synth.run import Progress
    from wcse.types import Problem

UNMATCHED = 3
"""Exit code of a run whose costs are not as equal as the recipe asks."""

_ARMS = ("model", "prm", "strategy", "temperature", "max_tokens", "few_shot", "price")


def synth(options: Options) -> int:
    """Plan or run a recipe, then write everything that is derived from it."""
    from wcse.problems import load_problems
    from wcse.synth.cost import check_order
    from wcse.synth.generate import sizes_of
    from wcse.synth.recipe import SynthRecipe

    options = dict(options)
    modes = {name: options.pop(name, None) for name in ("plan", "quiet", "labels", "judged", "push_to_hub")}
    recipe = SynthRecipe.parse(_merged(options))
    bad_rows: list[str] = []
    problems = load_problems(
        recipe.problems, limit=recipe.limit, on_bad_row=lambda error: bad_rows.append(str(error))
    )
    for message in bad_rows[:5]:
        print(f"wcse: left out: {message}", file=sys.stderr)
    if len(bad_rows) > 5:
        print(f"wcse: left out: {len(bad_rows) - 5} more rows; see errors.jsonl", file=sys.stderr)
    sizes = sizes_of(recipe)
    check_order(recipe, sizes)
    if modes["plan"]:
        return _plan(recipe, problems)
    derived = _run(recipe, problems, bad_rows, modes)
    if derived is None:
        return INTERRUPTED
    _show(derived)
    if modes["push_to_hub"]:
        from wcse.synth.hub import push

        push(derived.directory, recipe.export, modes["push_to_hub"])
    return 0 if all(b["held"] for b in derived.measures["match"]["balances"]) else UNMATCHED


def _merged(options: dict[str, Any]) -> dict[str, Any]:
    """The recipe file's options, with those of the command line over them."""
    from wcse.synth.recipe import load_recipe

    file = options.pop("recipe", None)
    base = load_recipe(file) if file else {}
    samplers, filters = _options_in(base, "samplers"), _options_in(base, "filters")
    for arm in ("wc", "se"):
        given = {name: options.pop(f"{arm}_{name}") for name in _ARMS if f"{arm}_{name}" in options}
        if given:
            samplers[arm] = _options_in(samplers, arm, "samplers.") | given
    filters |= {name[7:]: options.pop(name) for name in list(options) if name.startswith("filter_")}
    parts = {"samplers": samplers, "filters": filters}
    return base | options | {name: part for name, part in parts.items() if part}


def _options_in(given: Mapping[str, Any], name: str, prefix: str = "") -> dict[str, Any]:
    """The options that a recipe file has under a name; none where it says nothing."""
    value = given.get(name) or {}
    if not isinstance(value, dict):
        raise WcseError(f"{prefix}{name}={value!r}: must hold options as 'name: value' lines")
    return dict(value)


def _plan(recipe: SynthRecipe, problems: Sequence[Problem]) -> int:
    from wcse.synth.generate import sizes_of
    from wcse.synth.plan import pilot, plan_lines, plan_text

    lines = plan_lines(recipe, [p.id for p in problems], sizes_of(recipe), pilot(recipe, problems))
    print(plan_text(recipe, len(problems), lines))
    return 0


def _run(
    recipe: SynthRecipe, problems: Sequence[Problem], bad_rows: Sequence[str], modes: dict[str, Any]
) -> Derived | None:
    """The outputs; None when it was interrupted."""
    from wcse.synth.judges import read_labels
    from wcse.synth.work import run_synth

    directory = recipe.out or f"runs/synth-{recipe.digest[:12]}"
    done: set[tuple[str, str]] = set()

    def opened(journal: Journal) -> None:
        nonlocal done
        done = journal.done
        where = f"resuming {len(done)} units in" if done else "writing to"
        if not modes["quiet"]:
            print(
                f"wcse: {len(problems)} problems, {' and '.join(recipe.order)}; {where} {directory}",
                file=sys.stderr,
            )

    try:
        return run_synth(
            recipe,
            problems,
            directory,
            labels=read_labels(modes["labels"]) if modes["labels"] else None,
            judged=read_labels(modes["judged"]) if modes["judged"] else None,
            bad_rows=bad_rows,
            on_open=opened,
            on_progress=_Line(quiet=bool(modes["quiet"])),
        )
    except KeyboardInterrupt:
        print(
            f"\nwcse: interrupted: {len(done)} units are stored in {directory}; run it again to go on",
            file=sys.stderr,
        )
        return None


class _Line:
    """Progress on stderr: a line every few seconds."""

    def __init__(self, *, quiet: bool, interval: float = 5.0) -> None:
        self._quiet = quiet
        self._interval = interval
        self._written = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if not self._quiet and now - self._written >= self._interval:
            self._written = now
            print(
                f"wcse: {progress.sampler} round {progress.block + 1}: {progress.done}/{progress.total} problems, "
                f"{progress.samples:,} samples",
                file=sys.stderr,
            )


def _show(derived: Derived) -> None:
    from wcse.synth.card import costs_table, measures_tables

    print(costs_table(derived.measures))
    for balance in derived.measures["match"]["balances"]:
        print(balance["says"])
    print()
    print(measures_tables(derived.measures))
    errors = sum(derived.measures["errors"].values())
    if errors:
        print(f"{errors} errors: {derived.directory / 'errors.jsonl'}")
    print(f"data: {derived.directory / 'data'}; digest {derived.digest[:16]}")


def judge(options: Options) -> int:
    """A model's verdicts on right solutions of a data run, as a file of labels."""
    from pathlib import Path

    from wcse.synth.llm_judge import choose, endpoint, judge_all, own_engine
    from wcse.synth.outputs import read_synth
    from wcse.synth.record import by_problem

    directory = Path(options["directory"])
    pairs = choose(by_problem(read_synth(directory)), options.get("limit", 100), options.get("seed", 42))
    if "endpoint" in options:
        ask = endpoint(options["endpoint"], options["model"], key=_key(options.get("key_file")))
    else:
        ask = own_engine(options["model"])
    path = Path(options.get("out") or directory / "judge.csv")
    counts = judge_all(pairs, ask, path)
    print(", ".join(f"{verdict.value} {count}" for verdict, count in counts.items()))
    print(f"labels: {path}; show them with: wcse synth ... --judged {path}")
    return 0


def _key(path: str | None) -> str | None:
    from pathlib import Path

    try:
        return None if path is None else Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise WcseError(f"key-file={path!r}: cannot be read: {error}") from error


def _arm(name: str, about: str) -> Arguments:
    options: dict[str, dict[str, Any]] = {
        "": {"metavar": "P", "dest": f"{name}_model", "help": f"{about} model"},
        "-prm": {"metavar": "R", "help": f"verifier of the {about} model"},
        "-strategy": {"metavar": "S", "help": "majority (plain sampling) or a search strategy"},
        "-temperature": {"type": float, "metavar": "T", "help": "sampling temperature (default 0.8)"},
        "-max-tokens": {"type": int, "metavar": "K", "help": "most tokens of a solution (default 1024)"},
        "-few-shot": {"metavar": "SET", "help": "solved examples before each problem: a set or a JSONL file"},
        "-price": {"type": prices, "metavar": "IN,OUT", "help": "money for a million tokens read, written"},
    }
    return tuple((f"{name}{option}", settings) for option, settings in options.items())


_OPTIONS: Arguments = (
    ("recipe", {"metavar": "FILE", "help": "YAML file with any of the options, and more"}),
    ("problems", {"metavar": "SPEC", "help": "as for wcse solve"}),
    ("limit", {"type": int, "metavar": "K", "help": "only the first K problems"}),
    *_arm("wc", "weak, cheap"),
    *_arm("se", "strong, expensive"),
    ("n", {"type": int, "metavar": "N", "help": "samples per problem of the reference (se) (default 4)"}),
    (
        "grid",
        {
            "type": numbers(int),
            "metavar": "K,K2",
            "help": "sample counts to measure at (default 1,3,9,..,N)",
        },
    ),
    ("match", {"metavar": "M", "help": "flops, params, money, seconds or samples (default flops)"}),
    ("filter-answer", {"metavar": "A", "help": "gold keeps right answers, none asks nothing (default gold)"}),
    ("filter-agreement", {"type": float, "metavar": "C", "help": "least share of the votes for an answer"}),
    ("filter-min-score", {"type": float, "metavar": "X", "help": "least score by the verifier"}),
    ("filter-dedupe", {"metavar": "D", "help": "text, steps or none (default text)"}),
    (
        "filter-contamination",
        {"type": words, "metavar": "SPEC,..", "help": "evaluation sets to keep out"},
    ),
    (
        "export",
        {
            "type": words,
            "metavar": "F,F2",
            "help": "sft, prompt_completion, dpo, kto, prm, grpo, rationale",
        },
    ),
    ("seed", {"type": int, "metavar": "S", "help": "seed of all random numbers (default 42)"}),
    ("plan", {"action": "store_true", "help": "print samples, cost, memory and time, and stop"}),
    ("labels", {"metavar": "CSV", "help": "human labels of samples: problem, sampler, block, index, label"}),
    ("judged", {"metavar": "CSV", "help": "a model's labels, from wcse judge"}),
    ("out", {"metavar": "DIR", "help": "journal and outputs (default runs/synth-<digest>)"}),
    ("workers", {"type": int, "metavar": "W", "help": "worker processes (default 0: this one)"}),
    (
        "ray",
        {
            "nargs": "?",
            "const": "local",
            "metavar": "ADDRESS",
            "help": "work on a Ray cluster; without an address on one that is started here",
        },
    ),
    ("batch-size", {"type": int, "metavar": "ROWS", "help": "most rows in a batch"}),
    ("kv-memory-gb", {"type": float, "metavar": "GB", "help": "memory for keys and values"}),
    ("device", {"metavar": "D", "help": "cpu (the default) or cuda"}),
    ("threads", {"type": int, "metavar": "T", "help": "CPU threads"}),
    ("push-to-hub", {"metavar": "ID", "help": "upload the data to this data set; off unless given"}),
    ("quiet", {"action": "store_true", "help": "no progress lines"}),
)

COMMANDS = (
    Command(
        "synth",
        "training data from weak-cheap and strong-expensive models at equal cost, with measures",
        synth,
        _OPTIONS,
        epilog=(
            "The same command resumes what DIR holds; other filters and formats are applied to the same samples.\n"
            "Exit code 3: the samples are stored, but the costs differ by more than the tolerance."
        ),
    ),
    Command(
        "judge",
        "let a model judge the reasoning of a data run's right solutions",
        judge,
        (
            ("model", {"metavar": "P", "help": "the judge: as for wcse solve, or the endpoint's name of it"}),
            (
                "endpoint",
                {"metavar": "URL", "help": "OpenAI-compatible address; without it the model runs here"},
            ),
            ("key-file", {"metavar": "FILE", "help": "file with the endpoint's key"}),
            (
                "limit",
                {"type": int, "metavar": "K", "help": "solutions a sampler, one a problem (default 100)"},
            ),
            ("seed", {"type": int, "metavar": "S", "help": "of the lot (default 42)"}),
            (
                "out",
                {
                    "metavar": "CSV",
                    "help": "labels; verdicts in it are not asked again (default DIR/judge.csv)",
                },
            ),
        ),
        arguments=(("directory", {"metavar": "DIR", "help": "directory of wcse synth"}),),
        needs=("model",),
    ),
)
