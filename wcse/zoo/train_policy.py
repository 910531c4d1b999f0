"""Train an embedded policy from nothing: ``python -m wcse.zoo.train_policy --size tiny-wc --minutes 75 --out DIR``.

Data are generated while training, so nothing is read twice. Several single-threaded processes train copies
of the model on different data and average their weights every few seconds (local SGD): that keeps every core
busy without a barrier per operation. The learning rate follows the clock, so a run ends when it was told to.

``--grow-from DIR`` starts from a shallower model of the same width instead: new layers are put between the old
ones and add nothing at first, so the deeper model begins with what the shallower one knows.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import cos, pi
from pathlib import Path
from random import Random

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from .corpus import EVAL_SEED, evaluation_problems, training_example
from .sample import is_correct, solve
from .tiny_llama import TinyConfig, TinyLlama, load_weights, save_weights
from .tokenizer import END, PAD, load_tokenizer, prompt_text, save_tokenizer, token_id, train_tokenizer

Row = tuple[list[int], int]

_WIDE = {"hidden_size": 320, "intermediate_size": 832, "num_attention_heads": 10}
#: The family: one recipe, about 1, 3 and 10 times the parameters (2.6, 7.7 and 25.5 M with 1280 tokens). The third
#: is as wide as the second, so that it can be grown from it.
SIZES: dict[str, dict[str, int]] = {
    "tiny-wc": {},
    "tiny-se": {**_WIDE, "num_hidden_layers": 7},
    "tiny-xl": {**_WIDE, "num_hidden_layers": 24},
}


@dataclass(frozen=True)
class Settings:
    """Everything that shapes a run."""

    out: Path
    size: str = "tiny-wc"
    tokenizer: Path | None = None
    grow_from: Path | None = None
    minutes: float = 75.0
    workers: int = 2
    seed: int = 1
    vocab_size: int = 1280
    muon_lr: float = 6e-3
    adam_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.01
    micro_tokens: int = 2048
    micro_batches: int = 2
    sync_seconds: float = 10.0
    eval_minutes: float = 5.0
    eval_problems: int = 64


def mixture(progress: float) -> dict[str, float]:
    """Shares of problems by task: drills first, word problems later."""
    late = min(1.0, progress / 0.7)
    gsm, arithmetic = 0.35 + 0.3 * late, 0.2
    return {
        "gsm_symbolic": gsm,
        "chain_sum": arithmetic / 2,
        "basic_arithmetic": arithmetic / 2,
        "drill": 1.0 - gsm - arithmetic,
    }


def learning_rate(progress: float, warmup: float) -> float:
    """Linear warm-up, then a cosine to zero; a factor of the peak."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + cos(pi * min(1.0, (progress - warmup) / (1 - warmup))))


def make_tokenizer(settings: Settings, problems: int = 20_000) -> Tokenizer:
    """Learn the vocabulary from the training mixture."""
    rng = Random(settings.seed)
    examples = (training_example(rng, mixture(1.0)) for _ in range(problems))
    return train_tokenizer((text for e in examples for text in (e.question, e.solution)), settings.vocab_size)


def encode_examples(tokenizer: Tokenizer, rng: Random, weights: dict[str, float], count: int) -> list[Row]:
    """``(ids, prompt length)`` of fresh problems."""
    examples = [training_example(rng, weights) for _ in range(count)]
    prompts = tokenizer.encode_batch([prompt_text(e.question) for e in examples])
    solutions = tokenizer.encode_batch([f"{e.solution}{END}" for e in examples])
    return [(p.ids + s.ids, len(p.ids)) for p, s in zip(prompts, solutions, strict=True)]


