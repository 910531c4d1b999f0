"""Train the embedded verifiers: ``python -m wcse.zoo.train_prm LABELS --kind head --policy DIR --out DIR``.

Rows (JSON Lines or Parquet) are in the layout of TRL's stepwise supervision: ``prompt`` (the problem),
``completions`` (step texts without their delimiter) and ``labels`` (the chance that the solution comes out
right from here, 0 to 1; None, NaN or a negative number where there is no label). Two verifiers come of them:

* ``--kind head``: two layers on the policy's own final-norm states, read at the last token of a step in the
  policy's stream: the separator, or the end token after the last step. Written beside the policy.
* ``--kind model``: a ``LlamaForTokenClassification`` begun from ``--policy`` (a stronger one than the policy that
  it will judge, best) with two layers on top, that reads ``problem, step, separator, step, separator, ...`` at
  each separator. While it trains, it also learns how plausible its start finds every token.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from .corpus import SEPARATOR
from .plausibility import Reading, deepen, padded, token_plausibility
from .sample import boxed
from .tiny_llama import TinyLlama, load_weights
from .tokenizer import END, PAD, load_tokenizer, prompt_text, token_id
from .train_policy import learning_rate

HEAD_FILE = "prm_head.safetensors"
DEFAULT_AGG = "last"
VALIDATION_SHARE = 0.1
HEAD_UNITS = 256
EXTRA_LAYERS = 2


@dataclass(frozen=True)
class Row:
    """A solution as token ids with the positions that are read and their labels."""

    ids: list[int]
    reads: list[int]
    labels: list[float]


Encoded = TypeVar("Encoded", Row, Reading)
Encode = Callable[[Tokenizer, str, Sequence[str]], tuple[list[int], list[int]]]


def read_records(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSON Lines or Parquet file."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path, columns=["prompt", "completions", "labels"]).to_pylist()
    with path.open() as file:
        return [json.loads(line) for line in file if line.strip()]


def encode_for_head(tokenizer: Tokenizer, prompt: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    """The policy's own stream; read at each step's last token."""
    ids, reads = tokenizer.encode(prompt_text(prompt)).ids, []
    for step in steps:
        closing = END if boxed(step) is not None else SEPARATOR
        ids += [*tokenizer.encode(step).ids, token_id(tokenizer, _token(closing))]
        reads.append(len(ids) - 1)
    return ids, reads


def encode_for_model(tokenizer: Tokenizer, prompt: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    """The layout of token-classification PRMs: problem, then each step and a separator; read there."""
    ids, reads = tokenizer.encode(prompt).ids, []
    for step in steps:
        ids += [*tokenizer.encode(step).ids, token_id(tokenizer, _token(SEPARATOR))]
        reads.append(len(ids) - 1)
    return ids, reads


def _token(text: str) -> str:
    """The vocabulary entry of a text that is one token (byte-level vocabularies write a line feed as Ċ)."""
    return text.replace("\n", "Ċ")


def _usable(label: float | None) -> bool:
    return label is not None and not math.isnan(label) and label >= 0


def encode_rows(tokenizer: Tokenizer, records: Sequence[dict[str, Any]], encode: Encode) -> list[Row]:
    """Rows with at least one label."""
    rows = []
    for record in records:
        ids, reads = encode(tokenizer, record["prompt"], record["completions"])
        kept = [(r, float(y)) for r, y in zip(reads, record["labels"], strict=True) if _usable(y)]
        if kept:
            rows.append(Row(ids, [r for r, _ in kept], [y for _, y in kept]))
    return rows


def split_records(records: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and validation rows; all rows of a problem fall on one side."""
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for record in records:
        share = int(sha256(record["prompt"].encode()).hexdigest()[:8], 16) / 2**32
        sides[share < VALIDATION_SHARE].append(record)
    return sides


def batches(rows: Sequence[Encoded], tokens: int, rng: Random) -> list[list[Encoded]]:
    """One pass over the rows in batches of like length."""
    out: list[list[Encoded]] = [[]]
    for row in sorted(rows, key=lambda r: (len(r.ids), rng.random())):
        if (len(out[-1]) + 1) * len(row.ids) > tokens:
            out.append([])
        out[-1].append(row)
    rng.shuffle(out)
    return [batch for batch in out if batch]


def states(model: TinyLlama, batch: Sequence[Row], pad: int) -> tuple[Tensor, Tensor]:
    """Final-norm states at all read positions of a batch, and their labels."""
    ids = padded([row.ids for row in batch], pad)
    index = torch.tensor([i for i, row in enumerate(batch) for _ in row.reads])
    reads = torch.tensor([r for row in batch for r in row.reads])
    labels = torch.tensor([y for row in batch for y in row.labels])
    return model.hidden(ids)[index, reads].float(), labels


