"""``wcse prm train`` and ``quality``: verifiers made from labelled steps, and how well they rank them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wcse.cli.arguments import unescaped, writing
from wcse.cli.command import Command, Options
from wcse.cli.prm import MODEL_OPTIONS, load, threads
from wcse.types import WcseError

if TYPE_CHECKING:
    from wcse.reward.families import Family
    from wcse.reward.finetuning import Finetuning
    from wcse.reward.layout import Layout
    from wcse.reward.text import TextPRM
    from wcse.reward.training import Row


def train(options: Options) -> int:
    """Train a verifier on labelled steps and print its quality on held-out problems."""
    from wcse.reward.training import read_records, split_records

    threads(options)
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
        epochs=options.get("epochs", 20.0),
        seed=options.get("seed", 0),
    )
    out = Path(options["out"])
    with writing("out", out):
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
    return _quality(load(options, options["out"]), held) if held else {}


def quality(options: Options) -> int:
    """How well a verifier ranks labelled steps."""
    from wcse.reward.training import read_records

    records = [record for path in options["labels"] for record in read_records(Path(path))]
    print(json.dumps(_quality(load(options, options["prm"]), records)))
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


COMMANDS = (
    Command(
        "prm quality",
        "rank labelled steps: AUC over steps and within problems, accuracy, calibration",
        quality,
        (
            ("prm", {"metavar": "R", "help": "the verifier: folder, .gguf file, embedded name or hub id"}),
            *MODEL_OPTIONS,
        ),
        (("labels", {"metavar": "FILE", "nargs": "+", "help": "labelled steps in TRL's columns"}),),
        needs=("prm",),
    ),
    Command(
        "prm train",
        "train a verifier on labelled steps: a head on a policy's states, a token classifier, an implicit PRM",
        train,
        (
            ("kind", {"metavar": "KIND", "help": "head, classifier or implicit (default head)"}),
            ("model", {"metavar": "M", "help": "head: the policy; otherwise the model to start from"}),
            ("out", {"metavar": "DIR", "help": "head: the policy's own folder, to use it as prm=shared"}),
            ("separator", {"type": unescaped, "metavar": "TEXT", "help": r"between steps (default \n\n)"}),
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
            *MODEL_OPTIONS[1:],
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
