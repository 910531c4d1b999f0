"""``wcse prm check``, ``eval`` and ``label``: process reward models by themselves."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wcse.cli.arguments import count, unescaped, writing
from wcse.cli.command import Command, Options
from wcse.types import WcseError

if TYPE_CHECKING:
    from wcse.reward.check import StepCheck
    from wcse.reward.processbench import Case, Result
    from wcse.reward.text import TextPRM

KV_GIB = 1.0
"""Memory for the verifier's keys and values, unless told otherwise."""

ROWS = 256
"""Rows of the policy that decode at once, unless told otherwise."""


def load(options: Options, model: str) -> TextPRM:
    """The verifier that the options name."""
    from wcse.reward.load import load_prm

    threads(options)
    return load_prm(model, kv_memory=options.get("kv_memory_gb", KV_GIB), family=options.get("prm_family"))


def threads(options: Options) -> None:
    """Set the number of CPU threads, where it was given."""
    if "threads" in options:
        import torch

        torch.set_num_threads(options["threads"])


# -- check -----------------------------------------------------------------------------------------------


def check(options: Options) -> int:
    """Print ids, read positions and scores of a solution; compare them with a full-text forward."""
    from wcse.reward.check import SAMPLE, TOLERANCE
    from wcse.reward.check import check as run

    problem, steps = _solution(options["file"]) if "file" in options else SAMPLE
    prm = load(options, options["model"])
    rows = run(prm, options["model"], problem, steps)
    family = prm.layout.family
    print(f"{options['model']}: family {family.name} ({family.source})")
    scale = "[0, 1]" if prm.bounded else "unbounded"
    print(f"head {family.head}, scores {scale}, aggregation {prm.default_agg}, at most {prm.context} tokens")
    prefix = prm.layout.prefix(problem)
    print(f"\nproblem   {len(prefix)} ids: {_ids(prefix)}")
    seen = prefix
    for number, row in enumerate(rows, 1):
        _show(prm, number, row, seen)
        seen = row.reading.ids
    worst = max(row.difference for row in rows)
    passed = all(row.passed for row in rows)
    print(f"\n{len(rows)} steps, {len(rows)} scores; largest difference to the full text {worst:.1e}")
    print("pass" if passed else f"FAIL: more than {TOLERANCE:g}")
    return 0 if passed else 1


def _show(prm: TextPRM, number: int, row: StepCheck, seen: Sequence[int]) -> None:
    ids = row.reading.ids + row.reading.tail
    same = next((i for i, (a, b) in enumerate(zip(seen, ids, strict=False)) if a != b), len(seen))
    token = prm.layout.tokenizer.convert_ids_to_tokens(ids[-1])
    print(f"step {number:<4} {len(ids) - same} new ids: {_ids(ids[same:])}")
    print(f"          read at {row.reading.read}, {token!r}: {row.score:.6f}; full text {row.expected:.6f}")


def _ids(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def _solution(path: str) -> tuple[str, Sequence[str]]:
    """Problem and steps of the first row of a file in ProcessBench's or TRL's columns."""
    try:
        row = json.loads(Path(path).read_text(encoding="utf-8").splitlines()[0])
        problem, steps = row.get("problem", row.get("prompt")), row.get("steps", row.get("completions"))
    except (OSError, ValueError, IndexError, AttributeError) as error:
        raise WcseError(f"{path}: cannot be read ({error}); give JSON Lines") from None
    if not isinstance(problem, str) or not isinstance(steps, list) or not steps:
        raise WcseError(f"{path}: its first row needs problem and steps, or prompt and completions")
    return problem, steps


# -- eval ------------------------------------------------------------------------------------------------


def evaluate(options: Options) -> int:
    """ProcessBench: accuracies and F1 of each file, and the plain mean of the F1s."""
    from wcse.reward.processbench import best_threshold, read_cases
    from wcse.reward.text import score_many

    subsets = {path.stem: read_cases(path)[: options.get("limit")] for path in map(Path, options["files"])}
    tune = options.get("tune")
    if tune is not None and tune not in subsets:
        raise WcseError(f"tune={tune!r}: no such subset; give one of {', '.join(subsets)}")
    prm = load(options, options["prm"])
    if not prm.bounded and tune is None and "threshold" not in options:
        raise WcseError(
            f"prm={options['prm']!r}: its scores are unbounded, so 0.5 means nothing; give --threshold or --tune SUBSET"
        )
    scores = {
        name: list(score_many(prm, [(case.problem, case.steps) for case in cases]))
        for name, cases in subsets.items()
    }
    threshold = best_threshold(subsets[tune], scores[tune]) if tune else options.get("threshold", 0.5)
    _report(subsets, scores, threshold, tune)
    if "out" in options:
        _write_scores(Path(options["out"]), subsets, scores, threshold)
    return 0


def _report(
    subsets: dict[str, list[Case]], scores: dict[str, list[list[float]]], threshold: float, tune: str | None
) -> None:
    from wcse.reward.processbench import evaluate as run

    results: dict[str, Result] = {name: run(subsets[name], scores[name], threshold) for name in subsets}
    chosen = f"chosen on {tune}" if tune else "fixed"
    print(f"threshold {threshold:.4g} ({chosen})")
    print(f"{'subset':<16} {'wrong':>6} {'right':>6} {'acc error':>10} {'acc correct':>12} {'F1':>6}")
    for name, r in results.items():
        row = f"{100 * r.acc_error:>10.1f} {100 * r.acc_correct:>12.1f} {100 * r.f1:>6.1f}"
        print(f"{name:<16} {r.wrong:>6} {r.right:>6} {row}")
    mean = sum(r.f1 for r in results.values()) / len(results)
    print(f"{'mean of subsets':<16} {'':>6} {'':>6} {'':>10} {'':>12} {100 * mean:>6.1f}")


def _write_scores(
    path: Path, subsets: dict[str, list[Case]], scores: dict[str, list[list[float]]], threshold: float
) -> None:
    from wcse.reward.processbench import first_error

    with writing("out", path), path.open("w", encoding="utf-8") as file:
        for name, cases in subsets.items():
            for case, row in zip(cases, scores[name], strict=True):
                record = {"id": case.id, "subset": name, "label": case.label, "scores": row}
                file.write(json.dumps(record | {"prediction": first_error(row, threshold)}) + "\n")
    print(f"wcse: scores in {path}", file=sys.stderr)


# -- label -----------------------------------------------------------------------------------------------


def label(options: Options) -> int:
    """Monte-Carlo labels of a policy's own solutions, as JSON Lines in TRL's columns."""
    from wcse.engine.engine import Engine
    from wcse.engine.memory import Memory
    from wcse.models.load import load_model
    from wcse.problems import load_problems
    from wcse.reward.rollouts import Labelling, label_problems

    threads(options)
    fields = ("trajectories", "rollouts", "kind", "temperature", "max_tokens", "delimiter", "seed")
    labelling = Labelling(**{name: options[name] for name in fields if name in options})
    problems = load_problems(options["problems"], limit=options.get("limit"))
    model = load_model(options["policy"])
    memory = Memory.gib(options.get("kv_memory_gb", KV_GIB))
    engine = Engine(model, max_rows=options.get("batch_size", ROWS), memory=memory)
    rows = steps = good = 0
    with writing("out", options["out"]), Path(options["out"]).open("w", encoding="utf-8") as file:
        for row in label_problems(engine, problems, labelling, source=options["policy"]):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            rows, steps, good = (
                rows + 1,
                steps + len(row["labels"]),
                good + sum(x > 0.5 for x in row["labels"]),
            )
    share = f", {100 * good / steps:.1f} % of them good" if steps else ""
    print(f"{len(problems)} problems, {rows} solutions, {steps} labelled steps{share}")
    print(
        f"{engine.runner.computed} policy tokens computed, {engine.reused} reused; rows in {options['out']}"
    )
    return 0


MODEL_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("prm-family", {"metavar": "F", "help": "how the verifier reads steps (default: ask the model)"}),
    (
        "kv-memory-gb",
        {"type": float, "metavar": "GB", "help": f"memory for keys and values (default {KV_GIB:g})"},
    ),
    ("threads", {"type": count, "metavar": "T", "help": "CPU threads"}),
)

