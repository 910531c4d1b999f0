"""Training rows from files, and their token ids. Knows tokenizers, not models.

A row that cannot be used is counted with its reason, never dropped silently.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from wcse.prompts import render_chat, render_problem, render_text
from wcse.train.config import TrainConfig
from wcse.types import WcseError

SFT, LABEL, RATIONALE = "sft", "label", "rationale"


@dataclass(frozen=True, slots=True)
class Item:
    """Token ids of a prompt and its target, and the task whose loss it belongs to."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]
    task: str

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt + self.target


Group = tuple[Item, ...]
"""The items of one row, one a task."""


@dataclass
class Loaded:
    """Items ready to train on, those of one row together. ``left_out`` counts rows by reason; ``questions`` is what
    the rows ask, to keep validation apart."""

    groups: list[Group] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    questions: set[str] = field(default_factory=set)


def read_rows(path: str | Path, objective: str) -> list[dict[str, Any]]:
    """The rows of a file, or of the fitting format in a folder that ``wcse synth`` wrote.

    Raises:
        WcseError: nothing is there, or it cannot be read; the message names the line.
    """
    source = Path(path)
    files = [source]
    if source.is_dir():
        folder = source / "data" if (source / "data").is_dir() else source
        name = "sft" if objective == "sft" else "rationale"
        files = sorted(folder.glob(f"{name}-*.parquet"))
        if not files:
            raise WcseError(f"data={str(path)!r}: no {name}-*.parquet in it; export {name} in wcse synth")
    rows = [row for file in files for row in _read(file)]
    if not rows:
        raise WcseError(f"data={str(path)!r}: no rows; loosen the filters, or sample more")
    return rows


def _read(file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        if file.suffix == ".parquet":
            yield from pq.read_table(file).to_pylist()
            return
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise WcseError(f"{file} line {number}: not valid JSON: {error}") from error
                if not isinstance(row, dict):
                    raise WcseError(f"{file} line {number}: a row must be an object")
                yield row
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise WcseError(f"data={str(file)!r}: cannot be read: {' '.join(str(error).split())}") from error


def share_of(rows: Sequence[dict[str, Any]], share: float, seed: int) -> list[dict[str, Any]]:
    """The rows of a share of the problems: a fixed lot by problem, so a smaller share lies within a larger one."""
    if share >= 1:
        return list(rows)
    names = dict.fromkeys(str(row.get("problem_id", index)) for index, row in enumerate(rows))
    drawn = sorted(names, key=lambda name: blake2b(f"{seed}|{name}".encode(), digest_size=8).digest())
    chosen = set(drawn[: max(1, round(share * len(drawn)))])
    return [row for index, row in enumerate(rows) if str(row.get("problem_id", index)) in chosen]


def load_items(config: TrainConfig, tokenizer: Any, *, seq2seq: bool, context: int) -> Loaded:
    """Rows as token ids, those of the recipe's share.

    Raises:
        WcseError: the data cannot be read, or no row can be used.
    """
    rows = read_rows(config.data, config.objective)
    if config.samplers:
        rows = [row for row in rows if row.get("sampler") in config.samplers]
        if not rows:
            raise WcseError(f"data={config.data!r}: no rows of {', '.join(config.samplers)}; sample more")
    rows = share_of(rows, config.share, config.seed)
    loaded = Loaded(rows=len(rows), questions={question for row in rows for question in _questions(row)})
    limit = min(config.max_length, context)
    for row in rows:
        try:
            group = tuple(_encode(config, tokenizer, row, seq2seq))
        except WcseError as error:
            loaded.left_out[str(error)] += 1
            continue
        if max(map(len, group)) > limit:
            loaded.left_out[f"longer than {limit} tokens"] += 1
        else:
            loaded.groups.append(group)
    if not loaded.groups:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in loaded.left_out.most_common(3))
        raise WcseError(f"data={config.data!r}: no row can be used: {reasons}")
    return loaded


def _questions(row: Mapping[str, Any]) -> Iterator[str]:
    """What a row asks, in whichever column."""
    yield from (row[name].strip() for name in ("input", "prompt") if isinstance(row.get(name), str))
    for turn in row.get("messages") or ():
        if turn.get("role") == "user" and isinstance(turn.get("content"), str):
            yield turn["content"].strip()


def _encode(config: TrainConfig, tokenizer: Any, row: Mapping[str, Any], seq2seq: bool) -> Iterable[Item]:
    if config.objective == "sft":
        yield _sft_item(tokenizer, row, seq2seq)
        return
    question, label, rationale = (row.get(name) for name in ("input", "label", "rationale"))
    if not (isinstance(question, str) and isinstance(label, str) and isinstance(rationale, str)):
        raise WcseError("row without input, label and rationale")
    label = f"\\boxed{{{label}}}"  # so that the engine finds it as it finds any answer
    tasks = [(config.label_prefix, label, LABEL), (config.rationale_prefix, rationale, RATIONALE)]
    for prefix, target, task in tasks[:1] if config.objective == "label" else tasks:
        yield Item(_prompt(tokenizer, prefix + question, seq2seq), _target(tokenizer, target), task)


def _sft_item(tokenizer: Any, row: Mapping[str, Any], seq2seq: bool) -> Item:
    messages = row.get("messages")
    if isinstance(messages, list) and messages and messages[-1].get("role") == "assistant":
        if seq2seq:
            prompt = _prompt(tokenizer, "\n\n".join(turn["content"] for turn in messages[:-1]), seq2seq)
        else:
            prompt = tuple(render_chat(tokenizer, messages[:-1]))
        return Item(prompt, _target(tokenizer, messages[-1]["content"]), SFT)
    prompt_text, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt_text, str) and isinstance(completion, str):
        return Item(_prompt(tokenizer, prompt_text, seq2seq), _target(tokenizer, completion), SFT)
    raise WcseError("row without messages, or prompt and completion")


def _prompt(tokenizer: Any, text: str, seq2seq: bool) -> tuple[int, ...]:
    return tuple(render_text(tokenizer, text) if seq2seq else render_problem(tokenizer, text))


def _target(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The text and the end of a turn: without it the model would not learn to stop."""
    return (*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id)