def collate(rows: list[Row], pad: int) -> tuple[Tensor, Tensor]:
    """Right-padded inputs and next-token targets; targets inside prompts and padding are -100."""
    width = max(len(ids) for ids, _ in rows) - 1
    inputs = torch.full((len(rows), width), pad)
    targets = torch.full((len(rows), width), -100)
    for i, (ids, prompt) in enumerate(rows):
        inputs[i, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[i, prompt - 1 : len(ids) - 1] = torch.tensor(ids[prompt:])
    return inputs, targets


def bucketed(rows: list[Row], tokens: int, rng: Random) -> list[list[Row]]:
    """Batches of rows of like length, about ``tokens`` each, in random order."""
    batches: list[list[Row]] = [[]]
    for row in sorted(rows, key=lambda r: len(r[0])):
        if (len(batches[-1]) + 1) * len(row[0]) > tokens:
            batches.append([])
        batches[-1].append(row)
    rng.shuffle(batches)
    return batches


def grow(old: TinyLlama, model: TinyLlama) -> None:
    """Give the deeper ``model`` the function of ``old``, which has the same width.

    The old layers are spread evenly; each new one copies the old layer below it, with output matrices of zero.

    Raises:
        ValueError: the two differ in more than depth, or ``model`` is not deeper.
    """
    if replace(old.config, num_hidden_layers=model.config.num_hidden_layers) != model.config:
        raise ValueError(
            f"can't grow: the models differ in more than depth ({old.config} and {model.config})"
        )
    if len(model.layers) <= len(old.layers):
        raise ValueError(f"can't grow {len(old.layers)} layers to {len(model.layers)}")
    above = -1
    for index, layer in enumerate(model.layers):
        below = index * len(old.layers) // len(model.layers)
        layer.load_state_dict(old.layers[below].state_dict())
        if below == above:
            for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
                nn.init.zeros_(layer.get_parameter(name))
        above = below
    model.embed_tokens.load_state_dict(old.embed_tokens.state_dict())
    model.norm.load_state_dict(old.norm.state_dict())


class Clock:
    """Progress by wall-clock time, shared by all workers through a common start."""

    def __init__(self, start: float, minutes: float, already: float) -> None:
        self.start, self.total, self.already = start - already, minutes * 60, already

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, earlier runs included."""
        return time.time() - self.start

    @property
    def progress(self) -> float:
        """The share of the time that is gone."""
        return min(1.0, self.elapsed / self.total)


class Trainer:
    """One worker."""

    def __init__(self, settings: Settings, rank: int, start: float) -> None:
        self.s, self.rank = settings, rank
        self.tokenizer = load_tokenizer(settings.out)
        torch.manual_seed(settings.seed)
        self.model = TinyLlama(TinyConfig(vocab_size=self.tokenizer.get_vocab_size(), **SIZES[settings.size]))
        already = self._resume()
        self.clock = Clock(start, settings.minutes, already)
        self.rng = Random(f"{settings.seed}/{rank}/{already}")
        self.optimizers = self._optimizers()
        self.pad, self.end = token_id(self.tokenizer, PAD), token_id(self.tokenizer, END)
        self.tokens, self.loss_sum, self.loss_count = 0, 0.0, 0

    @property
    def _state(self) -> Path:
        return self.s.out / "train_state"

    def _resume(self) -> float:
        if not (self._state / "state.json").exists():
            if self.s.grow_from:
                grow(load_weights(self.s.grow_from), self.model)
            return 0.0
        self.model.load_state_dict(load_file(self._state / "weights.safetensors"))
        return json.loads((self._state / "state.json").read_text())["elapsed"]

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        matrices = [p for p in self.model.layers.parameters() if p.dim() == 2]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        wd = self.s.weight_decay
        return [
            torch.optim.Muon(matrices, lr=self.s.muon_lr, weight_decay=wd, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=self.s.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def batches(self) -> Iterator[list[Row]]:
        """Fresh micro-batches without end."""
        while True:
            progress = 1.0 if self.s.grow_from else self.clock.progress  # a grown model has had its drills
            rows = encode_examples(self.tokenizer, self.rng, mixture(progress), 1024)
            yield from bucketed(rows, self.s.micro_tokens, self.rng)

    def step(self, batches: Iterator[list[Row]]) -> None:
        """One optimiser step on a few micro-batches of different lengths."""
        parts = [collate(next(batches), self.pad) for _ in range(self.s.micro_batches)]
        count = sum(int((targets >= 0).sum()) for _, targets in parts)
        for inputs, targets in parts:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = self.model.loss(inputs, targets)
            (loss / count).backward()
            self.loss_sum += loss.item()
            self.tokens += inputs.numel()
        self.loss_count += count
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        scale = learning_rate(self.clock.progress, self.s.warmup)
        for optimizer, peak in zip(self.optimizers, (self.s.muon_lr, self.s.adam_lr), strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def average(self) -> None:
        """Replace every worker's weights by their mean."""
        flat = nn.utils.parameters_to_vector(self.model.parameters())
        dist.all_reduce(flat)
        nn.utils.vector_to_parameters(flat / self.s.workers, self.model.parameters())

    def _total(self, *values: float) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def evaluate(self) -> dict[str, float]:
        """Greedy exact match on fresh problems, shared out over the workers."""
        scores, self.model = {}, self.model.eval()
        for task, n in (("gsm_symbolic", self.s.eval_problems), ("chain_sum", 16), ("basic_arithmetic", 16)):
            mine = evaluation_problems(task, n, EVAL_SEED + 500_000)[self.rank :: self.s.workers]
            texts = solve(self.model, self.tokenizer, [q for q, _ in mine], max_new=200)
            if self.rank == 0 and task == "gsm_symbolic":
                for (question, answer), text in list(zip(mine, texts, strict=True))[:3]:
                    print(f"  Q {question}\n  A {answer} | {text!r}", flush=True)
            right = sum(is_correct(text, a) for text, (_, a) in zip(texts, mine, strict=True))
            (total,) = self._total(right)
            scores[task] = round(total / n, 3)
        self.model.train()
        return scores

    def report(self, extra: dict[str, float]) -> None:
        """One line of JSON in the log."""
        tokens, loss, count = self._total(self.tokens, self.loss_sum, self.loss_count)
        self.loss_sum, self.loss_count = 0.0, 0
        if self.rank == 0:
            line = {
                "elapsed": round(self.clock.elapsed),
                "tokens": int(tokens),
                "loss": round(loss / max(1, count), 4),
            }
            print(json.dumps(line | extra), flush=True)

    def save(self) -> None:
        """Write the Hugging Face folder and what a resumed run needs."""
        if self.rank:
            return
        save_weights(self.model, self.s.out, pad=self.pad, bos=None, eos=self.end)
        self._state.mkdir(exist_ok=True)
        save_file(self.model.state_dict(), self._state / "weights.safetensors")
        (self._state / "state.json").write_text(json.dumps({"elapsed": self.clock.elapsed}))

    def run(self) -> None:
        """Train until the time is over."""
        batches, rounds = self.batches(), 0
        first = self.clock.already
        total_rounds = int((self.clock.total - first) / self.s.sync_seconds)
        every = max(1, round(self.s.eval_minutes * 60 / self.s.sync_seconds))
        while rounds < total_rounds:
            self.step(batches)
            if self.clock.elapsed - first < (rounds + 1) * self.s.sync_seconds:
                continue
            self.average()
            before, rounds = rounds, max(rounds + 1, self._agree(first))
            if rounds // 6 != before // 6:
                self.report({})
            if rounds // every != before // every or rounds >= total_rounds:
                self.save()
                self.report(self.evaluate())

    def _agree(self, first: float) -> int:
        """The number of sync periods gone by, the same for every worker."""
        gone = torch.tensor([int((self.clock.elapsed - first) / self.s.sync_seconds)])
        dist.all_reduce(gone, op=dist.ReduceOp.MIN)
        return int(gone)


def _worker(rank: int, settings: Settings, start: float) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=settings.workers)
    Trainer(settings, rank, start).run()
    dist.destroy_process_group()


def train(settings: Settings) -> None:
    """Take or learn the tokenizer if it is missing, then train or resume."""
    settings.out.mkdir(parents=True, exist_ok=True)
    if not (settings.out / "tokenizer.json").exists():
        given = load_tokenizer(settings.tokenizer) if settings.tokenizer else make_tokenizer(settings)
        save_tokenizer(given, settings.out, max_length=1024)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29517")
    print(json.dumps({k: str(v) for k, v in asdict(settings).items()}), flush=True)
    mp.spawn(_worker, (settings, time.time()), nprocs=settings.workers)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default=Settings.size)
    parser.add_argument(
        "--tokenizer", type=Path, help="folder whose tokenizer to use; by default one is learned"
    )
    parser.add_argument("--grow-from", type=Path, help="folder of a shallower model of the same width")
    for name in ("minutes", "workers", "seed", "muon_lr", "adam_lr", "eval_minutes", "micro_batches"):
        default = getattr(Settings, name)
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default)
    train(Settings(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
