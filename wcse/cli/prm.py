"""``wcse prm check``, ``eval``, ``label`` and ``train``: process reward models by themselves."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wcse.cli.command import Command, Options
from wcse.types import WcseError

if TYPE_CHECKING:
    from wcse.reward.check import StepCheck
    from wcse.reward.families import Family
    from wcse.reward.finetuning import Finetuning
    from wcse.reward.layout import Layout
    from wcse.reward.processbench import Case, Result
    from wcse.reward.text import TextPRM
    from wcse.reward.training import Row

KV_GIB = 1.0
"""Memory for the verifier's keys and values, unless told otherwise."""

ROWS = 256
"""Rows of the policy that decode at once, unless told otherwise."""


def _load(options: Options, model: str) -> TextPRM:
    from wcse.reward.load import load_prm

    _threads(options)
    return load_prm(model, kv_memory=options.get("kv_memory_gb", KV_GIB), family=options.get("prm_family"))


def _threads(options: Options) -> None:
    if "threads" in options:
        import torch

        torch.set_num_threads(options["threads"])


# -- check -----------------------------------------------------------------------------------------------


def check(options: Options) -> int:
    """Print ids, read positions and scores of a solution; compare them with a full-text forward."""
    from wcse.reward.check import SAMPLE, TOLERANCE
    from wcse.reward.check import check as run

    problem, steps = _solution(options["file"]) if "file" in options else SAMPLE
    prm = _load(options, options["model"])
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
    prm = _load(options, options["prm"])
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

    with path.open("w", encoding="utf-8") as file:
        for name, cases in subsets.items():
            for case, row in zip(cases, scores[name], strict=True):
                record = {"id": case.id, "subset": name, "label": case.label, "scores": row}
                file.write(json.dumps(record | {"prediction": first_error(row, threshold)}) + "\n")
    print(f"wcse: scores in {path}", file=sys.stderr)


# -- label -----------------------------------------------------------------------------------------------


def label(options: Options) -> int:
    """Monte-Carlo labels of a policy's own solutions, as JSON Lines in TRL's columns."""
    from wcse.engine.engine import Engine
    from wcse.engine.llm import pages_in
    from wcse.models.load import load_model
    from wcse.problems import load_problems
    from wcse.reward.rollouts import Labelling, label_problems

    _threads(options)
    fields = ("trajectories", "rollouts", "kind", "temperature", "max_tokens", "delimiter", "seed")
    labelling = Labelling(**{name: options[name] for name in fields if name in options})
    problems = load_problems(options["problems"], limit=options.get("limit"))
    model = load_model(options["policy"])
    pages = pages_in(model, options.get("kv_memory_gb", KV_GIB))
    engine = Engine(model, max_rows=options.get("batch_size", ROWS), num_pages=pages)
    rows = steps = good = 0
    with Path(options["out"]).open("w", encoding="utf-8") as file:
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


# -- train -----------------------------------------------------------------------------------------------


def train(options: Options) -> int:
    """Train a verifier on labelled steps and print its quality on held-out problems."""
    from wcse.reward.training import read_records, split_records

    _threads(options)
    kind = options.get("kind", "head")
    if kind not in _TRAIN_KINDS:
        raise WcseError(f"kind={kind!r}: give {' or '.join(_TRAIN_KINDS)}")
    records = [record for path in options["labels"] for record in read_records(Path(path))]
    taught, held = split_records(records)
    report = _TRAIN_KINDS[kind](options, taught, held)
    print(json.dumps({"kind": kind, "rows": len(taught), "held_out_rows": len(held)} | report))
    return 0


