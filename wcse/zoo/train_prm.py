"""Train the embedded verifiers: ``python -m wcse.zoo.train_prm LABELS --kind head --policy DIR --out DIR``.

Rows (JSON Lines or Parquet) are in the layout of TRL's stepwise supervision: ``prompt`` (the problem),
``completions`` (step texts without their delimiter) and ``labels`` (the chance that the solution comes out
right from here, 0 to 1; None, NaN or a negative number where there is no label). Two verifiers come of them:

* ``--kind head``: two layers on the policy's own final-norm states, read at the last token of a step in the
  policy's stream: the separator, or the end token after the last step. Written beside the policy.
* ``--kind implicit``: an implicit process reward model (arXiv 2412.01981), a language model begun from
  ``--policy`` (one stronger than the policy that it will judge, best). The score of a step is the sigmoid of
  bias + beta times the log-ratio between it and ``--reference`` over all tokens up to there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from wcse import zoo
from wcse.models.load import load_model
from wcse.reward.load import SHARED_FILE
from wcse.reward.quality import summary
from wcse.reward.training import (
    Row,
    encode_records,
    features_of,
    labels_of,
    read_records,
    save_head,
    split_records,
    stream_layout,
    train_head,
    usable,
)

from .corpus import SEPARATOR
from .sample import boxed
from .tiny_llama import TinyLlama, load_weights
from .tokenizer import END, PAD, load_tokenizer, prompt_text, token_id
from .train_policy import learning_rate

DEFAULT_AGG = "last"
BATCH_TOKENS = 4096


def encode(tokenizer: Tokenizer, prompt: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    """The policy's own stream; read at each step's last token."""
    ids, reads = tokenizer.encode(prompt_text(prompt)).ids, []
    for step in steps:
        closing = END if boxed(step) is not None else SEPARATOR
        ids += [*tokenizer.encode(step).ids, token_id(tokenizer, _token(closing))]
        reads.append(len(ids) - 1)
    return ids, reads


def _token(text: str) -> str:
    """The vocabulary entry of a text that is one token (byte-level vocabularies write a line feed as Ċ)."""
    return text.replace("\n", "Ċ")


def encode_rows(tokenizer: Tokenizer, records: Sequence[dict[str, Any]]) -> list[Row]:
    """Rows with at least one label."""
    rows = []
    for record in records:
        problem = record["prompt"]
        ids, reads = encode(tokenizer, problem, record["completions"])
        kept = [(r, float(y)) for r, y in zip(reads, record["labels"], strict=True) if usable(y)]
        if kept:
            prompt = len(tokenizer.encode(prompt_text(problem)).ids)
            rows.append(Row(ids, [r for r, _ in kept], [y for _, y in kept], prompt, problem))
    return rows


def padded(rows: Sequence[list[int]], pad: int) -> Tensor:
    """Right-padded ids [rows, longest]."""
    width = max(map(len, rows))
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows])


def batches(rows: Sequence[Row], tokens: int, rng: Random) -> list[list[Row]]:
    """One pass over the rows in batches of like length."""
    out: list[list[Row]] = [[]]
    for row in sorted(rows, key=lambda r: (len(r.ids), rng.random())):
        if (len(out[-1]) + 1) * len(row.ids) > tokens:
            out.append([])
        out[-1].append(row)
    rng.shuffle(out)
    return [batch for batch in out if batch]


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


def step_logprobs(model: TinyLlama, batch: Sequence[Row], pad: int) -> Tensor:
    """log p(solution up to each step | problem), of all read positions of a batch in turn.

    What closes a step (the separator or the end token) counts with the next one, as in the scorer's layout.
    """
    ids = padded([row.ids for row in batch], pad)
    hidden = model.hidden(ids)
    out = []
    for states, tokens, row in zip(hidden, ids, batch, strict=True):
        begin, end = row.prompt, len(row.ids)
        chosen = model.logits(states[begin - 1 : end - 1]).float().log_softmax(1)
        sums = chosen.gather(1, tokens[begin:end, None])[:, 0].cumsum(0)
        out.append(sums[[read - begin - 1 for read in row.reads]])
    return torch.cat(out)


@dataclass(frozen=True)
class Ratio:
    """How an implicit verifier reads its log-ratio to the embedded model ``reference``: a logit."""

    reference: str
    beta: float
    bias: float

    def logit(self, logprob: Tensor, reference: Tensor) -> Tensor:
        """The logit of the score, from log-probabilities of paths under the model and its reference."""
        return self.beta * (logprob - reference) + self.bias


def train_implicit(
    model: TinyLlama, ratio: Ratio, rows: Sequence[Row], *, pad: int, minutes: float, seed: int
) -> None:
    """Train ``model`` in place: cross-entropy between the sigmoid of its scaled log-ratio and the labels."""
    rng, reference = Random(seed), load_weights(zoo.path(ratio.reference))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    budget, last = Budget(minutes, 2e-4), time.monotonic()
    for number, batch in enumerate(_endless(rows, rng)):
        if budget.progress >= 1:
            break
        budget.set(optimizer)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                base = step_logprobs(reference, batch, pad)
            logits = ratio.logit(step_logprobs(model, batch, pad), base)
        loss = F.binary_cross_entropy_with_logits(logits, labels_of(batch))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if time.monotonic() - last > 30:
            last = time.monotonic()
            line = {"progress": round(budget.progress, 3), "batch": number, "loss": round(loss.item(), 4)}
            print(json.dumps(line), flush=True)


def _endless(rows: Sequence[Row], rng: Random) -> Iterator[list[Row]]:
    while True:
        yield from batches(rows, BATCH_TOKENS, rng)


def save_implicit(model: TinyLlama, start: Path, ratio: Ratio, folder: Path) -> None:
    """Write the language model in fp16 with the tokenizer of its start, and how it is to be read."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"model.{k}": v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    record = {
        "family": "implicit",
        "reference": ratio.reference,
        "beta": ratio.beta,
        "bias": ratio.bias,
        "separator": SEPARATOR,
        "default_agg": DEFAULT_AGG,
    }
    config = json.loads((start / "config.json").read_text()) | {"wcse": record}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((start / name).read_bytes())