class Budget:
    """Passes over the data until the minutes are gone, with a learning rate that ends at zero."""

    def __init__(self, minutes: float, peak: float) -> None:
        self.start, self.seconds, self.peak = time.monotonic(), minutes * 60, peak

    @property
    def progress(self) -> float:
        """The share of the time that is gone."""
        return min(1.0, (time.monotonic() - self.start) / self.seconds)

    def set(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the optimizer the learning rate of now."""
        for group in optimizer.param_groups:
            group["lr"] = self.peak * group.get("scale", 1.0) * learning_rate(self.progress, 0.02)


def train_head(features: Tensor, labels: Tensor, *, epochs: int, seed: int) -> nn.Sequential:
    """Two layers from a state to one logit. Half the inner units are dropped: labels are few and noisy."""
    torch.manual_seed(seed)
    head = nn.Sequential(
        nn.Linear(features.shape[1], HEAD_UNITS),
        nn.Sequential(nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(HEAD_UNITS, 1),
    )
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.3)
    steps = max(1, epochs * len(labels) // 256)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (256,))
        loss = F.binary_cross_entropy_with_logits(head(features[chosen]).squeeze(1), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.eval()


def readings(tokenizer: Tokenizer, records: Sequence[dict[str, Any]]) -> list[Reading]:
    """Every record as the verifier and as the policy see it."""
    out = []
    for record in records:
        prompt = len(tokenizer.encode(record["prompt"]).ids)
        ids, reads = encode_for_model(tokenizer, record["prompt"], record["completions"])
        spoken, _ = encode_for_head(tokenizer, record["prompt"], record["completions"])
        kept = [(r, float(y)) for r, y in zip(reads, record["labels"], strict=True) if _usable(y)]
        out.append(Reading(ids, [r for r, _ in kept], [y for _, y in kept], spoken, len(ids) - prompt))
    return [reading for reading in out if reading.reads]


class Heads(nn.Module):
    """The verifier's score, and two auxiliary heads that are thrown away after training."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.score = nn.Linear(size, 2)
        self.token = nn.Linear(size, 1)
        self.path = nn.Linear(size, 1)

    def loss(self, hidden: Tensor, batch: Sequence[Reading], plausible: Sequence[Tensor]) -> Tensor:
        """Labels at the reads; plausibility of each token, and of the solution up to each read."""
        scores, labels, tokens, chances, paths, sofar = [], [], [], [], [], []
        for states, reading, log_ratio in zip(hidden, batch, plausible, strict=True):
            end = len(reading.ids)
            begin = end - reading.written
            at_reads = states[reading.reads]
            scores.append(self.score(at_reads))
            labels += reading.labels
            tokens.append(self.token(states[begin:end])[:, 0])
            chances.append(log_ratio.exp())
            paths.append(self.path(at_reads)[:, 0])
            sofar.append((0.5 * log_ratio.cumsum(0)[[r - begin for r in reading.reads]]).exp())
        z = torch.cat(scores)
        bce = F.binary_cross_entropy_with_logits
        return (
            bce(z[:, 1] - z[:, 0], torch.tensor(labels))
            + 2 * bce(torch.cat(tokens), torch.cat(chances))
            + bce(torch.cat(paths), torch.cat(sofar))
        )


def train_model(
    model: TinyLlama, teacher: TinyLlama, rows: Sequence[Reading], *, pad: int, minutes: float, seed: int
) -> nn.Linear:
    """Train ``model`` in place together with a two-class head, which is returned."""
    rng = Random(seed)
    torch.manual_seed(seed)
    heads = Heads(model.config.hidden_size)
    old = teacher.config.num_hidden_layers
    new = [*model.layers[old:].parameters(), *heads.parameters()]
    known = {id(p) for p in new}
    base = [p for p in model.parameters() if id(p) not in known]
    optimizer = torch.optim.AdamW(
        [{"params": base, "scale": 0.3}, {"params": new, "scale": 1.0}], betas=(0.9, 0.98), weight_decay=0.01
    )
    budget, last = Budget(minutes, 2e-3), time.monotonic()
    for number, batch in enumerate(_endless(rows, rng)):
        if budget.progress >= 1:
            break
        budget.set(optimizer)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            plausible = token_plausibility(teacher, batch, pad)
            hidden = model.hidden(padded([reading.ids for reading in batch], pad))
        loss = heads.loss(hidden.float(), batch, plausible)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if time.monotonic() - last > 30:
            last = time.monotonic()
            line = {"progress": round(budget.progress, 3), "batch": number, "loss": round(loss.item(), 4)}
            print(json.dumps(line), flush=True)
    return heads.score.eval()


def _endless(rows: Sequence[Reading], rng: Random) -> Iterator[list[Reading]]:
    while True:
        yield from batches(rows, 4096, rng)


@torch.inference_mode()
def features_of(model: TinyLlama, rows: Sequence[Row], pad: int) -> tuple[Tensor, Tensor]:
    """States and labels of all read positions."""
    parts = [states(model, batch, pad) for batch in batches(rows, 16_384, Random(0))]
    return torch.cat([h for h, _ in parts]), torch.cat([y for _, y in parts])


def auc(scores: Tensor, labels: Tensor) -> float:
    """The chance that a good step (label above one half) scores above a bad one; ties count half."""
    good, bad = scores[labels > 0.5], scores[labels <= 0.5].sort().values
    if len(good) == 0 or len(bad) == 0:
        return math.nan
    below, upto = torch.searchsorted(bad, good), torch.searchsorted(bad, good, right=True)
    return float((below + upto).double().mean() / (2 * len(bad)))


def calibration_error(scores: Tensor, labels: Tensor, bins: int = 10) -> float:
    """Expected calibration error over equal-width bins."""
    bucket = (scores * bins).long().clamp(max=bins - 1)
    gaps = [(scores[bucket == b].sum() - labels[bucket == b].sum()).abs() for b in range(bins)]
    return float(torch.stack(gaps).sum() / len(scores))


def quality(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """What the model card reports."""
    return {
        "steps": len(labels),
        "mean_label": round(float(labels.mean()), 4),
        "auc": round(auc(scores, labels), 4),
        "accuracy": round(float(((scores > 0.5) == (labels > 0.5)).double().mean()), 4),
        "ece": round(calibration_error(scores, labels), 4),
    }


def save_head(head: nn.Sequential, folder: Path) -> None:
    """Write the shared head beside the policy's weights."""
    tensors = {f"score.{name}": p.detach().contiguous() for name, p in head.named_parameters()}
    save_file(
        tensors, folder / HEAD_FILE, metadata={"default_agg": DEFAULT_AGG, "read": "last token of a step"}
    )


def save_model(model: TinyLlama, head: nn.Linear, policy: Path, folder: Path) -> None:
    """Write a ``LlamaForTokenClassification`` in fp16 with the policy's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"model.{k}": v.half().contiguous() for k, v in model.state_dict().items()}
    state |= {f"score.{k}": v.half().contiguous() for k, v in head.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    record = {
        "family": "token_classification",
        "separator": SEPARATOR,
        "head": "score",
        "default_agg": DEFAULT_AGG,
    }
    config = json.loads((policy / "config.json").read_text()) | {
        "num_hidden_layers": model.config.num_hidden_layers,
        "architectures": ["LlamaForTokenClassification"],
        "id2label": {"0": "bad", "1": "good"},
        "label2id": {"bad": 0, "good": 1},
        "wcse": record,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "prm_config.json").write_text(json.dumps(record, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((policy / name).read_bytes())


def make_head(
    records: Sequence[dict[str, Any]], policy: Path, out: Path, epochs: int, seed: int
) -> dict[str, float]:
    """Train, write and measure the shared head."""
    model, tokenizer = load_weights(policy), load_tokenizer(policy)
    pad = token_id(tokenizer, PAD)
    train, held = (encode_rows(tokenizer, side, encode_for_head) for side in split_records(records))
    head = train_head(*features_of(model, train, pad), epochs=epochs, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    save_head(head, out)
    features, labels = features_of(model, held, pad)
    with torch.inference_mode():
        return quality(head(features).squeeze(1).sigmoid(), labels)


def make_model(
    records: Sequence[dict[str, Any]], policy: Path, out: Path, minutes: float, seed: int
) -> dict[str, float]:
    """Train, write and measure the separate verifier."""
    teacher, tokenizer = load_weights(policy), load_tokenizer(policy)
    pad = token_id(tokenizer, PAD)
    train, held = split_records(records)
    model = deepen(teacher, EXTRA_LAYERS).train()
    head = train_model(model, teacher, readings(tokenizer, train), pad=pad, minutes=minutes, seed=seed)
    save_model(model, head, policy, out)
    features, labels = features_of(model.eval(), encode_rows(tokenizer, held, encode_for_model), pad)
    with torch.inference_mode():
        logits = head(features)
    return quality((logits[:, 1] - logits[:, 0]).sigmoid(), labels)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", type=Path, nargs="+")
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kind", choices=("head", "model"), required=True)
    parser.add_argument("--minutes", type=float, default=10.0, help="for --kind model")
    parser.add_argument("--epochs", type=int, default=20, help="for --kind head")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    records = [record for path in args.labels for record in read_records(path)]
    if args.kind == "head":
        report = make_head(records, args.policy, args.out, args.epochs, args.seed)
    else:
        report = make_model(records, args.policy, args.out, args.minutes, args.seed)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