def _train_head(options: Options, taught: list[dict[str, Any]], held: list[dict[str, Any]]) -> dict[str, Any]:
    from wcse.models.load import load_model
    from wcse.reward.load import SHARED_FILE
    from wcse.reward.quality import summary
    from wcse.reward.training import (
        encode_records,
        features_of,
        labels_of,
        save_head,
        stream_layout,
        train_head,
    )

    model = load_model(options["model"], lm_head=False)
    layout = stream_layout(model.tokenizer, options.get("separator", "\n\n"))
    (rows, dropped), (kept, _) = (encode_records(layout, side, model.context) for side in (taught, held))
    if not rows:
        raise WcseError(f"no labelled step is left of {len(taught)} rows; check the labels")
    head = train_head(
        features_of(model, rows),
        labels_of(rows),
        epochs=round(options.get("epochs", 20)),
        seed=options.get("seed", 0),
    )
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    save_head(head, out / SHARED_FILE)
    if not kept:
        return {"dropped": dropped}
    scores = head(features_of(model, kept)).squeeze(1).sigmoid().detach()
    counts, groups = [len(row.reads) for row in kept], [row.group for row in kept]
    return {"dropped": dropped} | summary(scores, labels_of(kept), counts, groups)


def _train_classifier(
    options: Options, taught: list[dict[str, Any]], held: list[dict[str, Any]]
) -> dict[str, Any]:
    from wcse.models.load import find_model
    from wcse.reward.finetuning import CLASSIFIER, train_classifier

    layout, rows, dropped = _encoded(options, CLASSIFIER, taught)
    start, out = find_model(options["model"]), Path(options["out"])
    train_classifier(start, rows, layout, _settings(options), out, _Meter())
    return {"dropped": dropped} | _held_out_quality(options, held)


def _train_implicit(
    options: Options, taught: list[dict[str, Any]], held: list[dict[str, Any]]
) -> dict[str, Any]:
    from wcse.models.load import find_model
    from wcse.reward.finetuning import IMPLICIT, Ratio, train_implicit

    # A start that is an implicit model itself keeps its reference, beta and bias.
    known = _stated(options["model"]) | options
    if "reference" not in known:
        raise WcseError("kind='implicit': give --reference, the model that the log-ratio is taken to")
    ratio = Ratio(str(known["reference"]), known.get("beta", 0.3), known.get("bias", 0.0))
    layout, rows, dropped = _encoded(options, IMPLICIT, taught)
    start, out = find_model(options["model"]), Path(options["out"])
    train_implicit(start, ratio, rows, layout, _settings(options), out, _Meter())
    return {"dropped": dropped} | _held_out_quality(options, held)


def _stated(model: str) -> dict[str, Any]:
    """What an implicit reward model says of itself."""
    from wcse.models.load import read_config

    stated = read_config(model).get("wcse") or {}
    return {key: stated[key] for key in ("reference", "beta", "bias") if key in stated}


def _encoded(
    options: Options, family: Family, records: list[dict[str, Any]]
) -> tuple[Layout, list[Row], int]:
    from wcse.models.load import load_model
    from wcse.reward.layout import Layout
    from wcse.reward.training import encode_records

    model = load_model(options["model"], lm_head=False)
    layout = Layout(family, model.tokenizer, separator=options.get("separator"), source=options["model"])
    return layout, *encode_records(layout, records, model.context)


def _settings(options: Options) -> Finetuning:
    from wcse.reward.finetuning import Finetuning

    fields = ("epochs", "lr", "batch", "seed", "lora_rank", "bf16")
    return Finetuning(**{name: options[name] for name in fields if name in options})


class _Meter:
    """Says every half minute how far a training is."""

    def __init__(self) -> None:
        self.heard = time.monotonic()

    def __call__(self, step: int, steps: int, loss: float) -> None:
        if time.monotonic() - self.heard >= 30:
            self.heard = time.monotonic()
            print(f"wcse: step {step} of {steps}, loss {loss:.4f}", file=sys.stderr, flush=True)