def make_head(
    records: Sequence[dict[str, Any]], policy: Path, out: Path, epochs: int, seed: int
) -> dict[str, float]:
    """Train, write and measure the shared head."""
    model = load_model(policy)
    layout = stream_layout(model.tokenizer, SEPARATOR)
    train, held = (encode_records(layout, side, model.context)[0] for side in split_records(records))
    head = train_head(features_of(model, train), labels_of(train), epochs=epochs, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    save_head(head, out / SHARED_FILE, default_agg=DEFAULT_AGG)
    with torch.inference_mode():
        return quality(held, head(features_of(model, held)).squeeze(1).sigmoid())


def quality(rows: Sequence[Row], scores: Tensor) -> dict[str, float]:
    """What the model card reports, from the scores of all read positions in turn."""
    return summary(scores, labels_of(rows), [len(row.reads) for row in rows], [row.group for row in rows])


def make_implicit(
    records: Sequence[dict[str, Any]], policy: Path, ratio: Ratio, out: Path, minutes: float, seed: int
) -> dict[str, float]:
    """Train, write and measure the implicit verifier."""
    model, tokenizer = load_weights(policy), load_tokenizer(policy)
    pad = token_id(tokenizer, PAD)
    train, held = (encode_rows(tokenizer, side) for side in split_records(records))
    train_implicit(model, ratio, train, pad=pad, minutes=minutes, seed=seed)
    save_implicit(model, policy, ratio, out)
    return quality(held, implicit_scores(model, ratio, held, pad))


@torch.inference_mode()
def implicit_scores(model: TinyLlama, ratio: Ratio, rows: Sequence[Row], pad: int) -> Tensor:
    """Scores of all read positions in turn."""
    reference = load_weights(zoo.path(ratio.reference))
    parts = [rows[i : i + 32] for i in range(0, len(rows), 32)]
    logits = [
        ratio.logit(step_logprobs(model, part, pad), step_logprobs(reference, part, pad)) for part in parts
    ]
    return torch.cat(logits).sigmoid()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", type=Path, nargs="+")
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kind", choices=("head", "implicit"), required=True)
    parser.add_argument("--reference", default="tiny-wc", help="embedded model, for --kind implicit")
    parser.add_argument("--beta", type=float, default=0.3, help="for --kind implicit")
    parser.add_argument("--bias", type=float, default=1.0, help="for --kind implicit")
    parser.add_argument("--minutes", type=float, default=10.0, help="for --kind implicit")
    parser.add_argument("--epochs", type=int, default=20, help="for --kind head")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    records = [record for path in args.labels for record in read_records(path)]
    if args.kind == "head":
        report = make_head(records, args.policy, args.out, args.epochs, args.seed)
    else:
        ratio = Ratio(args.reference, args.beta, args.bias)
        report = make_implicit(records, args.policy, ratio, args.out, args.minutes, args.seed)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