COMMANDS = (
    Command(
        "prm check",
        "show what a verifier reads and compare its scores with a full-text forward",
        check,
        (
            ("file", {"metavar": "FILE", "help": "JSON Lines; its first row is scored instead of a sample"}),
            *MODEL_OPTIONS,
        ),
        (("model", {"metavar": "MODEL", "help": "the verifier: folder, embedded name or hub id"}),),
        epilog="exit code 0 when every score agrees to 1e-4, else 1",
    ),
    Command(
        "prm eval",
        "find first errors: accuracies and F1 on files in ProcessBench's format",
        evaluate,
        (
            ("prm", {"metavar": "R", "help": "the verifier: folder, .gguf file, embedded name or hub id"}),
            ("threshold", {"type": float, "metavar": "X", "help": "a step below it is wrong (default 0.5)"}),
            (
                "tune",
                {"metavar": "SUBSET", "help": "choose the threshold on this file (its name without suffix)"},
            ),
            ("limit", {"type": count, "metavar": "K", "help": "only the first K rows of each file"}),
            ("out", {"metavar": "FILE", "help": "write the scores of every step there (JSON Lines)"}),
            *MODEL_OPTIONS,
        ),
        (
            (
                "files",
                {"metavar": "FILE", "nargs": "+", "help": "one file a subset: .jsonl, .json or .parquet"},
            ),
        ),
        needs=("prm",),
    ),
    Command(
        "prm label",
        "label the steps of a policy's solutions by rollouts from every step",
        label,
        (
            ("policy", {"metavar": "P", "help": "model: folder, .gguf file, embedded name or hub id"}),
            ("problems", {"metavar": "SPEC", "help": "problems with answers, as for wcse solve"}),
            ("out", {"metavar": "FILE", "help": "rows in TRL's columns, JSON Lines"}),
            ("limit", {"type": int, "metavar": "K", "help": "only the first K problems"}),
            ("trajectories", {"type": int, "metavar": "T", "help": "solutions per problem (default 4)"}),
            ("rollouts", {"type": int, "metavar": "K", "help": "rollouts per step (default 8)"}),
            ("kind", {"metavar": "KIND", "help": "soft: shares; hard: any rollout right (default soft)"}),
            ("temperature", {"type": float, "metavar": "T", "help": "of the sampling (default 1.0)"}),
            ("max-tokens", {"type": int, "metavar": "K", "help": "most tokens of a solution (default 1024)"}),
            (
                "delimiter",
                {"type": unescaped, "metavar": "TEXT", "help": r"what ends a step (default \n\n)"},
            ),
            ("seed", {"type": int, "metavar": "S", "help": "of all random numbers (default 0)"}),
            (
                "batch-size",
                {"type": count, "metavar": "ROWS", "help": f"most rows in a batch (default {ROWS})"},
            ),
            *MODEL_OPTIONS[1:],
        ),
        needs=("policy", "problems", "out"),
    ),
)