def _held_out_quality(options: Options, held: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the model as it was written, by the scorer that searches use."""
    return _quality(_load(options, options["out"]), held) if held else {}


def quality(options: Options) -> int:
    """How well a verifier ranks labelled steps."""
    from wcse.reward.training import read_records

    records = [record for path in options["labels"] for record in read_records(Path(path))]
    print(json.dumps(_quality(_load(options, options["prm"]), records)))
    return 0


def _quality(prm: TextPRM, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Ranking and calibration on the solutions all of whose steps are labelled."""
    import torch

    from wcse.reward.quality import summary
    from wcse.reward.text import score_many
    from wcse.reward.training import usable

    marked = [record for record in records if all(usable(label) for label in record["labels"])]
    if not marked:
        return {}
    scores = [
        score for row in score_many(prm, ((r["prompt"], r["completions"]) for r in marked)) for score in row
    ]
    labels = [float(label) for record in marked for label in record["labels"]]
    counts, groups = [len(r["labels"]) for r in marked], [r["prompt"] for r in marked]
    return summary(torch.tensor(scores), torch.tensor(labels), counts, groups)


_TRAIN_KINDS = {"head": _train_head, "classifier": _train_classifier, "implicit": _train_implicit}


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")


_MODEL: tuple[tuple[str, dict[str, Any]], ...] = (
    ("prm-family", {"metavar": "F", "help": "how the verifier reads steps (default: ask the model)"}),
    (
        "kv-memory-gb",
        {"type": float, "metavar": "GB", "help": f"memory for keys and values (default {KV_GIB:g})"},
    ),
    ("threads", {"type": int, "metavar": "T", "help": "CPU threads"}),
)

COMMANDS = (
    Command(
        "prm check",
        "show what a verifier reads and compare its scores with a full-text forward",
        check,
        (
            ("file", {"metavar": "FILE", "help": "JSON Lines; its first row is scored instead of a sample"}),
            *_MODEL,
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
            ("limit", {"type": int, "metavar": "K", "help": "only the first K rows of each file"}),
            ("out", {"metavar": "FILE", "help": "write the scores of every step there (JSON Lines)"}),
            *_MODEL,
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
        "prm quality",
        "rank labelled steps: AUC over steps and within problems, accuracy, calibration",
        quality,
        (
            ("prm", {"metavar": "R", "help": "the verifier: folder, .gguf file, embedded name or hub id"}),
            *_MODEL,
        ),
        (("labels", {"metavar": "FILE", "nargs": "+", "help": "labelled steps in TRL's columns"}),),
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
                {"type": _unescaped, "metavar": "TEXT", "help": r"what ends a step (default \n\n)"},
            ),
            ("seed", {"type": int, "metavar": "S", "help": "of all random numbers (default 0)"}),
            (
                "batch-size",
                {"type": int, "metavar": "ROWS", "help": f"most rows in a batch (default {ROWS})"},
            ),
            *_MODEL[1:],
        ),
        needs=("policy", "problems", "out"),
    ),
    Command(
        "prm train",
        "train a verifier on labelled steps: a head on a policy's states, a token classifier, an implicit PRM",
        train,
        (
            ("kind", {"metavar": "KIND", "help": "head, classifier or implicit (default head)"}),
            ("model", {"metavar": "M", "help": "head: the policy; otherwise the model to start from"}),
            ("out", {"metavar": "DIR", "help": "head: the policy's own folder, to use it as prm=shared"}),
            ("separator", {"type": _unescaped, "metavar": "TEXT", "help": r"between steps (default \n\n)"}),
            ("epochs", {"type": float, "metavar": "E", "help": "passes (default: head 20, otherwise 1)"}),
            (
                "lr",
                {"type": float, "metavar": "X", "help": "peak learning rate of a whole model (default 1e-5)"},
            ),
            (
                "batch",
                {"type": int, "metavar": "B", "help": "solutions per step of a whole model (default 32)"},
            ),
            (
                "reference",
                {
                    "metavar": "M",
                    "help": "implicit: what the log-ratio is taken to (default: the start's own)",
                },
            ),
            ("beta", {"type": float, "metavar": "X", "help": "implicit: times the log-ratio (default 0.3)"}),
            ("bias", {"type": float, "metavar": "X", "help": "implicit: logit at ratio one (default 0)"}),
            ("bf16", {"action": "store_true", "help": "multiply matrices in bfloat16"}),
            ("lora-rank", {"type": int, "metavar": "R", "help": "train adapters of this rank (needs peft)"}),
            ("seed", {"type": int, "metavar": "S", "help": "of all random numbers (default 0)"}),
            *_MODEL[1:],
        ),
        (
            (
                "labels",
                {
                    "metavar": "FILE",
                    "nargs": "+",
                    "help": "labelled steps in TRL's columns, .jsonl or .parquet",
                },
            ),
        ),
        needs=("model", "out"),
    ),
)
